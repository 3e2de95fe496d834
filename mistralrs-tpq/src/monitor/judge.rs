//! When a group counts as drifted, and when as recovered.

use super::window::Evidence;
use crate::config::DriftPlan;

/// Recovery takes this many times the tokens that a report does: a text that comes and goes should not switch back and forth.
const CALM: u64 = 4;

/// Recovered is only what is closer to the expected than this share of the way to the threshold.
const MARGIN: f64 = 0.75;

/// The evidence of one layer group so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judge {
    hot: u64,
    cool: u64,
    drifted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Drifted,
    Recovered,
}

impl Judge {
    /// Takes a window of `tokens` tokens.
    pub fn see(&mut self, plan: &DriftPlan, tokens: u64, evidence: &Evidence) -> Option<Change> {
        let over = |threshold_of: &dyn Fn(f64) -> f64| {
            evidence.clip_ratio > threshold_of(plan.clip_ratio)
                || evidence
                    .noise_ratio
                    .is_some_and(|ratio| ratio > threshold_of(plan.noise_ratio))
        };
        if over(&|ratio| ratio) {
            (self.hot, self.cool) = (self.hot + tokens, 0);
        } else {
            self.hot = 0;
            if !over(&|ratio| 1.0 + MARGIN * (ratio - 1.0)) {
                self.cool += tokens;
            }
        }
        if !self.drifted && self.hot >= plan.report_after_tokens {
            self.drifted = true;
            return Some(Change::Drifted);
        }
        if self.drifted && self.cool >= CALM * plan.report_after_tokens {
            self.drifted = false;
            return Some(Change::Recovered);
        }
        None
    }

    pub fn drifted(&self) -> bool {
        self.drifted
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Plan;

    fn plan() -> DriftPlan {
        let text =
            "version: 1\ncodec: {kind: none}\ndrift: {report_after_tokens: 128, clip_ratio: 3, noise_ratio: 2}\n";
        Plan::parse(text, Path::new("tpq.yaml")).unwrap().drift
    }

    fn clips(clip_ratio: f64) -> Evidence {
        Evidence {
            clip_ratio,
            ..Evidence::default()
        }
    }

    #[test]
    fn a_burst_is_not_drift_and_drift_is_reported_once() {
        let (plan, mut judge) = (plan(), Judge::default());
        for _ in 0..20 {
            assert_eq!(judge.see(&plan, 64, &clips(9.0)), None);
            assert_eq!(judge.see(&plan, 64, &clips(1.0)), None);
        }
        assert_eq!(judge.see(&plan, 64, &clips(9.0)), None);
        assert_eq!(judge.see(&plan, 64, &clips(9.0)), Some(Change::Drifted));
        assert!((0..50).all(|_| judge.see(&plan, 64, &clips(9.0)).is_none()));
        // One long prompt is as much evidence as many tokens.
        assert_eq!(Judge::default().see(&plan, 500, &clips(9.0)), Some(Change::Drifted));
    }

    #[test]
    fn noise_counts_as_clipped_values_do_where_there_are_enough_probes() {
        let (plan, mut judge) = (plan(), Judge::default());
        let noisy = |noise_ratio| Evidence {
            noise_ratio,
            ..Evidence::default()
        };
        assert_eq!(judge.see(&plan, 1000, &noisy(None)), None);
        assert_eq!(judge.see(&plan, 1000, &noisy(Some(1.9))), None);
        assert_eq!(judge.see(&plan, 128, &noisy(Some(2.1))), Some(Change::Drifted));
    }

    #[test]
    fn recovery_takes_four_times_as_long_and_values_just_below_the_threshold_do_not_count() {
        let (plan, mut judge) = (plan(), Judge::default());
        judge.see(&plan, 128, &clips(9.0));
        assert!((0..100).all(|_| judge.see(&plan, 64, &clips(2.9)).is_none()));
        assert!((0..7).all(|_| judge.see(&plan, 64, &clips(1.0)).is_none()));
        assert_eq!(judge.see(&plan, 64, &clips(1.0)), Some(Change::Recovered));
        assert!(!judge.drifted());
    }
}
