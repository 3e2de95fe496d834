//! How much error each number of bits leaves in each feature: the input of [`allocate`](super::allocate()).
//!
//! A [`GainHistogram`] counts, per feature, magnitudes over the root mean square of their token (`rd`'s gain), in bins of an
//! eighth of an octave from 2^-12 to 2^8 and one bin below. An error is an integral over bins of constant density, so a
//! curve costs levels and not observations, and does not depend on their order.

use serde::{Deserialize, Serialize};

use super::ObserveError;
use crate::codec::rd::codebook::{self, CLASSES};

const PER_OCTAVE: f64 = 8.0;
const LOWEST_LOG2: f64 = -12.0;
const BINS: usize = 1 + 20 * 8;

/// Magnitudes per feature, in units of their token's gain: `[features, BINS]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GainHistogram {
    counts: Vec<u32>,
}

/// Mean squared error, in units of the squared gain, and best step, by class of [`CLASSES`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Curve {
    pub error: [f32; CLASSES.len()],
    /// Zero where the class has none.
    pub step: [f32; CLASSES.len()],
}

impl GainHistogram {
    pub fn new(features: usize) -> Self {
        Self {
            counts: vec![0; features * BINS],
        }
    }

    /// Counts one token. A token that is all zero, or has NaN or infinity, says nothing about relative magnitudes.
    pub fn observe_row(&mut self, row: &[f32]) {
        let energy: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let gain = (energy / row.len().max(1) as f64).sqrt();
        if !gain.is_finite() || gain < f64::from(f32::MIN_POSITIVE) {
            return;
        }
        let inv_gain = (1.0 / gain) as f32;
        for (x, counts) in row.iter().zip(self.counts.chunks_exact_mut(BINS)) {
            let count = &mut counts[bin((x * inv_gain).abs())];
            *count = count.saturating_add(1);
        }
    }

    /// Adds what `other`, of as many features, counted.
    pub fn add(&mut self, other: &Self) {
        debug_assert_eq!(self.counts.len(), other.counts.len());
        for (mine, more) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*more);
        }
    }

    pub fn clear(&mut self) {
        self.counts.fill(0);
    }

    /// # Errors
    /// Counts that are not of `features` features.
    pub fn check(&self, features: usize) -> Result<(), ObserveError> {
        if self.counts.len() == features * BINS {
            return Ok(());
        }
        Err(ObserveError::State {
            what: format!(
                "a histogram of {} counts, expected {}",
                self.counts.len(),
                features * BINS
            ),
        })
    }

    /// One curve a feature.
    pub fn curves(&self) -> Vec<Curve> {
        self.counts
            .chunks_exact(BINS)
            .map(|counts| Moments::new(counts).curve())
            .collect()
    }
}

/// The bin of a magnitude: from its exponent and the top three bits of its mantissa, so bins are even within an octave and no
/// logarithm runs a value.
fn bin(magnitude: f32) -> usize {
    let eighths = i64::from(magnitude.to_bits() >> 20) - ((127 + LOWEST_LOG2 as i64) << 3);
    (eighths + 1).clamp(0, BINS as i64 - 1) as usize
}

/// The lower edge of a bin; of `BINS` the upper edge of the last.
fn edge(bin: usize) -> f64 {
    match bin.checked_sub(1) {
        None => 0.0,
        Some(eighths) => {
            let octave = (eighths as f64 / PER_OCTAVE).floor();
            (LOWEST_LOG2 + octave).exp2() * (1.0 + (eighths as f64 / PER_OCTAVE - octave))
        }
    }
}

/// Cumulative moments of a density that is constant within bins: `below[i]` over all magnitudes under `edge(i)`.
struct Moments {
    below: Vec<[f64; 3]>,
    density: Vec<f64>,
}

impl Moments {
    fn new(counts: &[u32]) -> Self {
        let total: f64 = counts.iter().map(|count| f64::from(*count)).sum();
        let density: Vec<f64> = counts
            .iter()
            .enumerate()
            .map(|(i, count)| f64::from(*count) / total.max(1.0) / (edge(i + 1) - edge(i)))
            .collect();
        let mut below = vec![[0.0; 3]];
        for (i, density) in density.iter().enumerate() {
            let inside = integral(edge(i), edge(i + 1), *density);
            let last = below[i];
            below.push(std::array::from_fn(|power| last[power] + inside[power]));
        }
        Self { below, density }
    }

    /// Integrals of 1, y and y^2 from zero to `y`.
    fn up_to(&self, y: f64) -> [f64; 3] {
        if y >= edge(BINS) {
            return self.below[BINS];
        }
        let at = bin(y as f32);
        let inside = integral(edge(at), y.max(edge(at)), self.density[at]);
        std::array::from_fn(|power| self.below[at][power] + inside[power])
    }

    fn energy(&self) -> f64 {
        self.below[BINS][2]
    }

