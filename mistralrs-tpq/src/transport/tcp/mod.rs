//! Ranks as processes: a full mesh of TCP connections, two per pair.
//!
//! * `rendezvous` brings the mesh about: every rank listens on its own address in `peers`, and of each pair the higher
//!   rank connects to the lower. Both say hello, and a mismatch is an error on both sides.
//! * `poll` is the hot path, `control` the messages and heartbeats, `link` one connection.
//! * `secure` authenticates a connection from the group's [`Secret`], which anything but loopback needs, and encrypts it.
//! * [`ring`] and [`star`] learn `peers` in an existing deployment, from RING_CONFIG or MISTRALRS_MN_*.

mod congestion;
mod control;
mod entry;
mod error;
mod link;
mod poll;
mod rendezvous;
pub mod ring;
mod secure;
pub mod star;
mod state;

use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use congestion::Congestion;
pub use error::JoinError;
pub use secure::{Secret, SecretTooShort};

use self::link::Link;
use self::state::{ControlLink, MeshState};
use super::{
    check_ops, check_peer, Arrival, Patience, RecvOp, Rejected, SendOp, Traffic, Transport, TransportError, MAX_RANKS,
};
use crate::wire::{Identity, DEFAULT_MESSAGE_LIMIT};

/// What a rank needs to join a mesh.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    pub rank: usize,
    /// `host:port` of every rank, index = rank, alike on all ranks. Each rank listens on its own.
    pub peers: Vec<String>,
    /// What all ranks must have alike.
    pub identity: Identity,
    /// How long to wait for all ranks. Loading a model takes minutes and ranks start by hand: default 10 minutes.
    pub connect_timeout: Duration,
    /// How long a control message may make no progress. Default 30 s.
    pub timeout: Duration,
    /// How often an idle control connection says that this rank lives. Default 1 s.
    pub heartbeat: Duration,
    /// What all ranks know. With it, connections are authenticated, and control connections, which carry prompts, encrypted.
    pub secret: Option<Secret>,
    /// Encrypt data connections as well. Needs a secret. Default false.
    pub encrypt: bool,
    /// Allow addresses beyond loopback without a secret. Default false.
    pub insecure: bool,
    /// How long a transfer tries again before it sleeps. Longer costs CPU, shorter costs wake-ups. Default 20 us.
    pub busy_poll: Duration,
    /// By which rules TCP shares a wire between data connections.
    pub congestion: Congestion,
    /// Longest control message. Default 64 MiB.
    pub message_limit: usize,
}

impl MeshConfig {
    pub fn new(rank: usize, peers: Vec<String>, identity: Identity) -> Self {
        Self {
            rank,
            peers,
            identity,
            connect_timeout: Duration::from_secs(600),
            timeout: Duration::from_secs(30),
            heartbeat: Duration::from_secs(1),
            secret: None,
            encrypt: false,
            insecure: false,
            busy_poll: Duration::from_micros(20),
            congestion: Congestion::default(),
            message_limit: DEFAULT_MESSAGE_LIMIT,
        }
    }

    fn check(&self) -> Result<(), JoinError> {
        let len = self.peers.len();
        if !(1..=MAX_RANKS).contains(&len) {
            return Err(JoinError::PeerCount { len, limit: MAX_RANKS });
        }
        if self.rank >= len {
            return Err(JoinError::NoSuchRank { rank: self.rank, len });
        }
        if self.encrypt && self.secret.is_none() {
            return Err(JoinError::EncryptWithoutSecret);
        }
        self.congestion.check()
    }

    /// Whether links may reach beyond this host.
    const fn may_leave_host(&self) -> bool {
        self.insecure || self.secret.is_some()
    }
}

/// One rank's end of a full mesh.
#[derive(Debug)]
pub struct TcpMesh {
    state: Arc<MeshState>,
    world_size: usize,
    timeout: Duration,
    /// Held for one transfer: two at once would read each other's bytes.
    turn: Mutex<()>,
    control_thread: Mutex<Option<JoinHandle<()>>>,
}

impl TcpMesh {
    /// Listens on `peers[rank]`, meets all other ranks, and returns once each pair has agreed.
    ///
    /// # Errors
    /// See [`JoinError`]: an absent rank, a rank that differs, an address that cannot or may not be used.
    pub fn connect(config: MeshConfig) -> Result<Self, JoinError> {
        config.check()?;
        if config.peers.len() == 1 {
            return Self::assemble(config, rendezvous::Joined::alone());
        }
        let listener = rendezvous::listen(&config)?;
        Self::connect_on(listener, config)
    }

