//! Partial sums for other numbers of ranks than were recorded.
//!
//! Fewer ranks: neighbours' sums added, which is what a rank with both shards would have. More ranks: a recorded partial sum y is cut into
//! m parts that add up to it,
//!
//! ```text
//! part_j[t] = y[t] / m + (y[t + o_j] - mean over j of y[t + o_j]) / sqrt(m)
//! ```
//! with a different offset o_j (in tokens, round the text) for each part. Each feature of a part has 1/m of the energy of y, as where the
//! shards of a layer contribute independently, and its real tails; what a real group of that size would have beyond that, such as a few ranks with all of a feature's
//! energy, is not in it.

use super::SimulateError;

/// `[ranks]` of `[tokens, features]` from `[recorded]` of the same. One of the two numbers has to divide the other.
///
/// # Errors
/// Numbers of which neither divides the other, fewer tokens than parts of one sum.
pub fn parts(recorded: &[Vec<f32>], features: usize, ranks: usize) -> Result<Vec<Vec<f32>>, SimulateError> {
    let (have, tokens) = (recorded.len(), recorded[0].len() / features);
    if have.is_multiple_of(ranks) {
        return Ok(recorded.chunks_exact(have / ranks).map(added).collect());
    }
    if !ranks.is_multiple_of(have) {
        return Err(SimulateError::Ranks { have, ranks });
    }
    let ways = ranks / have;
    if tokens <= ways {
        return Err(SimulateError::Tokens { tokens, ways, ranks });
    }
    Ok(recorded.iter().flat_map(|sum| cut(sum, features, ways)).collect())
}

fn added(group: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = group[0].clone();
    for more in &group[1..] {
        sum.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
    }
    sum
}

fn cut(sum: &[f32], features: usize, ways: usize) -> Vec<Vec<f32>> {
    let tokens = sum.len() / features;
    // Distinct and never zero: a part must not depend on the token it is a part of.
    let offset = |part: usize| (part + 1) * tokens / (ways + 1) * features;
    let rotated = |part: usize| sum[offset(part)..].iter().chain(&sum[..offset(part)]);
    let mut mean = vec![0.0f64; sum.len()];
    for part in 0..ways {
        mean.iter_mut()
            .zip(rotated(part))
            .for_each(|(mean, x)| *mean += f64::from(*x) / ways as f64);
    }
    let (share, spread) = (1.0 / ways as f64, 1.0 / (ways as f64).sqrt());
    let part = |part: usize| {
        let terms = sum.iter().zip(rotated(part)).zip(&mean);
        terms
            .map(|((y, other), mean)| (f64::from(*y) * share + (f64::from(*other) - mean) * spread) as f32)
            .collect()
    };
    (0..ways).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::inputs;
    use crate::codec::Dtype;

    const FEATURES: usize = 64;

    fn recorded(ranks: usize) -> Vec<Vec<f32>> {
        (0..ranks)
            .map(|rank| inputs::rows(rank, 16, FEATURES, Dtype::F32))
            .collect()
    }

    fn energy(values: &[f32]) -> f64 {
        values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
    }

    #[test]
    fn parts_add_up_to_what_was_recorded_and_share_its_energy() {
        let recorded = recorded(2);
        let parts = parts(&recorded, FEATURES, 16).unwrap();
        assert_eq!(parts.len(), 16);
        for (sum, parts) in recorded.iter().zip(parts.chunks_exact(8)) {
            let again = added(parts);
            assert!(sum.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-4));
            for part in parts {
                let share = energy(part) / energy(sum) * 8.0;
                assert!((0.8..1.25).contains(&share), "{share}");
            }
        }
    }

    #[test]
    fn a_smaller_group_has_the_sums_of_neighbours() {
        let recorded = recorded(4);
        assert_eq!(parts(&recorded, FEATURES, 4).unwrap(), recorded);
        let two = parts(&recorded, FEATURES, 2).unwrap();
        assert_eq!(two[1][5], recorded[2][5] + recorded[3][5]);
    }

    #[test]
    fn numbers_that_cannot_be_made_are_refused() {
        assert!(matches!(
            parts(&recorded(2), FEATURES, 3),
            Err(SimulateError::Ranks { have: 2, ranks: 3 })
        ));
        assert!(matches!(
            parts(&recorded(2), FEATURES, 64),
            Err(SimulateError::Tokens {
                tokens: 16,
                ways: 32,
                ranks: 64
            })
        ));
    }
}
