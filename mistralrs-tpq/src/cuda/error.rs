//! What can go wrong on a GPU, and whose fault it is.

use std::time::Duration;

use crate::exchange::ExchangeError;
use crate::transport::TransportError;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    #[error("this machine has no {library}: {hint}")]
    Absent { library: &'static str, hint: &'static str },
    #[error("the CUDA driver refused to {what}: {reason}")]
    Driver { what: &'static str, reason: String },
    #[error("NCCL refused to {what}: {reason}")]
    Nccl { what: &'static str, reason: String },
    #[error("rank{} {} did not come to an exchange within {waited:.1?}", plural(.ranks), list(.ranks))]
    Absentees { ranks: Vec<usize>, waited: Duration },
    /// Work on the device that depends on all ranks, so which one is missing cannot be told.
    #[error("the GPU did not finish an exchange within {waited:.1?}: a rank is missing, or it does other work")]
    Stalled { waited: Duration },
    #[error("rank{} {} sent the payload of another exchange", plural(.ranks), list(.ranks))]
    Mismatched { ranks: Vec<usize> },
    #[error("rank{} {} sent a payload that no encoder sends", plural(.ranks), list(.ranks))]
    Malformed { ranks: Vec<usize> },
    #[error("NaN or infinity in the partial sums of rank{} {}", plural(.ranks), list(.ranks))]
    NonFinite { ranks: Vec<usize> },
    #[error("`exchange.gpu_link: {link}` cannot be used: rank {rank} says: {reason}")]
    LinkRefused {
        link: &'static str,
        rank: usize,
        reason: String,
    },
    #[error("rank {rank} tells its GPU in another form: is it the same version?")]
    Facts { rank: usize },
    /// Its host side would not be in the graph.
    #[error("an exchange {which} cannot be captured into a CUDA graph: run the step without one")]
    Captured { which: &'static str },
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("{what}")]
    ApiMisuse { what: String },
}

impl CudaError {
    /// The rank to look at first, when there is one.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Absentees { ranks, .. }
            | Self::Mismatched { ranks }
            | Self::Malformed { ranks }
            | Self::NonFinite { ranks } => ranks.first().copied(),
            Self::LinkRefused { rank, .. } | Self::Facts { rank } => Some(*rank),
            Self::Transport(source) => source.rank(),
            Self::Exchange(source) => source.rank(),
            _ => None,
        }
    }

    /// Whether the group works on after it: the request fails, and nobody lost step.
    pub fn leaves_the_group_usable(&self) -> bool {
        matches!(
            self,
            Self::NonFinite { .. }
                | Self::ApiMisuse { .. }
                | Self::Captured { .. }
                | Self::Exchange(ExchangeError::NonFinite { .. })
        )
    }
}

/// The ranks in a mask with bit r for rank r.
#[cfg(any(test, feature = "cuda"))]
pub(crate) fn ranks_in(mask: u64) -> Vec<usize> {
    (0..64).filter(|rank| mask >> rank & 1 != 0).collect()
}

fn plural(ranks: &[usize]) -> &'static str {
    if ranks.len() == 1 {
        ""
    } else {
        "s"
    }
}

fn list(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_ranks_of_a_mask() {
        let error = CudaError::Malformed {
            ranks: ranks_in(0b1010),
        };
        assert_eq!(error.to_string(), "ranks 1, 3 sent a payload that no encoder sends");
        assert_eq!(error.rank(), Some(1));
        assert!(!error.leaves_the_group_usable());
        let captured = CudaError::Captured { which: "over TCP" };
        assert!(captured.leaves_the_group_usable());
    }
}