    /// Mean squared error of the levels of `bits` with this step.
    fn error(&self, bits: u8, step: f64) -> f64 {
        let levels = codebook::magnitudes(bits);
        let mut error = 0.0;
        let mut low = [0.0; 3];
        for index in 0..levels {
            let level = f64::from(codebook::level(bits, index));
            let high = match index + 1 {
                next if next == levels => self.below[BINS],
                next => self.up_to(step * 0.5 * (level + f64::from(codebook::level(bits, next)))),
            };
            let level = level * step;
            let [m0, m1, m2]: [f64; 3] = std::array::from_fn(|power| high[power] - low[power]);
            error += (m2 - 2.0 * level * m1 + level * level * m0).max(0.0);
            low = high;
        }
        error
    }

    /// The step with the least error, by a scan in eighths of the rms and a golden-section search around its minimum.
    fn best_step(&self, bits: u8) -> (f64, f64) {
        let rms = self.energy().sqrt();
        // Even steps of 6 and 8 bits reach 4 to 12 rms at the highest level.
        let unit = if bits <= 5 {
            rms
        } else {
            rms * 8.0 / codebook::magnitudes(bits) as f64
        };
        let scan = (1..=24).map(|eighths| f64::from(eighths) / 8.0 * unit);
        let (mut best, mut least) = (unit, f64::INFINITY);
        for step in scan {
            let error = self.error(bits, step);
            if error < least {
                (best, least) = (step, error);
            }
        }
        let (mut low, mut high) = (best - unit / 8.0, best + unit / 8.0);
        const GOLDEN: f64 = 0.618_033_988_749_895;
        for _ in 0..10 {
            let (a, b) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
            if self.error(bits, a) < self.error(bits, b) {
                high = b;
            } else {
                low = a;
            }
        }
        let middle = 0.5 * (low + high);
        let error = self.error(bits, middle);
        if error < least {
            (middle, error)
        } else {
            (best, least)
        }
    }

    fn curve(&self) -> Curve {
        /// Mean squared error of BF16 relative to its mean square.
        const BF16_NOISE: f64 = 1.0 / (28.0 * 16384.0);
        let mut curve = Curve::default();
        let energy = self.energy();
        for (i, bits) in CLASSES.into_iter().enumerate() {
            let (step, error) = match bits {
                _ if energy <= 0.0 => (f64::from(f32::MIN_POSITIVE).sqrt(), 0.0),
                0 => (0.0, energy),
                16 => (0.0, energy * BF16_NOISE),
                bits => self.best_step(bits),
            };
            (curve.step[i], curve.error[i]) = (step.clamp(0.0, 1024.0) as f32, error as f32);
        }
        curve
    }
}

fn integral(from: f64, to: f64, density: f64) -> [f64; 3] {
    [
        density * (to - from),
        density * (to * to - from * from) / 2.0,
        density * (to * to * to - from * from * from) / 3.0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_found_where_their_edges_say() {
        for at in 0..BINS {
            let middle = 0.5 * (edge(at) + edge(at + 1));
            assert_eq!(bin(middle as f32), at, "{middle}");
        }
        assert_eq!((bin(0.0), bin(f32::INFINITY)), (0, BINS - 1));
    }

    /// A normal distribution in closed form: levels at mean square error -9.30, -14.62, -20.22 dB (Max 1960, table 1).
    #[test]
    fn errors_of_a_normal_distribution_are_those_of_the_literature() {
        let mut histogram = GainHistogram::new(1);
        for (at, count) in histogram.counts.iter_mut().enumerate() {
            let middle = 0.5 * (edge(at) + edge(at + 1));
            *count = (1e8 * (edge(at + 1) - edge(at)) * (-middle * middle / 2.0).exp()) as u32;
        }
        let curve = histogram.curves()[0];
        for (class, db) in [(1, 4.396), (2, 9.300), (3, 14.616), (4, 20.222), (5, 26.01)] {
            let got = 10.0 * (curve.error[0] / curve.error[class]).log10();
            assert!(
                (got - db).abs() < 0.15,
                "{} bits: {got} dB, expected {db}",
                CLASSES[class]
            );
            // At 5 bits the outer levels lie closer than bins do, and the minimum is too flat to place the step within them.
            assert!(class > 4 || (curve.step[class] - 1.0).abs() < 0.03, "{curve:?}");
        }
        assert!(curve.error.windows(2).all(|pair| pair[0] > pair[1]), "{curve:?}");
    }

    #[test]
    fn merged_histograms_are_those_of_all_rows_in_any_order() {
        let rows: Vec<[f32; 3]> = (0..40).map(|i| [i as f32, (i * i % 7) as f32 - 3.0, 0.25]).collect();
        let mut whole = GainHistogram::new(3);
        rows.iter().for_each(|row| whole.observe_row(row));
        let mut parts = [GainHistogram::new(3), GainHistogram::new(3)];
        rows.iter()
            .rev()
            .enumerate()
            .for_each(|(i, row)| parts[i % 2].observe_row(row));
        let [mut joined, second] = parts;
        joined.add(&second);
        assert_eq!(joined, whole);
        assert!(joined.check(3).is_ok() && joined.check(2).is_err());
    }
}
