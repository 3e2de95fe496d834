//! The error of `paper`'s sums, value by value, against what independent uniform errors predict.
//!
//! The prediction assumes of every rank and feature that (1) no value is outside its range, (2) the step is fine against the values, so
//! that the place within a step is even, and (3) errors of ranks are independent. (1) and (2) are looked at value by value and feature by feature before any
//! error is; (3) shows as the mean correlation of two ranks' errors.

use serde::Serialize;

use super::codecs::Calibration;
use super::prediction::Prediction;
use super::SimulateError;
use crate::codec::{Codec, Dtype, Values};

/// Share of a feature's values that may round to zero where its step still counts as fine: what a normal distribution has whose deviation is half a
/// step, and whose rounding errors still have the variance step^2 / 12 within 2% (Widrow 1996, appendix G). Of spiky values a deviation would say nothing.
const MOST_ZEROS: f64 = 0.683;
/// Standardized errors of one layer that are kept for quantiles and distances.
const KEPT: usize = 1 << 15;
/// Points of the QQ plot.
const QUANTILES: usize = 49;

/// Sums of many layers' errors.
#[derive(Debug, Clone, Default)]
pub struct Errors {
    values: u64,
    clipped: u64,
    coarse: u64,
    error_energy: f64,
    predicted_energy: f64,
    /// Sum over ranks of their own squared errors, of values that count.
    own_energy: f64,
    /// Of values that count: how many, their squared error and what was predicted for it.
    held: u64,
    held_energy: f64,
    held_predicted: f64,
    /// Sums of powers of the standardized error.
    powers: [f64; 4],
    sample: Vec<f64>,
    widths: Vec<Vec<f64>>,
}

/// Measured against predicted, of one layer or of all.
#[derive(Debug, Clone, Serialize)]
pub struct Distribution {
    /// Empty: all layers.
    pub layer: String,
    pub ranks: usize,
    pub values: u64,
    /// Share of values that some rank clipped.
    pub clipped: f64,
    /// Share of values of features whose step is coarse on some rank, or that are outliers in BF16.
    pub coarse: f64,
    /// Mean squared error over that of independent uniform errors: all values but outliers.
    pub energy_ratio: f64,
    /// Share of values for which the assumptions hold; the figures below are of these.
    pub holds: f64,
    pub energy_ratio_held: f64,
    pub mean: f64,
    pub variance: f64,
    pub skewness: f64,
    pub excess_kurtosis: f64,
    pub predicted_excess_kurtosis: f64,
    /// Kolmogorov-Smirnov.
    pub distance: f64,
    /// Mean correlation of the errors of two ranks.
    pub correlation: f64,
    /// (predicted, measured) quantiles of the standardized error.
    pub quantiles: Vec<(f64, f64)>,
}

impl Errors {
    /// Adds one layer: `parts` is each rank's `[tokens, features]`, `paper` the codec of `calibration`.
    ///
    /// # Errors
    /// The codec's, of its own payload.
    pub fn add(
        &mut self,
        paper: &dyn Codec,
        calibration: &Calibration,
        parts: &[Vec<f32>],
    ) -> Result<(), SimulateError> {
        let features = calibration.features;
        let steps: Vec<&[f32]> = calibration.ranges.chunks_exact(features).collect();
        // Levels from zero to the range.
        let step = |rank: usize, feature: usize| f64::from(steps[rank][feature]) / 7.0;
        let columns: Vec<Column> = (0..features)
            .map(|feature| Column::new(parts, feature, features, |rank| step(rank, feature), calibration))
            .collect();
        let mut sum = vec![0.0f64; parts[0].len()];
        let mut own = vec![0.0f64; parts[0].len()];
        let mut clipped = vec![false; parts[0].len()];
        for (rank, part) in parts.iter().enumerate() {
            let decoded = round_trip(paper, rank, part)?;
            for (at, (x, y)) in part.iter().zip(&decoded).enumerate() {
                let error = f64::from(*y) - f64::from(*x);
                sum[at] += error;
                own[at] += error * error;
                // Half a step beyond the outermost of 7 levels.
                clipped[at] |= f64::from(x.abs()) > 7.5 * step(rank, at % features);
            }
        }
        let every = sum.len().div_ceil(KEPT) | 1;
        for (at, error) in sum.into_iter().enumerate() {
            let column = &columns[at % features];
            if column.outlier {
                continue;
            }
            self.values += 1;
            self.clipped += u64::from(clipped[at]);
            self.coarse += u64::from(column.coarse);
            self.error_energy += error * error;
            self.predicted_energy += column.variance;
            if clipped[at] || column.coarse || column.variance == 0.0 {
                continue;
            }
            self.hold(error, own[at], column.variance, at.is_multiple_of(every));
        }
        let live = columns.into_iter().filter(|column| !column.outlier && !column.coarse);
        self.widths.extend(live.map(|column| column.widths));
        Ok(())
    }

