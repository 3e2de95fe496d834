//! Which features stay in BF16, and how much noise the others will have.

use rand::seq::index;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::config::Control;
use crate::manifest::Layer;

/// How outliers are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// The paper's: largest range, summed over ranks (arXiv 2411.07942).
    Largest,
    /// Negative control: the same number of features at random. Shows whether the choice matters or only the bits do.
    Random { seed: u64 },
    /// Negative control: the features that need it least.
    Smallest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    #[error("{k} outliers of {features} features")]
    TooMany { k: usize, features: usize },
    #[error("{got} ranges, expected {features} features for each of one or more ranks")]
    Shape { features: usize, got: usize },
}

/// Chooses `k` of `features`, ascending. `ranges` is `[world_size, features]`, row-major. Equal sums keep the lower index, so
/// that every host chooses the same.
///
/// # Errors
/// More outliers than features, ranges that are not whole rows.
pub fn select(selection: Selection, ranges: &[f32], features: usize, k: usize) -> Result<Vec<u32>, SelectError> {
    if features == 0 || ranges.is_empty() || !ranges.len().is_multiple_of(features) {
        return Err(SelectError::Shape {
            features,
            got: ranges.len(),
        });
    }
    if k > features || u32::try_from(features).is_err() {
        return Err(SelectError::TooMany { k, features });
    }
    let mut chosen: Vec<usize> = match selection {
        Selection::Random { seed } => index::sample(&mut ChaCha8Rng::seed_from_u64(seed), features, k).into_vec(),
        Selection::Largest | Selection::Smallest => {
            let sums = summed(ranges, features);
            let mut order: Vec<usize> = (0..features).collect();
            // The sort is stable: ties stay in index order.
            match selection {
                Selection::Largest => order.sort_by(|a, b| sums[*b].total_cmp(&sums[*a])),
                _ => order.sort_by(|a, b| sums[*a].total_cmp(&sums[*b])),
            }
            order.truncate(k);
            order
        }
    };
    chosen.sort_unstable();
    Ok(chosen.into_iter().map(|index| index as u32).collect())
}

/// The outliers of a negative control, as many as `layer` has.
///
/// # Errors
/// As [`select`].
pub fn control_outliers(layer: &Layer, control: Control) -> Result<Vec<u32>, SelectError> {
    let (selection, k) = match control {
        Control::AllInt4 => (Selection::Largest, 0),
        Control::Random => (Selection::Random { seed: 0 }, layer.outliers().len()),
        Control::Smallest => (Selection::Smallest, layer.outliers().len()),
    };
    select(selection, layer.ranges(), layer.features(), k)
}

fn summed(ranges: &[f32], features: usize) -> Vec<f64> {
    let mut sums = vec![0.0; features];
    for rank in ranges.chunks_exact(features) {
        sums.iter_mut()
            .zip(rank)
            .for_each(|(sum, range)| *sum += f64::from(*range));
    }
    sums
}

