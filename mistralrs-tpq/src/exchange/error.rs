//! What can go wrong in an all-reduce, and who has to act.

use std::fmt;

use super::Site;
use crate::codec::{CodecError, Dtype};
use crate::transport::TransportError;
use crate::wire::WireError;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// Two ranks are not at the same place: they run different inputs or lost step.
    #[error(
        "rank {rank} sent {field} {} at {site}, expected {}",
        .field.value(*.got),
        .field.value(*.expected)
    )]
    Mismatch {
        rank: usize,
        site: Site,
        field: HeaderField,
        expected: u64,
        got: u64,
    },
    #[error("rank {rank} misbehaved at {site}: {source}")]
    PeerMisbehaved { rank: usize, site: Site, source: WireError },
    #[error("payload of rank {rank} at {site}: {source}")]
    Payload {
        rank: usize,
        site: Site,
        source: CodecError,
    },
    #[error("NaN or infinity at {site} in the partial sum of rank {}", list(.ranks))]
    NonFinite { site: Site, ranks: Vec<usize> },
    #[error("at {site}: {source}")]
    Transport { site: Site, source: TransportError },
    #[error("{what}")]
    ApiMisuse { what: String },
}

impl ExchangeError {
    /// The rank to look at first, when there is one.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Mismatch { rank, .. } | Self::PeerMisbehaved { rank, .. } | Self::Payload { rank, .. } => Some(*rank),
            Self::NonFinite { ranks, .. } => ranks.first().copied(),
            Self::Transport { source, .. } => source.rank(),
            Self::ApiMisuse { .. } => None,
        }
    }
}

/// A field of the frame header that two ranks disagree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderField {
    Rank,
    Site,
    Sequence,
    Kind,
    Codec,
    Dtype,
    Tokens,
    PayloadLen,
    Part,
}

impl HeaderField {
    fn value(self, value: u64) -> String {
        let dtype = u8::try_from(value)
            .ok()
            .and_then(Dtype::from_tag)
            .filter(|_| self == Self::Dtype);
        dtype.map_or_else(|| value.to_string(), |dtype| dtype.name().to_owned())
    }
}

impl fmt::Display for HeaderField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rank => "rank",
            Self::Site => "site",
            Self::Sequence => "sequence number",
            Self::Kind => "frame kind",
            Self::Codec => "codec tag",
            Self::Dtype => "dtype",
            Self::Tokens => "tokens",
            Self::PayloadLen => "payload length",
            Self::Part => "part",
        })
    }
}

fn list(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
