//! Calibration without the engine: observe partial sums, smooth their ranges, choose outliers, make a manifest layer.
//!
//! ```text
//! rank r, every sequence        rank 0, once
//! rows -> RangeObserver ------> LayerStatistics::gather -> select -> expected_sqnr_db -> manifest::Layer
//! ```
//! An observer is serializable, both to resume an interrupted run and to travel to rank 0.

mod adaptive;
mod allocate;
mod codec;
mod corpus;
mod curves;
mod observe;
#[cfg(feature = "engine")]
mod run;
mod select;
#[cfg(feature = "engine")]
mod sensitivity;

pub use adaptive::{adaptive_outliers, extra_bits};
pub use allocate::{allocate, entropy_tables, expected_error, rd_tables};
pub use codec::{codec_for, layer_codec};
pub use corpus::Corpus;
pub use curves::{Curve, GainHistogram};
pub use observe::{ObserveError, RangeObserver};
#[cfg(feature = "engine")]
pub use run::{run, CalibrateOptions, Calibrated};
pub use select::{control_outliers, expected_sqnr_db, select, SelectError, Selection};

use crate::config::{ConfigError, OutlierCount};
use crate::manifest::{Layer, ManifestError};

/// One layer's statistics of all ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerStatistics {
    name: String,
    features: usize,
    /// `[world_size, features]`, row-major: absmax ranges.
    ranges: Vec<f32>,
    /// `[world_size, features]`, row-major: mean of the squares.
    second_moments: Vec<f64>,
    /// `[world_size, features]`, row-major.
    curves: Vec<Curve>,
    /// Mass of the bins of a [`Shape`](crate::codec::Shape), of all features and ranks.
    shape: Vec<f32>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    #[error("layer {layer}: no rank's statistics")]
    NoRanks { layer: String },
    #[error("layer {layer}: rank {rank} observed {got} features, rank 0 observed {expected}")]
    Features {
        layer: String,
        rank: usize,
        expected: usize,
        got: usize,
    },
    #[error("layer {layer}: rank {rank} observed {got} sequences, rank 0 observed {expected}")]
    Sequences {
        layer: String,
        rank: usize,
        expected: u64,
        got: u64,
    },
    #[error("layer {layer}: no sequence was observed to its end")]
    NoSequences { layer: String },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("layer {layer}: {source}")]
    Select { layer: String, source: SelectError },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl LayerStatistics {
    /// Joins the observers of one layer, in rank order.
    ///
    /// # Errors
    /// No observers, or observers that saw rows of different lengths or different numbers of sequences.
    pub fn gather(layer: &str, observers: &[RangeObserver]) -> Result<Self, CalibrateError> {
        let name = || layer.to_owned();
        let first = observers
            .first()
            .ok_or_else(|| CalibrateError::NoRanks { layer: name() })?;
        for (rank, observer) in observers.iter().enumerate() {
            let (expected, got) = (first.features(), observer.features());
            if expected != got {
                return Err(CalibrateError::Features {
                    layer: name(),
                    rank,
                    expected,
                    got,
                });
            }
            let (expected, got) = (first.sequences(), observer.sequences());
            if expected != got {
                return Err(CalibrateError::Sequences {
                    layer: name(),
                    rank,
                    expected,
                    got,
                });
            }
        }
        if first.sequences() == 0 {
            return Err(CalibrateError::NoSequences { layer: name() });
        }
        let gains: Vec<GainHistogram> = observers.iter().map(|observer| observer.gains().clone()).collect();
        Ok(Self {
            name: name(),
            features: first.features(),
            ranges: observers.iter().flat_map(RangeObserver::ranges).collect(),
            second_moments: observers.iter().flat_map(RangeObserver::second_moments).collect(),
            curves: gains.iter().flat_map(GainHistogram::curves).collect(),
            shape: GainHistogram::shape(&gains),
        })
    }

    /// `[world_size, features]`, row-major.
    pub fn ranges(&self) -> &[f32] {
        &self.ranges
    }

    /// Chooses the outliers and estimates the noise.
    ///
    /// # Errors
    /// As many outliers as features, or ranges no manifest holds.
    pub fn into_layer(self, outliers: OutlierCount, selection: Selection) -> Result<Layer, CalibrateError> {
        let k = outliers.resolve(&self.name, self.features)?;
        let chosen = select(selection, &self.ranges, self.features, k).map_err(|source| CalibrateError::Select {
            layer: self.name.clone(),
            source,
        })?;
        let sqnr = expected_sqnr_db(&self.ranges, &self.second_moments, self.features, &chosen);
        let layer = Layer::new(&self.name, self.features, chosen, self.ranges, sqnr)?;
        Ok(layer.with_curves(self.curves, self.shape)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Fraction;

    fn observed(rows: &[f32], features: usize) -> RangeObserver {
        let mut observer = RangeObserver::new(features, 0.99).unwrap();
        observer.observe(rows).unwrap();
        observer.end_sequence();
        observer
    }

    #[test]
    fn gathered_statistics_become_a_layer_whose_outliers_have_the_largest_summed_range() {
        // Feature 1 is the largest on neither rank, but its sum is.
        let ranks = [observed(&[9.0, 8.0, 0.1, 0.1], 4), observed(&[-0.5, 8.0, 9.0, 0.0], 4)];
        let statistics = LayerStatistics::gather("a.b", &ranks).unwrap();
        let layer = statistics
            .into_layer(OutlierCount::Count(1), Selection::Largest)
            .unwrap();
        assert_eq!(layer.outliers(), [1]);
        assert_eq!(layer.rank_ranges(1), Some(&[0.5, 8.0, 9.0, 0.0][..]));
        assert!(layer.summary().expected_sqnr_db > 0.0);
    }

    #[test]
    fn ranks_that_saw_different_things_are_refused() {
        let message = |ranks: &[RangeObserver]| LayerStatistics::gather("l", ranks).unwrap_err().to_string();
        assert_eq!(message(&[]), "layer l: no rank's statistics");
        assert_eq!(
            message(&[observed(&[1.0; 2], 2), observed(&[1.0; 3], 3)]),
            "layer l: rank 1 observed 3 features, rank 0 observed 2"
        );
        let mut twice = observed(&[1.0; 2], 2);
        twice.observe(&[1.0; 2]).unwrap();
        twice.end_sequence();
        assert_eq!(
            message(&[observed(&[1.0; 2], 2), twice]),
            "layer l: rank 1 observed 2 sequences, rank 0 observed 1"
        );
        let fresh = RangeObserver::new(2, 0.5).unwrap();
        assert_eq!(message(&[fresh]), "layer l: no sequence was observed to its end");
    }

    #[test]
    fn a_layer_without_room_for_its_outliers_is_refused() {
        let statistics = LayerStatistics::gather("l", &[observed(&[1.0; 2], 2)]).unwrap();
        let error = statistics
            .clone()
            .into_layer(OutlierCount::Count(2), Selection::Largest)
            .unwrap_err();
        assert!(
            error.to_string().starts_with("layer l: 2 outliers of 2 features"),
            "{error}"
        );
        let fraction = OutlierCount::Fraction(Fraction {
            numerator: 1,
            denominator: 64,
        });
        assert!(
            statistics
                .into_layer(fraction, Selection::Largest)
                .unwrap()
                .outliers()
                .is_empty(),
            "floor(2/64) is 0"
        );
    }
}
