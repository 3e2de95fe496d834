//! Why a mesh did not come about. Each message says which rank, which address, and what to change.

use std::time::Duration;

use crate::wire::Refusal;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    #[error("`peers` has {len} addresses, it needs between 1 and {limit}")]
    PeerCount { len: usize, limit: usize },
    #[error("rank {rank} is not an index of the {len} addresses in `peers`")]
    NoSuchRank { rank: usize, len: usize },
    #[error("`peers[{rank}]`: cannot resolve {address}: {reason}")]
    Unresolved {
        rank: usize,
        address: String,
        reason: String,
    },
    #[error(
        "`peers[{rank}]`: {address} is not a loopback address, and the group has no secret: give all ranks the same one \
         (TPQ_SECRET_FILE, `group.secret_file`), or set `insecure: true` on a network where every host is trusted"
    )]
    NotLoopback { rank: usize, address: String },
    #[error("`encrypt: true` needs a secret: make one with `openssl rand -hex 32` and give it to all ranks")]
    EncryptWithoutSecret,
    #[error(
        "cannot listen on {address} (`peers[{rank}]`): the port is in use: is another process running as rank {rank}?"
    )]
    PortInUse { rank: usize, address: String },
    #[error(
        "cannot listen on {address} (`peers[{rank}]`): no interface of this host has it: is this host rank {rank}?"
    )]
    NotThisHost { rank: usize, address: String },
    #[error("cannot listen on {address} (`peers[{rank}]`): {reason}")]
    Listen {
        rank: usize,
        address: String,
        reason: String,
    },
    #[error("rank {rank} at {address} did not join within {waited:.1?}: {last}")]
    Absent {
        rank: usize,
        address: String,
        waited: Duration,
        last: String,
    },
    #[error("rank {rank} gave up while others were still joining: its log says why")]
    Left { rank: usize },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "`congestion_control`: this host does not let this process use {name} ({reason}); allowed are: {allowed}. Allow others with `sysctl \
         net.ipv4.tcp_allowed_congestion_control`, or leave the key out"
    )]
    Congestion {
        name: String,
        reason: String,
        allowed: String,
    },
    #[error("setting up the sockets failed: {reason}")]
    System { reason: String },
}

impl JoinError {
    pub(super) fn system(error: impl std::fmt::Display) -> Self {
        Self::System {
            reason: error.to_string(),
        }
    }
}
