//! What rank 0 tells the other ranks between two steps, and what they answer.

use serde::{Deserialize, Serialize};

use super::learn::{LearnedLayer, Lesson};
use super::window::Window;
use crate::calibrate::RangeObserver;

/// Sent on the step channel, like [`Command`](crate::command::Command).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum DriftCommand {
    /// Answer with what was counted since the last report.
    Report,
    /// Send this group without calibrated ranges, or with them again.
    Fallback { group: usize, on: bool },
    /// Learn ranges of this group.
    Learn { group: usize, lesson: Lesson },
    /// Forget what this group was learning.
    Abandon { group: usize },
    /// Answer with what was learned of this layer.
    Observer { layer: String },
    /// Make the codec of these ranges, and go on with the old one.
    Stage(Box<LearnedLayer>),
    /// From the next exchange on use what was staged for this group. `digest`: of the manifest with it.
    Adopt { group: usize, digest: String },
}

impl DriftCommand {
    /// Whether the other ranks answer it.
    pub fn is_question(&self) -> bool {
        matches!(self, Self::Report | Self::Observer { .. })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum DriftReply {
    /// In the order of names.
    Report(Vec<LayerReport>),
    /// `None` for a layer that was learning nothing.
    Observer(Option<Box<RangeObserver>>),
}

/// One rank at one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerReport {
    pub layer: String,
    pub window: Window,
    /// Digest over some values of every sum since the group was formed: the same on all ranks.
    pub sums: u64,
}

/// A rank that cannot go on with the others. Each ends the group: ranges that differ would make sums that differ.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriftError {
    #[error("rank 0 named drift group {got}, and there are {groups}")]
    Group { got: usize, groups: usize },
    #[error("rank 0 named layer {layer}, which this rank has not exchanged")]
    Layer { layer: String },
    #[error("after the switch rank 0's manifest is {expected}, this rank's {got}")]
    Digest { expected: String, got: String },
    #[error("rank {rank} and rank 0 ended with different sums at layer {layer}: this is a defect, please report it")]
    Sums { rank: usize, layer: String },
    #[error("drift of layer {layer} is to be answered with `{policy}`, but its partial sums are on a GPU, where ranges stay as they are: set this policy to off or warn")]
    OnGpu { layer: String, policy: &'static str },
    #[error("rank {rank} answered something else than was asked: {what}")]
    Answer { rank: usize, what: String },
}

impl DriftError {
    /// The rank at fault, as far as rank 0 sees.
    pub fn culprit(&self) -> Option<usize> {
        match self {
            Self::Sums { rank, .. } | Self::Answer { rank, .. } => Some(*rank),
            _ => None,
        }
    }
}
