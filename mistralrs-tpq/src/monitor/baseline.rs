//! What calibration leads to expect, and how far one token's partial sum is from it.

use std::sync::Arc;

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::calibrate::{layer_codec, Curve};
use crate::codec::{Codec, Dtype, Shape, Values};
use crate::config::CodecPlan;
use crate::manifest::Layer;

/// Values that the baseline of `rd` is drawn from: enough for two digits, and 4 ms a layer.
const DRAWN_VALUES: usize = 1 << 16;

/// Squares count at most this many times their calibrated mean: one wild feature is not a shift of the others.
const LARGEST_SQUARE: f32 = 64.0;

/// A layer's codec with what it did to the partial sums that it was calibrated on.
#[derive(Debug)]
pub(super) struct Calibrated {
    pub(super) codec: Arc<dyn Codec>,
    /// Share of values that are clipped.
    pub(super) clip_rate: f64,
    /// Quantization noise of a row over its energy. `None` for `paper`: a few tokens far beyond its ranges make most of its noise, so
    /// that a few probes say nothing of the mean (measured: half of the probes below 4, the mean at 7 times its rounding error).
    noise: Option<f64>,
    /// By feature: one over the mean square in units of the token's gain. Empty where the manifest has no curves.
    inv_mean_squares: Vec<f32>,
}

/// One token's partial sum against what was expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Probed {
    /// 0 where it was not asked for and costs extra.
    pub(super) clipped: u64,
    /// Quantization noise over the expected.
    pub(super) noise: Option<f64>,
    /// Mean over features of the square over the calibrated mean square, both in units of their token's gain; 1 expected.
    pub(super) shift: Option<f64>,
}

/// Buffers of a probe; they grow to the widest layer once.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    row: Vec<f32>,
    payload: Vec<u8>,
    seen: Vec<f32>,
}

impl Calibrated {
    /// Of `rank`'s partial sums. `tokens` are those of a calibration sequence.
    ///
    /// # Errors
    /// A layer without what the codec needs.
    pub(super) fn new(plan: &CodecPlan, layer: &Layer, rank: usize, tokens: u64) -> Result<Self> {
        let codec = layer_codec(plan, layer)?;
        let features = layer.features();
        let curves = layer.curves().chunks_exact(features).nth(rank).unwrap_or_default();
        let mut calibrated = Self {
            codec,
            clip_rate: 0.0,
            noise: None,
            inv_mean_squares: curves.iter().map(|curve| 1.0 / curve.error[0].max(1e-12)).collect(),
        };
        match plan {
            CodecPlan::Rd { .. } => {
                let shape = Shape::new(layer.shape()).context("the layer has no shape of magnitudes")?;
                calibrated.draw_baseline(&shape, curves, rank);
            }
            // A range is the largest of a sequence: of as many other values one is expected to be larger.
            _ => calibrated.clip_rate = 1.0 / tokens.max(1) as f64,
        }
        Ok(calibrated)
    }

    /// Runs rows through the codec that are distributed as calibration found: the same on every host.
    fn draw_baseline(&mut self, shape: &Shape, curves: &[Curve], rank: usize) {
        let quantiles = quantiles(shape);
        let features = curves.len();
        let rows = (DRAWN_VALUES / features.max(1)).clamp(4, 256);
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut scratch = Scratch::default();
        let (mut clipped, mut noise, mut used) = (0, 0.0, 0);
        for _ in 0..rows {
            scratch.row.clear();
            scratch.row.extend(curves.iter().map(|curve| {
                let bits: u32 = random.random();
                let magnitude = quantiles[bits as usize % quantiles.len()] * curve.error[0].sqrt();
                if bits >> 31 == 0 {
                    magnitude
                } else {
                    -magnitude
                }
            }));
            let energy = energy(&scratch.row);
            if let (true, Some((clips, error))) = (energy > 0.0, self.round_trip(rank, &mut scratch)) {
                (clipped, noise, used) = (clipped + clips, noise + error / energy, used + 1);
            }
        }
        let used = f64::from(used.max(1));
        self.clip_rate = clipped as f64 / (used * features.max(1) as f64);
        self.noise = Some(noise / used);
    }

    /// Token `at` of `values` against what was expected. `None` for a row that is all zero or not finite.
    pub(super) fn probe(
        &self,
        rank: usize,
        values: Values<'_>,
        at: usize,
        count_clipped: bool,
        scratch: &mut Scratch,
    ) -> Option<Probed> {
        let features = self.codec.features();
        scratch.row.resize(features, 0.0);
        values.to_f32(at * features, &mut scratch.row);
        let energy = energy(&scratch.row);
        if !(energy.is_finite() && energy > 0.0) {
            return None;
        }
        let inv_gain_square = (features as f64 / energy) as f32;
        let of_expected = |x: f32, inv_square: f32| {
            let square = x * x * inv_gain_square * inv_square;
            if square < LARGEST_SQUARE {
                square
            } else {
                LARGEST_SQUARE
            }
        };
        let known = !self.inv_mean_squares.is_empty();
        let shift = known.then(|| sum(&scratch.row, &self.inv_mean_squares, of_expected) / features as f64);
        let (clipped, error) = match self.noise.is_some() || count_clipped {
            true => self.round_trip(rank, scratch)?,
            false => (0, 0.0),
        };
        let noise = self
            .noise
            .map(|expected| error / energy / expected.max(f64::MIN_POSITIVE));
        Some(Probed { clipped, noise, shift })
    }

    /// Clipped values and error of `scratch.row`.
    fn round_trip(&self, rank: usize, scratch: &mut Scratch) -> Option<(u64, f64)> {
        let Scratch { row, payload, seen } = scratch;
        payload.resize(self.codec.payload_len(1, Dtype::F32), 0);
        let stats = self.codec.encode(rank, Values::F32(row), payload);
        seen.clear();
        seen.resize(row.len(), 0.0);
        self.codec.decode_accumulate(rank, payload, Dtype::F32, seen).ok()?;
        Some((stats.clipped, sum(row, seen, |x, seen| (x - seen) * (x - seen))))
    }
}

fn energy(row: &[f32]) -> f64 {
    sum(row, row, |x, same| x * same)
}

/// In eight lanes, so that the compiler vectorises it: as one chain of f64 additions a probe cost 5% of `paper`'s codec time.
fn sum(a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> f32) -> f64 {
    let mut lanes = [0.0f32; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a.remainder().iter().zip(b.remainder());
    let rest: f32 = rest.map(|(a, b)| of(*a, *b)).sum();
    for (a, b) in a.zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += of(*a, *b);
        }
    }
    lanes.into_iter().map(f64::from).sum::<f64>() + f64::from(rest)
}

/// The magnitude below which each 1/1024 of the values lies, by halving.
fn quantiles(shape: &Shape) -> Vec<f32> {
    const COUNT: usize = 1024;
    let quantile = |at: usize| {
        let wanted = (at as f64 + 0.5) / COUNT as f64;
        let (mut low, mut high) = (0.0, 64.0);
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            if shape.below(middle)[0] < wanted {
                low = middle;
            } else {
                high = middle;
            }
        }
        high as f32
    };
    (0..COUNT).map(quantile).collect()
}
