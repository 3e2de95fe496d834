//! Bits per feature under a budget: greedily the upgrade that lowers the error most for each bit, on the lower convex hull of
//! each feature's curve (Shoham and Gersho 1988).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::curves::Curve;
use crate::codec::{RdRank, RdTables, RdTablesError, CLASSES};

/// Bits and steps of one rank's features, in rows of at most `budget` bits a value, gain and padding included. A budget
/// below the row of no features gives that row. Ties go to the lower feature, so every host decides alike.
pub fn allocate(curves: &[Curve], budget: f64) -> RdRank {
    let limit = (budget * curves.len() as f64 / 8.0) as usize;
    let mut class = vec![0usize; curves.len()];
    let mut bits = vec![0u8; curves.len()];
    let mut heap: BinaryHeap<Upgrade> = (0..curves.len())
        .filter_map(|feature| Upgrade::next(&curves[feature], feature, 0))
        .collect();
    // Row lengths of a full recount for each upgrade would make this quadratic.
    let mut row = RowBits::default();
    while let Some(upgrade) = heap.pop() {
        let Upgrade { feature, to, .. } = upgrade;
        let wider = row.with(bits[feature], CLASSES[to]);
        if wider.bytes() > limit {
            // A smaller upgrade may still fit.
            continue;
        }
        row = wider;
        (class[feature], bits[feature]) = (to, CLASSES[to]);
        heap.extend(Upgrade::next(&curves[feature], feature, to));
    }
    debug_assert_eq!(row.bytes(), RdTables::row_len(bits.iter().copied()));
    let steps = curves
        .iter()
        .zip(&class)
        .map(|(curve, class)| curve.step[*class])
        .collect();
    RdRank { bits, steps }
}

/// Tables of one site: `curves` is `[ranks, features]`, row-major, each rank under the same budget.
///
/// # Errors
/// No curves, or steps that no calibration gives.
pub fn rd_tables(curves: &[Curve], features: usize, budget: f64) -> Result<RdTables, RdTablesError> {
    let ranks: Vec<RdRank> = curves
        .chunks_exact(features.max(1))
        .map(|curves| allocate(curves, budget))
        .collect();
    RdTables::new(&ranks)
}

/// Mean squared error over all features that `allocate` leaves, in units of the squared gain.
pub fn expected_error(curves: &[Curve], table: &RdRank) -> f64 {
    let errors = curves.iter().zip(&table.bits).map(|(curve, bits)| {
        let class = CLASSES.iter().position(|class| class == bits).unwrap_or(0);
        f64::from(curve.error[class])
    });
    errors.sum::<f64>() / curves.len().max(1) as f64
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Upgrade {
    /// Error taken away for each bit.
    slope: f32,
    feature: usize,
    to: usize,
}

impl Upgrade {
    /// The steepest way down from class `from`; `None` when no class lowers the error.
    fn next(curve: &Curve, feature: usize, from: usize) -> Option<Self> {
        let slope = |to: usize| (curve.error[from] - curve.error[to]) / f32::from(CLASSES[to] - CLASSES[from]);
        (from + 1..CLASSES.len())
            .map(|to| Self {
                slope: slope(to),
                feature,
                to,
            })
            .filter(|upgrade| upgrade.slope > 0.0)
            .max_by(|a, b| a.slope.total_cmp(&b.slope).then(b.to.cmp(&a.to)))
    }
}

impl Eq for Upgrade {}

impl Ord for Upgrade {
    fn cmp(&self, other: &Self) -> Ordering {
        self.slope
            .total_cmp(&other.slope)
            .then(other.feature.cmp(&self.feature))
            .then(other.to.cmp(&self.to))
    }
}

impl PartialOrd for Upgrade {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Codes in each plane of a row.
#[derive(Debug, Clone, Copy, Default)]
struct RowBits {
    whole: usize,
    nibbles: usize,
    crumbs: usize,
    singles: usize,
}

impl RowBits {
    fn with(mut self, from: u8, to: u8) -> Self {
        let add = |row: &mut Self, bits: u8, sign: isize| {
            let count = |plane: &mut usize, by: u8| *plane = plane.wrapping_add_signed(sign * isize::from(by));
            match bits {
                8 | 16 => count(&mut row.whole, bits / 8),
                _ => {
                    count(&mut row.nibbles, bits >> 2 & 1);
                    count(&mut row.crumbs, bits >> 1 & 1);
                    count(&mut row.singles, bits & 1);
                }
            }
        };
        add(&mut self, from, -1);
        add(&mut self, to, 1);
        self
    }

    fn bytes(&self) -> usize {
        crate::codec::rd::GAIN_LEN
            + self.whole
            + self.nibbles.div_ceil(2)
            + self.crumbs.div_ceil(4)
            + self.singles.div_ceil(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::GainHistogram;
    use proptest::prelude::*;

    fn curves(scales: &[f32]) -> Vec<Curve> {
        let mut histogram = GainHistogram::new(scales.len());
        for i in 0..200i32 {
            let noise = |feature: usize| ((i * 7919 + feature as i32 * 104_729) % 2001 - 1000) as f32 / 1000.0;
            let row: Vec<f32> = scales.iter().enumerate().map(|(f, scale)| scale * noise(f)).collect();
            histogram.observe_row(&row);
        }
        histogram.curves()
    }

    #[test]
    fn loud_features_get_more_bits_and_dead_ones_none() {
        let mut scales = vec![1.0; 62];
        scales.extend([0.0, 100.0]);
        let table = allocate(&curves(&scales), 4.0);
        assert_eq!(table.bits[62], 0);
        assert!(
            table.bits[63] > table.bits[..62].iter().copied().max().unwrap_or(16),
            "{table:?}"
        );
    }

    proptest! {
        #[test]
        fn rows_stay_within_the_budget_and_waste_less_than_one_upgrade(
            scales in prop::collection::vec(0.01f32..10.0, 1..80),
            budget in 0.5f64..9.0,
        ) {
            let curves = curves(&scales);
            let table = allocate(&curves, budget);
            let bytes = RdTables::row_len(table.bits.iter().copied());
            let limit = (budget * scales.len() as f64 / 8.0) as usize;
            prop_assert!(bytes <= limit.max(2), "{} bytes of {}", bytes, limit);
            prop_assert_eq!(&table, &allocate(&curves, budget));
            let wider = expected_error(&curves, &allocate(&curves, budget + 1.0));
            prop_assert!(wider <= expected_error(&curves, &table));
            prop_assert!(RdTables::new(&[table]).is_ok());
        }
    }
}