    /// As [`TcpMesh::connect`], on a listener that is open already, which leaves no moment for others to take the port.
    ///
    /// # Errors
    /// As for [`TcpMesh::connect`].
    pub fn connect_on(listener: TcpListener, config: MeshConfig) -> Result<Self, JoinError> {
        config.check()?;
        rendezvous::check_listener(&listener, &config)?;
        if config.insecure && config.secret.is_none() {
            tracing::warn!(
                "insecure: true: whoever reaches {} can join as a rank and read prompts",
                config.peers[config.rank]
            );
        }
        let joined = rendezvous::join(&listener, &config)?;
        Self::assemble(config, joined)
    }

    fn assemble(config: MeshConfig, joined: rendezvous::Joined) -> Result<Self, JoinError> {
        let link = |connection: Option<rendezvous::Connection>| {
            connection
                .map(|connection| Link::new(connection.stream, connection.cipher))
                .transpose()
                .map_err(JoinError::system)
        };
        let mut chosen = None;
        for connection in joined.data.iter().flatten() {
            let applied = config.congestion.apply(&connection.stream);
            chosen = applied.map_err(JoinError::system)?.or(chosen);
        }
        if let Some(name) = chosen {
            tracing::info!("data connections use TCP's {name}, whatever the host's default is");
        }
        let data = joined.data.into_iter().map(link).collect::<Result<_, _>>()?;
        let control = joined
            .control
            .into_iter()
            .map(|connection| Ok(link(connection)?.map(ControlLink::new)));
        let control = control.collect::<Result<_, JoinError>>()?;
        let state = MeshState::new(config.rank, config.busy_poll, config.message_limit, data, control);
        let state = Arc::new(state.map_err(JoinError::system)?);
        let world_size = config.peers.len();
        let control_thread = (world_size > 1)
            .then(|| {
                let state = Arc::clone(&state);
                let name = format!("tpq-control-{}", config.rank);
                std::thread::Builder::new()
                    .name(name)
                    .spawn(move || control::run(&state, config.heartbeat, config.timeout))
            })
            .transpose()
            .map_err(JoinError::system)?;
        Ok(Self {
            state,
            world_size,
            timeout: config.timeout,
            turn: Mutex::new(()),
            control_thread: Mutex::new(control_thread),
        })
    }
}

impl Transport for TcpMesh {
    fn rank(&self) -> usize {
        self.state.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn transfer(
        &self,
        sends: &[SendOp<'_>],
        recvs: &mut [RecvOp<'_>],
        deadline: Duration,
        on_progress: &mut dyn FnMut(Arrival<'_>) -> Result<(), Rejected>,
    ) -> Result<(), TransportError> {
        check_ops(self.state.rank, self.world_size, sends, recvs)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match self.state.error() {
            Some(error) => Err(error),
            None => poll::transfer(&self.state, sends, recvs, deadline, on_progress),
        }
    }

    fn offer(&self, send: &SendOp<'_>) -> Result<usize, TransportError> {
        check_peer(self.state.rank, self.world_size, send.to)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match self.state.error() {
            Some(error) => Err(error),
            None => poll::offer(&self.state, send),
        }
    }

    fn send_message(&self, to: usize, body: &[u8]) -> Result<(), TransportError> {
        check_peer(self.state.rank, self.world_size, to)?;
        control::send(&self.state, to, body, self.timeout)
    }

    fn recv_message(&self, from: usize, patience: Patience) -> Result<Vec<u8>, TransportError> {
        check_peer(self.state.rank, self.world_size, from)?;
        control::receive(&self.state, from, patience)
    }

    fn failure(&self) -> Option<TransportError> {
        self.state.error()
    }

    fn traffic(&self, rank: usize) -> Traffic {
        let data = self
            .state
            .data
            .get(rank)
            .and_then(Option::as_ref)
            .map(Link::traffic)
            .unwrap_or_default();
        let control = self.state.control.get(rank).and_then(Option::as_ref);
        let control = control.map(|control| control.link.traffic()).unwrap_or_default();
        Traffic {
            sent: data.sent + control.sent,
            received: data.received + control.received,
        }
    }

    fn abort(&self, culprit: usize, reason: &str) {
        self.state.fail(TransportError::Rejected {
            rank: culprit,
            reason: reason.to_owned(),
        });
    }

    fn close(&self) {
        self.state.fail(TransportError::Closed { rank: self.state.rank });
    }
}

impl Drop for TcpMesh {
    fn drop(&mut self) {
        self.close();
        let thread = self
            .control_thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!("the control thread of rank {} panicked", self.state.rank);
        }
    }
}
