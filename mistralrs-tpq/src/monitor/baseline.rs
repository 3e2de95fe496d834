//! What calibration leads to expect, and how far one token's partial sum is from it.

use std::sync::Arc;

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::calibrate::layer_codec;
use crate::codec::{Codec, Dtype, Shape, Values};
use crate::config::CodecPlan;
use crate::manifest::Layer;

/// Values that the baseline of `rd` is drawn from: enough for two digits, and 4 ms a layer.
const DRAWN_VALUES: usize = 1 << 16;

/// Squares count at most this many times their calibrated mean: one wild feature is not a shift of the others.
const LARGEST_SQUARE: f64 = 64.0;

/// A layer's codec with what it did to the partial sums that it was calibrated on.
#[derive(Debug)]
pub(super) struct Calibrated {
    pub(super) codec: Arc<dyn Codec>,
    /// Share of values that are clipped.
    pub(super) clip_rate: f64,
    noise: Noise,
    /// By feature: mean square in units of the token's gain. Empty where the manifest has no curves.
    mean_squares: Vec<f32>,
}

/// Of one row.
#[derive(Debug, Clone, Copy)]
enum Noise {
    /// Over the row's energy: `rd` scales with the token.
    Relative(f64),
    /// Energy: the steps of `paper` are fixed.
    Absolute(f64),
}

/// One token's partial sum against what was expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Probed {
    pub(super) clipped: u64,
    /// Quantization noise over the expected.
    pub(super) noise: f64,
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
            noise: Noise::Absolute(0.0),
            mean_squares: curves.iter().map(|curve| curve.error[0]).collect(),
        };
        match plan {
            CodecPlan::Rd { .. } => {
                let shape = Shape::new(layer.shape()).context("the layer has no shape of magnitudes")?;
                calibrated.draw_baseline(&shape, rank);
            }
            _ => {
                let ranges = layer.rank_ranges(rank).unwrap_or_default();
                calibrated.noise = Noise::Absolute(paper_noise(ranges, layer.outliers()));
                // Of T values the largest is beyond that of T others with probability 1/2, and is one of T.
                calibrated.clip_rate = 0.5 / tokens.max(1) as f64;
            }
        }
        Ok(calibrated)
    }

    /// Runs rows through the codec that are distributed as calibration found: the same on every host.
    fn draw_baseline(&mut self, shape: &Shape, rank: usize) {
        let quantiles = quantiles(shape);
        let features = self.mean_squares.len();
        let rows = (DRAWN_VALUES / features.max(1)).clamp(4, 256);
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut scratch = Scratch::default();
        let (mut clipped, mut noise, mut used) = (0, 0.0, 0);
        for _ in 0..rows {
            scratch.row.clear();
            scratch.row.extend(self.mean_squares.iter().map(|square| {
                let bits: u32 = random.random();
                let magnitude = quantiles[bits as usize % quantiles.len()] * square.sqrt();
                if bits >> 31 == 0 { magnitude } else { -magnitude }
            }));
            if let Some((clips, energy, error)) = self.round_trip(rank, &mut scratch) {
                (clipped, noise, used) = (clipped + clips, noise + error / energy, used + 1);
            }
        }
        let used = f64::from(used.max(1));
        self.clip_rate = clipped as f64 / (used * features.max(1) as f64);
        self.noise = Noise::Relative(noise / used);
    }

    /// Token `at` of `values` through the codec. `None` for a row that is all zero or not finite.
    pub(super) fn probe(&self, rank: usize, values: Values<'_>, at: usize, scratch: &mut Scratch) -> Option<Probed> {
        let features = self.codec.features();
        scratch.row.resize(features, 0.0);
        values.to_f32(at * features, &mut scratch.row);
        let (clipped, energy, error) = self.round_trip(rank, scratch)?;
        let noise = match self.noise {
            Noise::Relative(expected) => error / energy / expected.max(f64::MIN_POSITIVE),
            Noise::Absolute(expected) => error / expected.max(f64::MIN_POSITIVE),
        };
        let inv_gain_square = features as f64 / energy;
        let of_expected = |(x, square): (&f32, &f32)| {
            let square = f64::from(*square).max(1e-12);
            (f64::from(*x) * f64::from(*x) * inv_gain_square / square).min(LARGEST_SQUARE)
        };
        let squares = scratch.row.iter().zip(&self.mean_squares).map(of_expected);
        let shift = (!self.mean_squares.is_empty()).then(|| squares.sum::<f64>() / features as f64);
        Some(Probed { clipped, noise, shift })
    }

    /// Clipped values, energy and error of `scratch.row`.
    fn round_trip(&self, rank: usize, scratch: &mut Scratch) -> Option<(u64, f64, f64)> {
        let Scratch { row, payload, seen } = scratch;
        payload.resize(self.codec.payload_len(1, Dtype::F32), 0);
        let stats = self.codec.encode(rank, Values::F32(row), payload);
        seen.clear();
        seen.resize(row.len(), 0.0);
        self.codec.decode_accumulate(rank, payload, Dtype::F32, seen).ok()?;
        let square = |x: f32| f64::from(x) * f64::from(x);
        let energy: f64 = row.iter().map(|x| square(*x)).sum();
        let error = row.iter().zip(seen.iter()).map(|(x, seen)| square(x - seen)).sum();
        (energy.is_finite() && energy > 0.0).then_some((stats.clipped, energy, error))
    }
}

/// A step is a seventh of the range, and an even distribution inside it has a variance of a twelfth of its square.
fn paper_noise(ranges: &[f32], outliers: &[u32]) -> f64 {
    let mut outliers = outliers.iter().peekable();
    let coded = (0u32..).zip(ranges).filter(|(feature, _)| outliers.next_if_eq(&feature).is_none());
    coded.map(|(_, range)| (f64::from(*range) / 7.0).powi(2) / 12.0).sum()
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