/// Signal to noise of a partial sum under `paper`, in dB, pooled over ranks: `10 log10(sum of squares / sum of squared errors)`.
///
/// `ranges` and `second_moments` (mean squares) are `[world_size, features]`, row-major; `outliers` ascends. An int4 feature of
/// range R has step R/7 and error step^2/12, but never more than its own mean square, which is what rounding everything to
/// zero costs. Clipping is not in the estimate; the ranges are near the extremes, so it is rare.
///
/// Infinite when nothing is lost; 0 when there is no signal.
pub fn expected_sqnr_db(ranges: &[f32], second_moments: &[f64], features: usize, outliers: &[u32]) -> f32 {
    /// Levels from zero to the range: codes -7..=7.
    const LEVELS: f64 = 7.0;
    /// Mean squared rounding error of BF16 (8 significant bits) over a mantissa uniform in [1, 2), relative to its mean
    /// square: (2^-14 / 12) / (7 / 3).
    const BF16_NOISE: f64 = 1.0 / (28.0 * 16384.0);
    let (mut signal, mut noise) = (0.0, 0.0);
    for (at, (range, moment)) in ranges.iter().zip(second_moments).enumerate() {
        let is_outlier =
            u32::try_from(at % features.max(1)).is_ok_and(|feature| outliers.binary_search(&feature).is_ok());
        let step = f64::from(*range) / LEVELS;
        signal += moment;
        noise += if is_outlier {
            moment * BF16_NOISE
        } else {
            (step * step / 12.0).min(*moment)
        };
    }
    if signal == 0.0 {
        return 0.0;
    }
    (10.0 * (signal / noise).log10()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_summed_over_ranks_and_ties_keep_the_lower_index() {
        let ranges = [1.0, 5.0, 3.0, 3.0, 0.0, /* rank 1 */ 4.0, 0.0, 2.0, 2.0, 0.5];
        assert_eq!(select(Selection::Largest, &ranges, 5, 3), Ok(vec![0, 1, 2]));
        assert_eq!(select(Selection::Smallest, &ranges, 5, 2), Ok(vec![0, 4]));
        assert_eq!(select(Selection::Largest, &ranges, 5, 0), Ok(vec![]));
    }

    #[test]
    fn random_outliers_depend_on_the_seed_only_and_are_distinct() {
        let ranges = vec![1.0; 512];
        let chosen = select(Selection::Random { seed: 3 }, &ranges, 512, 64).unwrap();
        assert_eq!(
            chosen,
            select(Selection::Random { seed: 3 }, &vec![9.0; 1024], 512, 64).unwrap()
        );
        assert_ne!(chosen, select(Selection::Random { seed: 4 }, &ranges, 512, 64).unwrap());
        assert!(chosen.len() == 64 && chosen.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_control_has_as_many_outliers_as_the_layer_or_none() {
        let ranges: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let layer = Layer::new("a.b", 8, vec![6, 7], ranges, 0.0).unwrap();
        assert_eq!(control_outliers(&layer, Control::AllInt4), Ok(vec![]));
        assert_eq!(control_outliers(&layer, Control::Smallest), Ok(vec![0, 1]));
        assert_eq!(control_outliers(&layer, Control::Random).unwrap().len(), 2);
    }

    #[test]
    fn impossible_selections_are_errors() {
        assert_eq!(
            select(Selection::Largest, &[1.0; 4], 4, 5),
            Err(SelectError::TooMany { k: 5, features: 4 })
        );
        for (features, ranges) in [(0, &[][..]), (4, &[][..]), (3, &[1.0; 4][..])] {
            assert!(matches!(
                select(Selection::Largest, ranges, features, 0),
                Err(SelectError::Shape { .. })
            ));
        }
    }

    #[test]
    fn the_estimate_matches_measured_noise_of_uniform_values() {
        // Uniform in [-1, 1]: mean square 1/3, step 1/7, expected 10 log10((1/3) / (1/588)).
        let expected = expected_sqnr_db(&[1.0], &[1.0 / 3.0], 1, &[]);
        let (mut signal, mut noise) = (0.0f64, 0.0f64);
        for i in 0..100_001 {
            let value = f64::from(i - 50_000) / 50_000.0;
            let error = value - (value * 7.0).round() / 7.0;
            signal += value * value;
            noise += error * error;
        }
        let measured = 10.0 * (signal / noise).log10();
        assert!((f64::from(expected) - measured).abs() < 0.05, "{expected} {measured}");
    }

    #[test]
    fn an_outlier_raises_the_estimate_and_noise_never_exceeds_the_signal() {
        let (ranges, moments) = ([100.0, 1.0], [1.0, 0.1]);
        let without = expected_sqnr_db(&ranges, &moments, 2, &[]);
        assert!(expected_sqnr_db(&ranges, &moments, 2, &[0]) > without + 10.0);
        assert_eq!(expected_sqnr_db(&[1e9], &[1.0], 1, &[]), 0.0, "all rounds to zero");
        assert_eq!(expected_sqnr_db(&[0.0], &[0.0], 1, &[]), 0.0);
        // BF16: 8 significant bits, about 56 dB.
        assert!((expected_sqnr_db(&[1.0], &[1.0], 1, &[0]) - 56.6).abs() < 0.1);
    }
}
