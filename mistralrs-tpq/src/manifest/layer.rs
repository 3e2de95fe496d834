//! One reduce site: its ranges, its outliers, and the summary that people read.

use super::error::ManifestError;
use crate::calibrate::Curve;
use crate::codec::SHAPE_LEN;
use crate::config::defaults::{MAX_FEATURES, MAX_WORLD_SIZE};

/// A calibrated row-parallel layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    name: String,
    features: usize,
    outliers: Vec<u32>,
    /// `[world_size, features]`, row-major: the absmax range of each rank's partial sum.
    ranges: Vec<f32>,
    /// `[world_size, features]`, row-major; empty when the calibration measured none.
    curves: Vec<Curve>,
    /// How magnitudes over their feature's rms are distributed: bins of a [`Shape`](crate::codec::Shape); empty with `curves`.
    shape: Vec<f32>,
    summary: Summary,
    priority: Option<Priority>,
}

/// How much a layer's noise matters, where the calibration measured it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Priority {
    /// KL of the logits, in nats a token, for each unit of noise in units of the layer's signal. For people.
    pub sensitivity: f32,
    /// Bits a value more than the average, with `budget_scope: model`.
    pub extra_bits: f32,
}

/// For people; no codec reads it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Of the features' ranges, each the mean over ranks.
    pub min: f32,
    pub median: f32,
    pub max: f32,
    /// Largest range over the median of those that are not zero; 1 when all are equal or zero. How much int4 with one scale
    /// for all features would lose, and why features get a scale each.
    pub spread: f32,
    /// Expected signal to quantization noise of one partial sum under `paper`, from second moments.
    pub expected_sqnr_db: f32,
}

/// Reported instead of an infinite ratio (a layer that is all zero, or all outliers without noise).
const SQNR_LIMIT_DB: f32 = 200.0;

impl Layer {
    /// `ranges` is `[world_size, features]`, row-major; `outliers` ascends.
    ///
    /// # Errors
    /// An unusable name, ranges of another length or with values that are negative or not finite, outliers that are not
    /// ascending indices of features.
    pub fn new(
        name: &str,
        features: usize,
        outliers: Vec<u32>,
        ranges: Vec<f32>,
        expected_sqnr_db: f32,
    ) -> Result<Self, ManifestError> {
        check_name(name)?;
        check_features(name, features)?;
        check_ranges(name, features, &ranges)?;
        check_outliers(name, features, &outliers)?;
        let summary = Summary::of(&ranges, features, clamp_db(expected_sqnr_db));
        Ok(Self {
            name: name.to_owned(),
            features,
            outliers,
            ranges,
            curves: Vec::new(),
            shape: Vec::new(),
            summary,
            priority: None,
        })
    }

    /// # Errors
    /// Bits that are not within one of the average, or a sensitivity that is negative or not finite.
    pub fn with_priority(mut self, priority: Priority) -> Result<Self, ManifestError> {
        let Priority {
            sensitivity,
            extra_bits,
        } = priority;
        let usable = sensitivity.is_finite() && sensitivity >= 0.0 && extra_bits.abs() <= 1.0;
        if !usable {
            return Err(ManifestError::Value {
                key: format!("priority of layer {}", self.name),
                got: format!("{sensitivity} and {extra_bits}"),
                expected: "a sensitivity that is not negative, and extra_bits from -1 to 1".to_owned(),
            });
        }
        self.priority = Some(priority);
        Ok(self)
    }

    /// `None` when the calibration measured none.
    pub const fn priority(&self) -> Option<Priority> {
        self.priority
    }

    /// With the summary a file states, which may be older than a hand-edited outlier list.
    pub(super) fn with_summary(mut self, summary: Summary) -> Self {
        self.summary = summary;
        self
    }

    /// With error curves, `[world_size, features]`, row-major, and the layer's shape, [`SHAPE_LEN`] masses.
    ///
    /// # Errors
    /// Another number of curves or masses, or an error, step or mass that is negative or not finite.
    pub fn with_curves(mut self, curves: Vec<Curve>, shape: Vec<f32>) -> Result<Self, ManifestError> {
        if curves.len() != self.ranges.len() {
            return Err(ManifestError::Shape {
                layer: self.name,
                expected: vec![self.ranges.len()],
                got: vec![curves.len()],
            });
        }
        let usable = |x: &f32| x.is_finite() && *x >= 0.0;
        if shape.len() != SHAPE_LEN || !shape.iter().all(usable) {
            return Err(ManifestError::MagnitudeShape { layer: self.name });
        }
        let bad = curves
            .iter()
            .position(|curve| !curve.error.iter().chain(&curve.step).all(usable));
        if let Some(at) = bad {
            let (rank, feature) = (at / self.features, at % self.features);
            return Err(ManifestError::Curve {
                layer: self.name,
                rank,
                feature,
            });
        }
        (self.curves, self.shape) = (curves, shape);
        Ok(self)
    }

    /// The VarBuilder prefix, such as `model.layers.3.mlp.down_proj`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// E: the length of a row.
    pub const fn features(&self) -> usize {
        self.features
    }

