//! What rank 0 knows of the layer groups, and shows in `/metrics`.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::judge::Judge;
use super::window::{Evidence, Window};

/// Where a group is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Phase {
    /// As calibrated.
    #[default]
    Calm,
    Drifted,
    /// Drifted, and sent without calibrated ranges.
    Fallback,
    /// Drifted, and learning.
    Learning,
    /// Learned; these layers are not staged yet.
    Staging(VecDeque<String>),
}

/// What is known of a group.
#[derive(Debug, Clone, Default)]
pub struct GroupStatus {
    pub phase: Phase,
    /// Of the last window with this group in it.
    pub evidence: Option<Evidence>,
    /// How often it was found to have drifted.
    pub drifts: u64,
    /// How often new ranges were taken up.
    pub switches: u64,
    pub(super) judge: Judge,
    /// Tokens since the last switch, or since learning began.
    pub(super) tokens: u64,
    /// So many of them before it learns again.
    pub(super) pause: u64,
    pub(super) staged: usize,
    pub(super) warned: Option<Instant>,
    /// Windows with too few probes to say something of noise, and their tokens.
    pub(super) gathered: (Window, u64),
    pub(super) noise_ratio: Option<f64>,
}

/// For `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// As in the plan.
    pub groups: Vec<GroupStatus>,
    /// By layer, all ranks together: the last window.
    pub layers: BTreeMap<String, Evidence>,
    /// How often the ranks' sums were compared, layer by layer, and were the same.
    pub compared: u64,
    /// What watching took on rank 0, and what learning took.
    pub watched: Duration,
    pub learned: Duration,
}

impl Phase {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Drifted => "drifted",
            Self::Fallback => "fallback",
            Self::Learning => "learning",
            Self::Staging(_) => "staging",
        }
    }
}

impl GroupStatus {
    /// Makes evidence of a window; the tokens that it is of, or `None` where that takes more windows.
    pub(super) fn weigh(&mut self, window: Window, tokens: u64) -> Option<u64> {
        let (gathered, gathered_tokens) = &mut self.gathered;
        gathered.add(&window);
        *gathered_tokens += tokens;
        let (enough, of_all, all_tokens) = (gathered.is_enough(), gathered.evidence(), *gathered_tokens);
        if enough {
            self.noise_ratio = of_all.noise_ratio;
            self.gathered = Default::default();
        }
        // In fallback probes are all there is.
        let (evidence, tokens) = match &self.phase {
            Phase::Fallback if enough => (of_all, all_tokens),
            Phase::Fallback => return None,
            _ if window.values == 0 => return None,
            _ => (window.evidence(), tokens),
        };
        self.evidence = Some(Evidence {
            noise_ratio: self.noise_ratio,
            ..evidence
        });
        Some(tokens)
    }
}
