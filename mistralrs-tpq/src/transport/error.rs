//! What can go wrong once the ranks have joined.

use std::time::Duration;

use crate::wire::WireError;

/// `Clone`, because the first one is returned by every later call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    #[error("rank {rank} was lost after {waited:.1?}: {reason}")]
    PeerLost {
        rank: usize,
        waited: Duration,
        reason: String,
    },
    /// Another rank gave up and said why; `rank` is the one it blames.
    #[error("rank {by} reports: {reason}")]
    Reported { rank: usize, by: usize, reason: String },
    #[error("nothing moved for {waited:.1?}: {}", waiting_for(.ranks, .sending))]
    Timeout {
        ranks: Vec<usize>,
        sending: bool,
        waited: Duration,
    },
    #[error("rank {rank} sent no message{} for {waited:.1?}", if *.silent { " and no heartbeat" } else { "" })]
    NoMessage {
        rank: usize,
        silent: bool,
        waited: Duration,
    },
    #[error("{reason}")]
    Rejected { rank: usize, reason: String },
    #[error("rank {rank} misbehaved: {source}")]
    PeerMisbehaved { rank: usize, source: WireError },
    #[error("message to rank {rank} has {len} bytes, the limit is {limit}")]
    MessageTooLong { rank: usize, len: usize, limit: usize },
    #[error("{what} (rank {rank})")]
    ApiMisuse { what: &'static str, rank: usize },
    #[error("rank {rank} closed its own transport")]
    Closed { rank: usize },
    #[error("waiting on the sockets failed: {reason}")]
    System { reason: String },
}

impl TransportError {
    /// The rank to look at first, when there is one.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::PeerLost { rank, .. }
            | Self::Reported { rank, .. }
            | Self::NoMessage { rank, .. }
            | Self::Rejected { rank, .. }
            | Self::PeerMisbehaved { rank, .. }
            | Self::MessageTooLong { rank, .. }
            | Self::ApiMisuse { rank, .. }
            | Self::Closed { rank } => Some(*rank),
            Self::Timeout { ranks, .. } => ranks.first().copied(),
            Self::System { .. } => None,
        }
    }
}

fn waiting_for(ranks: &[usize], sending: &bool) -> String {
    let names: Vec<String> = ranks.iter().map(usize::to_string).collect();
    let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
    let verb = match (sending, ranks.len()) {
        (false, _) => "sent nothing",
        (true, 1) => "does not read what it is sent",
        (true, _) => "do not read what they are sent",
    };
    format!("{noun} {} {verb}", names.join(", "))
}
