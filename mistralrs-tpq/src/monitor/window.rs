//! What was counted between two looks, and what it says.

use serde::{Deserialize, Serialize};

/// Probed tokens, all layers and ranks of a group together, below which their noise says nothing. Twelve of the demo model scatter by a
/// tenth, so four by a fifth: the default threshold is more than twice that away, and has to be passed in windows in a row.
const PROBES_NEEDED: u64 = 4;

/// Expected clipped values are taken for at least this many: a few more than none are nothing.
const CLIPS_NEEDED: f64 = 8.0;

/// Counters of one rank at one layer. They add up over layers and ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    pub values: u64,
    pub clipped: u64,
    pub expected_clipped: f64,
    /// Tokens that were probed.
    pub probes: u64,
    /// Probes with a noise.
    pub noises: u64,
    /// Sum over these of quantization noise over the expected.
    pub noise: f64,
    /// Probes with a shift.
    pub shifts: u64,
    /// Sum over these of the mean squares over the calibrated ones.
    pub shift: f64,
}

/// How a window compares with what calibration leads to expect.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Evidence {
    /// Clipped values over all.
    pub clip_rate: f64,
    /// Clipped values over the expected.
    pub clip_ratio: f64,
    /// Quantization noise over the expected; `None` for too few probes, and for `paper`.
    pub noise_ratio: Option<f64>,
    /// Octaves by which features that were calibrated as equal differ from it; 0 for none. `None` without curves or probes.
    pub range_shift: Option<f64>,
}

impl Window {
    pub fn add(&mut self, other: &Self) {
        self.values += other.values;
        self.clipped += other.clipped;
        self.expected_clipped += other.expected_clipped;
        self.probes += other.probes;
        self.noises += other.noises;
        self.noise += other.noise;
        self.shifts += other.shifts;
        self.shift += other.shift;
    }

    pub fn evidence(&self) -> Evidence {
        let mean = |sum: f64, count: u64| sum / count as f64;
        Evidence {
            clip_rate: self.clipped as f64 / self.values.max(1) as f64,
            clip_ratio: self.clipped as f64 / self.expected_clipped.max(CLIPS_NEEDED),
            noise_ratio: (self.noises >= PROBES_NEEDED).then(|| mean(self.noise, self.noises)),
            range_shift: (self.shifts > 0).then(|| 0.5 * mean(self.shift, self.shifts).log2()),
        }
    }

    /// Whether there are enough probes to judge by them alone.
    pub(super) fn is_enough(&self) -> bool {
        self.probes >= PROBES_NEEDED
    }

    /// Whether another rank can have counted this.
    pub(super) fn is_plausible(&self) -> bool {
        let finite = [self.expected_clipped, self.noise, self.shift];
        finite.into_iter().all(|sum| sum.is_finite() && sum >= 0.0)
    }
}
