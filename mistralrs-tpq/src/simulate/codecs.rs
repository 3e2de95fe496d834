//! Codecs for any number of ranks, calibrated on recorded sums as `tpq calibrate` does on the engine's.

use super::SimulateError;
use crate::calibrate::{entropy_tables, rd_tables, select, Curve, GainHistogram, RangeObserver, Selection};
use crate::codec::{Codec, CodecKind, Dynamic, NoCodec, Paper, PaperTables, Rd, RdEntropy};
use crate::config::defaults::OUTLIER_FRACTION;
use crate::manifest::Layer;

/// What calibration knows of one layer: vectors are `[ranks, features]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    pub features: usize,
    pub ranges: Vec<f32>,
    /// Ascending, as `paper` keeps them.
    pub outliers: Vec<u32>,
    curves: Vec<Curve>,
    shape: Vec<f32>,
}

impl Calibration {
    /// From each rank's `[tokens, features]`, in sequences of `sequence` tokens.
    ///
    /// # Errors
    /// As many outliers as features.
    pub fn observe(parts: &[Vec<f32>], features: usize, sequence: usize, ema: f64) -> Result<Self, SimulateError> {
        let observed = |part: &Vec<f32>| -> Result<RangeObserver, SimulateError> {
            let mut observer = RangeObserver::new(features, ema)?;
            for rows in part.chunks(sequence.max(1) * features) {
                observer.observe(rows)?;
                observer.end_sequence();
            }
            Ok(observer)
        };
        let ranks = parts.iter().map(observed).collect::<Result<Vec<_>, _>>()?;
        let ranges: Vec<f32> = ranks.iter().flat_map(RangeObserver::ranges).collect();
        let gains: Vec<GainHistogram> = ranks.iter().map(|rank| rank.gains().clone()).collect();
        let (numerator, denominator) = OUTLIER_FRACTION;
        let outliers = features * numerator as usize / denominator as usize;
        Ok(Self {
            features,
            outliers: select(Selection::Largest, &ranges, features, outliers)?,
            curves: gains.iter().flat_map(GainHistogram::curves).collect(),
            shape: GainHistogram::shape(&gains),
            ranges,
        })
    }

    /// A layer of a manifest.
    pub fn of_layer(layer: &Layer) -> Self {
        Self {
            features: layer.features(),
            ranges: layer.ranges().to_vec(),
            outliers: layer.outliers().to_vec(),
            curves: layer.curves().to_vec(),
            shape: layer.shape().to_vec(),
        }
    }

    /// `bits` a value where the codec has a budget.
    ///
    /// # Errors
    /// A manifest without curves, or with ranges that are none.
    pub fn codec(&self, kind: CodecKind, bits: f64) -> Result<Box<dyn Codec>, SimulateError> {
        let features = self.features;
        let tables = |error: String| SimulateError::Tables { what: error };
        Ok(match kind {
            CodecKind::None => Box::new(NoCodec::new(features)),
            CodecKind::Dynamic => Box::new(Dynamic::new(features)),
            CodecKind::Paper => {
                let ranges = self.ranges.chunks_exact(features).map(<[f32]>::to_vec).collect();
                let made = PaperTables::new(ranges, self.outliers.clone());
                Box::new(Paper::new(made.map_err(|error| tables(error.to_string()))?))
            }
            CodecKind::Rd => {
                let made = rd_tables(&self.curves, features, bits);
                Box::new(Rd::new(made.map_err(|error| tables(error.to_string()))?))
            }
            CodecKind::RdEntropy => {
                let made = entropy_tables(&self.curves, &self.shape, features, bits);
                Box::new(RdEntropy::new(made.map_err(|error| tables(error.to_string()))?))
            }
        })
    }
}
