//! Station 3: opaque bytes between ranks. Knows nothing of codecs or sums.
//!
//! Every pair of ranks shares two connections: `data` carries exchanges ([`Transport::transfer`]), `control` carries
//! messages of any length and heartbeats ([`Transport::send_message`]), so that a peer that computes for a minute is
//! told apart from one that is gone.
//!
//! | transport | ranks are | for |
//! |---|---|---|
//! | [`memory::MemoryTransport`] | threads of one process | tests, with faults |
//! | [`tcp::TcpMesh`] | processes, on one host or several | serving |
//!
//! The first failure is final: bytes of an unfinished transfer may still be under way, so a link's position is
//! unknown. Every later call returns that first error, and the peers are told which rank it was about.

mod error;
pub mod memory;
pub mod tcp;
mod timed;

use std::fmt;
use std::time::Duration;

pub use error::TransportError;
pub use timed::Timed;

/// Ranks are indices below this. The hot path keeps one slot per rank on the stack instead of allocating.
pub const MAX_RANKS: usize = 64;

/// Where a rank sends to several peers, how many bytes of a message it is ahead of what it has received from the slowest of them.
///
/// Ranks that add up in rank order get on with the slowest, and who is ahead fills links that others wait for: three ranks and
/// 1.1 MB for each took 1.1 to 1.3 times the wire's time without (1 Gbit/s and, with BBR, 100 Mbit/s) and take 1.00 to 1.02.
/// Below the 64 KiB of Linux's largest packet.
pub const PACE_BYTES: usize = 56 << 10;

/// Bytes for one peer: `parts` are sent back to back.
#[derive(Debug, Clone, Copy)]
pub struct SendOp<'a> {
    pub to: usize,
    pub parts: [&'a [u8]; 2],
    /// Bytes of the same message that went out before, by [`Transport::offer`].
    pub offered: usize,
}

impl<'a> SendOp<'a> {
    /// A whole message.
    pub const fn new(to: usize, parts: [&'a [u8]; 2]) -> Self {
        let offered = 0;
        Self { to, parts, offered }
    }
}

/// Room for the bytes of one peer. Both lengths are exact: the receiver knows them from what all ranks share.
#[derive(Debug)]
pub struct RecvOp<'a> {
    pub from: usize,
    pub header: &'a mut [u8],
    pub payload: &'a mut [u8],
}

/// What a transfer has received so far, told as it happens.
#[derive(Debug)]
pub enum Arrival<'a> {
    /// All of a peer's header, before its payload is waited for.
    Header { from: usize, header: &'a [u8] },
    /// The payload bytes so far; the last call for a peer has all of them.
    Payload {
        from: usize,
        bytes: &'a [u8],
        complete: bool,
    },
}

/// The caller's reason not to accept what arrived. Ends the transfer and the transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected(pub String);

/// How long to wait for a control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As long as the peer shows that it lives: an error after this long without a message or heartbeat.
    Silence(Duration),
    /// At most this long.
    Total(Duration),
}

/// Bytes exchanged with one rank, both connections together, as the socket counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub sent: u64,
    pub received: u64,
}

/// Moves bytes between the ranks `0..world_size` of a group.
pub trait Transport: fmt::Debug + Send + Sync {
    fn rank(&self) -> usize;

    fn world_size(&self) -> usize;

    /// Runs all sends and receives at once and returns when all are done; at most one of each per peer. No message
    /// is too large for it: reads and writes interleave. Sends may be served in their order and, to several peers, at the pace
    /// of the receives ([`PACE_BYTES`]). Calls from several threads run one after another.
    ///
    /// `deadline` is how long nothing at all may move; a slow link that still delivers is not an error.
    ///
    /// # Errors
    /// A lost peer, the deadline, [`Rejected`] from `on_progress`, or operations that do not fit the group.
    fn transfer(
        &self,
        sends: &[SendOp<'_>],
        recvs: &mut [RecvOp<'_>],
        deadline: Duration,
        on_progress: &mut dyn FnMut(Arrival<'_>) -> Result<(), Rejected>,
    ) -> Result<(), TransportError>;

    /// Writes as much of `send` as goes out without waiting, and returns how many bytes that is: a caller that makes a
    /// large message piece by piece keeps the wire busy meanwhile. The rest, and then nothing else, must follow with the
    /// next [`Transport::transfer`] to that rank. A transport may always take nothing.
    ///
    /// # Errors
    /// A lost peer, or a rank that is not in the group.
    fn offer(&self, send: &SendOp<'_>) -> Result<usize, TransportError> {
        let _ = send;
        Ok(0)
    }

    /// Sends a control message. Messages to one peer arrive whole and in order.
    ///
    /// # Errors
    /// A lost peer, or a body above the transport's limit (which leaves the transport usable).
    fn send_message(&self, to: usize, body: &[u8]) -> Result<(), TransportError>;

    /// The next control message of `from`.
    ///
    /// # Errors
    /// A lost peer, or patience ran out (which leaves the transport usable: nothing was half read).
    fn recv_message(&self, from: usize, patience: Patience) -> Result<Vec<u8>, TransportError>;

    fn traffic(&self, rank: usize) -> Traffic;

    /// The first failure, after which nothing works any more.
    fn failure(&self) -> Option<TransportError>;

    /// Gives the group up because of `culprit`, for a reason the transport cannot see, and tells the peers.
    fn abort(&self, culprit: usize, reason: &str);

    /// Leaves the group. Wakes every waiting call of this rank; peers that still need this rank get an error.
    fn close(&self);
}

/// Checks what both transports rely on, so that a caller's mistake is an error and not a hang.
fn check_ops(rank: usize, world_size: usize, sends: &[SendOp<'_>], recvs: &[RecvOp<'_>]) -> Result<(), TransportError> {
    check_peers(rank, world_size, sends.iter().map(|op| op.to))?;
    check_peers(rank, world_size, recvs.iter().map(|op| op.from))
}

fn check_peers(rank: usize, world_size: usize, peers: impl Iterator<Item = usize>) -> Result<(), TransportError> {
    let mut seen = 0_u64;
    for peer in peers {
        check_peer(rank, world_size, peer)?;
        if seen & (1 << peer) != 0 {
            return Err(TransportError::ApiMisuse {
                what: "two operations for one rank in one transfer",
                rank: peer,
            });
        }
        seen |= 1 << peer;
    }
    Ok(())
}

const fn check_peer(rank: usize, world_size: usize, peer: usize) -> Result<(), TransportError> {
    if peer >= world_size {
        return Err(TransportError::ApiMisuse {
            what: "no such rank in the group",
            rank: peer,
        });
    }
    if peer == rank {
        return Err(TransportError::ApiMisuse {
            what: "a rank does not talk to itself",
            rank: peer,
        });
    }
    Ok(())
}