    fn hold(&mut self, error: f64, own: f64, variance: f64, keep: bool) {
        let z = error / variance.sqrt();
        self.held += 1;
        self.held_energy += error * error;
        self.held_predicted += variance;
        self.own_energy += own;
        let mut power = 1.0;
        for sum in &mut self.powers {
            power *= z;
            *sum += power;
        }
        if keep {
            self.sample.push(z);
        }
    }

    /// Adds what `other` has seen.
    pub fn merge(&mut self, other: Self) {
        self.values += other.values;
        self.clipped += other.clipped;
        self.coarse += other.coarse;
        self.error_energy += other.error_energy;
        self.predicted_energy += other.predicted_energy;
        self.own_energy += other.own_energy;
        self.held += other.held;
        self.held_energy += other.held_energy;
        self.held_predicted += other.held_predicted;
        self.powers
            .iter_mut()
            .zip(other.powers)
            .for_each(|(sum, more)| *sum += more);
        self.sample.extend(other.sample);
        self.widths.extend(other.widths);
    }

    pub fn distribution(&self, layer: &str, ranks: usize) -> Distribution {
        let prediction = Prediction::of_uniform(&self.widths);
        let mut sample = self.sample.clone();
        sample.sort_by(f64::total_cmp);
        let n = self.held.max(1) as f64;
        let [m1, m2, m3, m4] = self.powers.map(|sum| sum / n);
        let variance = m2 - m1 * m1;
        let third = m3 - 3.0 * m1 * m2 + 2.0 * m1.powi(3);
        let fourth = m4 - 4.0 * m1 * m3 + 6.0 * m1 * m1 * m2 - 3.0 * m1.powi(4);
        let share = |count: u64| count as f64 / self.values.max(1) as f64;
        Distribution {
            layer: layer.to_owned(),
            ranks,
            values: self.values,
            clipped: share(self.clipped),
            coarse: share(self.coarse),
            energy_ratio: ratio(self.error_energy, self.predicted_energy),
            holds: share(self.held),
            energy_ratio_held: ratio(self.held_energy, self.held_predicted),
            mean: m1,
            variance,
            skewness: ratio(third, variance.powf(1.5)),
            excess_kurtosis: ratio(fourth, variance * variance) - 3.0,
            predicted_excess_kurtosis: prediction.excess_kurtosis,
            distance: prediction.distance(&sample),
            correlation: ratio(self.held_energy - self.own_energy, self.own_energy) / (ranks.max(2) - 1) as f64,
            quantiles: quantiles(&prediction, &sample),
        }
    }
}

/// One feature over all ranks.
struct Column {
    widths: Vec<f64>,
    variance: f64,
    outlier: bool,
    coarse: bool,
}

impl Column {
    fn new(
        parts: &[Vec<f32>],
        feature: usize,
        features: usize,
        step: impl Fn(usize) -> f64,
        calibration: &Calibration,
    ) -> Self {
        let widths: Vec<f64> = (0..parts.len()).map(step).collect();
        let coarse = parts.iter().zip(&widths).any(|(part, width)| {
            let column = part.iter().skip(feature).step_by(features);
            let (values, zeros) = column.fold((0u32, 0u32), |(values, zeros), x| {
                (values + 1, zeros + u32::from(2.0 * f64::from(x.abs()) < *width))
            });
            f64::from(zeros) > MOST_ZEROS * f64::from(values)
        });
        let outlier = u32::try_from(feature).is_ok_and(|feature| calibration.outliers.binary_search(&feature).is_ok());
        Self {
            variance: widths.iter().map(|width| width * width / 12.0).sum(),
            widths,
            outlier,
            coarse,
        }
    }
}

pub(super) fn round_trip(codec: &dyn Codec, rank: usize, part: &[f32]) -> Result<Vec<f32>, SimulateError> {
    let mut payload = vec![0; codec.payload_len(part.len() / codec.features(), Dtype::F32)];
    codec.encode(rank, Values::F32(part), &mut payload);
    let mut decoded = vec![0.0; part.len()];
    codec.decode_accumulate(rank, &payload, Dtype::F32, &mut decoded)?;
    Ok(decoded)
}

/// Of equal shares of probability; `sample` ascends.
fn quantiles(prediction: &Prediction, sample: &[f64]) -> Vec<(f64, f64)> {
    if sample.is_empty() {
        return Vec::new();
    }
    let pair = |i: usize| {
        let p = (i as f64 + 0.5) / QUANTILES as f64;
        let at = ((p * sample.len() as f64) as usize).min(sample.len() - 1);
        (prediction.quantile(p), sample[at])
    };
    (0..QUANTILES).map(pair).collect()
}

/// Zero over zero counts as zero: nothing was expected and nothing came.
fn ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 && b == 0.0 {
        0.0
    } else {
        a / b
    }
}
