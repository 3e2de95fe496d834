//! Bringing a mesh about: listen, connect, say hello, until every pair has a data and a control connection.
//!
//! Of each pair the higher rank connects and the lower accepts. Accepting and connecting run at the same time, so it
//! does not matter in which order processes start. A mismatch ends the join at once on both sides; anything that does
//! not speak the protocol, or does not know the group's secret where it has one, is dropped and the join goes on.

mod accept;
mod dial;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::secure::Cipher;
use super::{JoinError, MeshConfig};
use crate::wire::{Hello, Purpose};

/// Connections by rank; `None` for this rank.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) data: Vec<Option<Connection>>,
    pub(super) control: Vec<Option<Connection>>,
}

/// A connection whose ends have agreed. With a secret, control connections keep their cipher, because they carry prompts; data
/// connections do with `encrypt`.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) cipher: Option<Cipher>,
}

/// What both halves of a join share.
#[derive(Debug)]
struct Join<'a> {
    config: &'a MeshConfig,
    started: Instant,
    /// Set by the half that failed, so that the other one stops.
    stop: AtomicBool,
    joined: Mutex<Joined>,
    /// The last connection that was turned away for its secret: the likeliest reason why a rank is absent.
    stranger: Mutex<Option<String>>,
}

/// Opens the listener on this rank's own address.
///
/// # Errors
/// An address that does not resolve, is not this host's, is taken, or is not loopback without a secret.
pub(super) fn listen(config: &MeshConfig) -> Result<TcpListener, JoinError> {
    let rank = config.rank;
    let addresses = resolve(config, rank)?;
    TcpListener::bind(&addresses[..]).map_err(|error| {
        let address = config.peers[rank].clone();
        match error.kind() {
            io::ErrorKind::AddrInUse => JoinError::PortInUse { rank, address },
            io::ErrorKind::AddrNotAvailable => JoinError::NotThisHost { rank, address },
            _ => JoinError::Listen {
                rank,
                address,
                reason: error.to_string(),
            },
        }
    })
}

/// Refuses a listener beyond loopback unless the configuration allows it.
pub(super) fn check_listener(listener: &TcpListener, config: &MeshConfig) -> Result<(), JoinError> {
    let address = listener.local_addr().map_err(JoinError::system)?;
    if !config.may_leave_host() && !address.ip().is_loopback() {
        return Err(JoinError::NotLoopback {
            rank: config.rank,
            address: address.to_string(),
        });
    }
    Ok(())
}

/// Meets all other ranks.
///
/// # Errors
/// The first thing that went wrong on either half.
pub(super) fn join(listener: &TcpListener, config: &MeshConfig) -> Result<Joined, JoinError> {
    for rank in 0..config.rank {
        // Once before anything is sent, so that a forbidden address is refused at once.
        resolve(config, rank).or_else(|error| match error {
            JoinError::Unresolved { .. } => Ok(Vec::new()),
            other => Err(other),
        })?;
    }
    let join = Join {
        config,
        started: Instant::now(),
        stop: AtomicBool::new(false),
        joined: Mutex::new(Joined::empty(config.peers.len())),
        stranger: Mutex::new(None),
    };
    let (accepted, dialed) = std::thread::scope(|scope| {
        let acceptor = scope.spawn(|| join.guard(accept::run(&join, listener)));
        let dialed = join.guard(dial::run(&join));
        let accepted = acceptor
            .join()
            .unwrap_or_else(|_| Err(JoinError::system("the accepting thread panicked")));
        (accepted, dialed)
    });
    accepted?;
    dialed?;
    Ok(join.joined.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// The addresses of `rank`, of which one is loopback or the configuration allows others.
fn resolve(config: &MeshConfig, rank: usize) -> Result<Vec<SocketAddr>, JoinError> {
    let address = &config.peers[rank];
    let unresolved = |reason: String| JoinError::Unresolved {
        rank,
        address: address.clone(),
        reason,
    };
    let found: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(|e| unresolved(e.to_string()))?
        .collect();
    if found.is_empty() {
        return Err(unresolved("the name has no address".to_owned()));
    }
    if !config.may_leave_host() && !found.iter().all(|found| found.ip().is_loopback()) {
        return Err(JoinError::NotLoopback {
            rank,
            address: address.clone(),
        });
    }
    Ok(found)
}

impl Joined {
    pub(super) fn alone() -> Self {
        Self::empty(1)
    }

    fn empty(world_size: usize) -> Self {
        let none = || (0..world_size).map(|_| None).collect();
        Self {
            data: none(),
            control: none(),
        }
    }

    fn slot(&mut self, rank: usize, purpose: Purpose) -> &mut Option<Connection> {
        match purpose {
            Purpose::Data => &mut self.data[rank],
            Purpose::Control => &mut self.control[rank],
        }
    }
}

impl Join<'_> {
    /// Tells the other half of a failure; a half that was told to stop has no error of its own.
    fn guard(&self, result: Result<(), JoinError>) -> Result<(), JoinError> {
        if result.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        result
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn remaining(&self) -> Duration {
        self.config.connect_timeout.saturating_sub(self.started.elapsed())
    }

    fn hello(&self, to: usize, purpose: Purpose) -> Hello {
        let mut identity = self.config.identity.clone();
        if self.config.encrypt {
            identity.policy += "; encrypt";
        }
        Hello {
            purpose,
            rank: self.config.rank as u32,
            to: to as u32,
            world_size: self.config.peers.len() as u32,
            identity,
        }
    }

    fn add(&self, rank: usize, purpose: Purpose, stream: TcpStream, cipher: Option<Cipher>) {
        let cipher = cipher.filter(|_| purpose == Purpose::Control || self.config.encrypt);
        *self.lock().slot(rank, purpose) = Some(Connection { stream, cipher });
    }

    /// Takes note of a connection that does not know the secret, and says so in the log.
    fn turn_away(&self, from: SocketAddr, why: &str) {
        tracing::warn!("rank {}: dropped a connection from {from} that {why}", self.config.rank);
        *self.stranger.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("a connection from {from} {why}"));
    }

    fn never_connected(&self) -> String {
        let stranger = self.stranger.lock().unwrap_or_else(PoisonError::into_inner);
        match &*stranger {
            Some(stranger) => format!("it never connected, but {stranger}"),
            None => "it never connected".to_owned(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Joined> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notices a rank that joined and is gone: waiting on would end in a deadline that blames someone else.
    fn check_present(&self) -> Result<(), JoinError> {
        let joined = self.lock();
        let gone = |one: &Option<Connection>| one.as_ref().is_some_and(|one| is_closed(&one.stream));
        match joined
            .data
            .iter()
            .zip(&joined.control)
            .position(|(data, control)| gone(data) || gone(control))
        {
            Some(rank) => Err(JoinError::Left { rank }),
            None => Ok(()),
        }
    }

    fn absent(&self, rank: usize, last: String) -> JoinError {
        let address = self.config.peers[rank].clone();
        JoinError::Absent {
            rank,
            address,
            waited: self.started.elapsed(),
            last,
        }
    }
}

/// Whether the peer has closed a nonblocking stream. Bytes that wait to be read mean that it has not.
fn is_closed(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(n) => n == 0,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    }
}