    /// Ascending indices, fewer than `features`.
    pub fn outliers(&self) -> &[u32] {
        &self.outliers
    }

    pub fn world_size(&self) -> usize {
        self.ranges.len() / self.features
    }

    /// `[world_size, features]`, row-major.
    pub fn ranges(&self) -> &[f32] {
        &self.ranges
    }

    /// The `features` ranges of one rank, or `None` when there is no such rank.
    pub fn rank_ranges(&self, rank: usize) -> Option<&[f32]> {
        self.ranges.chunks_exact(self.features).nth(rank)
    }

    /// `[world_size, features]`, row-major; empty when the calibration measured none.
    pub fn curves(&self) -> &[Curve] {
        &self.curves
    }

    /// Mass of each bin of a [`Shape`](crate::codec::Shape); empty when the calibration measured no curves.
    pub fn shape(&self) -> &[f32] {
        &self.shape
    }

    /// Mean over ranks of each feature's range.
    pub fn mean_ranges(&self) -> Vec<f32> {
        mean_ranges(&self.ranges, self.features)
    }

    pub const fn summary(&self) -> Summary {
        self.summary
    }

    /// Bits a value under `paper`: 4, and 16 for outliers.
    pub fn bits_per_value(&self) -> f64 {
        4.0 + 12.0 * self.outliers.len() as f64 / self.features as f64
    }
}

impl Summary {
    fn of(ranges: &[f32], features: usize, expected_sqnr_db: f32) -> Self {
        let mut means = mean_ranges(ranges, features);
        means.sort_by(f32::total_cmp);
        let max = means[means.len() - 1];
        let positive = &means[means.partition_point(|range| *range == 0.0)..];
        let spread = positive
            .get(positive.len() / 2)
            .map_or(1.0, |median| (max / median).min(f32::MAX));
        Self {
            min: means[0],
            median: means[means.len() / 2],
            max,
            spread,
            expected_sqnr_db,
        }
    }
}

fn mean_ranges(ranges: &[f32], features: usize) -> Vec<f32> {
    let mut sums = vec![0f64; features];
    for row in ranges.chunks_exact(features) {
        sums.iter_mut()
            .zip(row)
            .for_each(|(sum, range)| *sum += f64::from(*range));
    }
    let ranks = (ranges.len() / features) as f64;
    sums.iter().map(|sum| (sum / ranks) as f32).collect()
}

fn clamp_db(db: f32) -> f32 {
    if db.is_nan() {
        0.0
    } else {
        db.clamp(-SQNR_LIMIT_DB, SQNR_LIMIT_DB)
    }
}

/// Names come from a model's tensor names and go into YAML, tensor names and logs; what passes here needs no escape in
/// any of them.
pub(super) fn check_name(name: &str) -> Result<(), ManifestError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    if name.is_empty() || name.len() > 256 || !name.bytes().all(plain) || name == "__metadata__" {
        let shown: String = name.escape_debug().take(60).collect();
        return Err(ManifestError::Value {
            key: "layers.name".to_owned(),
            got: format!("`{shown}`"),
            expected: "1 to 256 letters, digits and . _ - /, such as model.layers.0.mlp.down_proj".to_owned(),
        });
    }
    Ok(())
}

pub(super) fn check_features(name: &str, features: usize) -> Result<(), ManifestError> {
    if (1..=MAX_FEATURES).contains(&features) {
        return Ok(());
    }
    Err(ManifestError::Value {
        key: format!("features of layer {name}"),
        got: features.to_string(),
        expected: format!("1 to {MAX_FEATURES}"),
    })
}

fn check_ranges(name: &str, features: usize, ranges: &[f32]) -> Result<(), ManifestError> {
    let ranks = ranges.len() / features;
    if !ranges.len().is_multiple_of(features) || !(1..=MAX_WORLD_SIZE).contains(&ranks) {
        let (expected, got) = (vec![ranks.clamp(1, MAX_WORLD_SIZE), features], vec![ranges.len()]);
        return Err(ManifestError::Shape {
            layer: name.to_owned(),
            expected,
            got,
        });
    }
    match ranges.iter().position(|range| !(range.is_finite() && *range >= 0.0)) {
        None => Ok(()),
        Some(at) => {
            let (rank, feature) = (at / features, at % features);
            Err(ManifestError::Range {
                layer: name.to_owned(),
                rank,
                feature,
                got: ranges[at],
            })
        }
    }
}

fn check_outliers(name: &str, features: usize, outliers: &[u32]) -> Result<(), ManifestError> {
    let layer = || name.to_owned();
    if let Some(got) = outliers.iter().find(|index| **index as usize >= features) {
        return Err(ManifestError::OutlierOutOfRange {
            layer: layer(),
            got: u64::from(*got),
            features,
        });
    }
    match outliers.windows(2).find(|pair| pair[0] >= pair[1]) {
        None => Ok(()),
        Some(pair) if pair[0] == pair[1] => Err(ManifestError::OutlierDuplicate {
            layer: layer(),
            index: pair[0],
        }),
        Some(pair) => Err(ManifestError::OutliersUnsorted {
            layer: layer(),
            previous: pair[0],
            got: pair[1],
        }),
    }
}
