//! `rd` with entropy coding: one step for all features of a rank, and codes as short as they are likely.
//!
//! At a high rate an even step and an entropy coder lose a quarter of a bit against the rate-distortion bound, where levels of
//! a fixed number of bits lose more than half (Gish and Pierce 1968). Models are static: the shape of a layer's
//! magnitudes, from calibration, at a feature's rms over the step.
//!
//! Rows still have one length. The encoder chooses the gain of each token: the smallest whose row fits. So a row costs what
//! was budgeted and never more, slices of a message lie where everyone expects them, and no bit is spent on lengths.

pub(super) mod layout;
mod model;
mod rans;
mod row;
mod shape;
#[cfg(test)]
mod spec;
mod tables;

use std::cell::RefCell;

use self::layout::Layout;
use self::model::{ladder, Class, Model, COST_UNIT, MODELS};
use self::row::{Coder, Scratch};
use self::tables::Tables;
use super::assert_one_row;
use super::rows::{self, BadRow, Rows};
use super::simd::Onto;
use super::values::Element;
use super::{Codec, CodecError, CodecKind, Dtype, EncodeStats, Level, Values};

pub use shape::{Shape, SHAPE_LEN};

/// Features for each interleaved state of the coder: states let a processor work on several symbols at once, and cost 20 bits.
const FEATURES_PER_LANE: usize = 1024;
/// Steps looked through, in eighths of an octave: from 2^-24 to 2^8 gains.
const STEPS: std::ops::RangeInclusive<i32> = -24 * 8..=8 * 8;

/// Models and steps of one reduce site, under a budget.
#[derive(Debug, Clone, PartialEq)]
pub struct EntropyTables {
    features: usize,
    row_len: usize,
    lanes: usize,
    tables: Tables,
    ranks: Vec<Layout>,
}

/// Why statistics cannot be used: a defect of the manifest.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum EntropyTablesError {
    #[error("the shape of magnitudes is no distribution of {SHAPE_LEN} bins")]
    Shape,
    #[error("no features: expected a list of root mean squares for each rank")]
    NoRanks,
    #[error("rank {rank} has {got} features, expected {expected}")]
    FeatureCount { rank: usize, expected: usize, got: usize },
    #[error("rank {rank}, feature {feature}: root mean square {got} of the gain, expected a finite number that is not negative")]
    Rms { rank: usize, feature: usize, got: f64 },
}

impl EntropyTables {
    /// For rows of at most `bits` a value, gain and states included; longer only where a row of zeros would not fit.
    /// `shape` has the mass of each bin of a [`Shape`]; `rms`, by rank, each feature's root mean square in units of its
    /// token's gain.
    ///
    /// # Errors
    /// See [`EntropyTablesError`].
    pub fn new(shape: &[f32], rms: &[Vec<f64>], bits: f64) -> Result<Self, EntropyTablesError> {
        let features = check(rms)?;
        let shape = Shape::new(shape).ok_or(EntropyTablesError::Shape)?;
        let lanes = (features / FEATURES_PER_LANE).clamp(1, rans::MAX_LANES);
        let mut tables = Tables::new((0..MODELS).map(|index| Model::new(&shape, index)).collect());
        let mut row_len = ((bits * features as f64 / 8.0) as usize).max(rans::head_len(lanes));
        let ranks: Vec<Layout> = rms
            .iter()
            .map(|rms| layout(&mut tables, rms, row::budget(row_len, lanes)))
            .collect();
        for layout in &ranks {
            let coder = Coder {
                layout,
                tables: &tables,
                lanes,
                level: Level::best(),
            };
            while !coder.fits_zeros(row_len) {
                row_len += 1;
            }
        }
        Ok(Self {
            features,
            row_len,
            lanes,
            tables,
            ranks,
        })
    }
}

fn check(rms: &[Vec<f64>]) -> Result<usize, EntropyTablesError> {
    let expected = rms.first().ok_or(EntropyTablesError::NoRanks)?.len();
    for (rank, rms) in rms.iter().enumerate() {
        let got = rms.len();
        if got != expected {
            return Err(EntropyTablesError::FeatureCount { rank, expected, got });
        }
        if let Some(feature) = rms.iter().position(|rms| !(rms.is_finite() && *rms >= 0.0)) {
            let got = rms[feature];
            return Err(EntropyTablesError::Rms { rank, feature, got });
        }
    }
    Ok(expected)
}

/// One rank's features, with the smallest step at which they are expected to cost at most `budget`.
fn layout(tables: &mut Tables, rms: &[f64], budget: u64) -> Layout {
    let live: Vec<(u32, f64)> = (0u32..)
        .zip(rms.iter().copied())
        .filter(|(_, rms)| *rms > 0.0)
        .collect();
    let costs: Vec<u64> = tables.models.iter().map(Model::mean_cost).collect();
    let cost = |eighths: i32| {
        let classes = live.iter().map(|(_, rms)| Class::nearest(rms / ladder(eighths)));
        let cost = |class: Class| costs[class.model as usize] + (u64::from(class.shift) << COST_UNIT);
        classes.map(cost).sum::<u64>()
    };
    // Costs fall with the step: halve.
    let (mut low, mut high) = (*STEPS.start(), *STEPS.end());
    while low < high {
        let middle = (low + high).div_euclid(2);
        if cost(middle) <= budget {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let step = ladder(high);
    let classes = live.iter().map(|(feature, rms)| (*feature, Class::nearest(rms / step)));
    Layout::new(tables, rms.len(), step, classes.collect())
}

/// Row: the states of a range coder with its bytes; see `row.rs` and `rans.rs`.
#[derive(Debug, Clone)]
pub struct RdEntropy {
    tables: EntropyTables,
    level: Level,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl RdEntropy {
    pub fn new(tables: EntropyTables) -> Self {
        let level = Level::best();
        Self { tables, level }
    }

    /// The same codec on other instructions: the same bits, at another speed.
    #[must_use]
    pub fn with_level(self, level: Level) -> Self {
        Self { level, ..self }
    }

    fn coder<'a>(&'a self, layout: &'a Layout) -> Coder<'a> {
        let EntropyTables { tables, lanes, .. } = &self.tables;
        Coder {
            layout,
            tables,
            lanes: *lanes,
            level: self.level,
        }
    }
}

impl Rows for RdEntropy {
    type Table<'a> = &'a Layout;

    fn table(&self, rank: usize) -> Result<&Layout, CodecError> {
        let ranks = self.tables.ranks.len();
        let layout = self.tables.ranks.get(rank);
        layout.ok_or(CodecError::UnknownRank { rank, ranks })
    }

    fn row_len(&self) -> usize {
        self.tables.row_len
    }

    fn encode_row<T: Element>(&self, layout: &&Layout, values: &[T], row: &mut [u8]) -> EncodeStats {
        SCRATCH.with_borrow_mut(|scratch| self.coder(layout).encode(values, scratch, row))
    }

    /// Two multiplies and one add an element: of level and step, and with the gain.
    fn decode_row(&self, layout: &&Layout, row: &[u8], onto: Onto, sum: &mut [f32]) -> Result<(), BadRow> {
        let decoded = SCRATCH.with_borrow_mut(|scratch| self.coder(layout).decode(row, scratch, onto.cleared(sum)));
        decoded.ok_or(BadRow::Stream)
    }
}

impl Codec for RdEntropy {
    fn name(&self) -> &'static str {
        CodecKind::RdEntropy.name()
    }

    fn tag(&self) -> u8 {
        CodecKind::RdEntropy.tag()
    }

    fn features(&self) -> usize {
        self.tables.features
    }

    fn payload_len(&self, tokens: usize, _dtype: Dtype) -> usize {
        match self.tables.features {
            0 => 0,
            _ => tokens.saturating_mul(self.tables.row_len),
        }
    }

    fn encode(&self, rank: usize, values: Values<'_>, payload: &mut [u8]) -> EncodeStats {
        rows::encode(self, rank, values, payload)
    }

    fn decode_accumulate(&self, rank: usize, payload: &[u8], dtype: Dtype, sum: &mut [f32]) -> Result<(), CodecError> {
        rows::decode(self, rank, payload, dtype, Onto::Sum, sum)
    }

    /// Half a step and the way from a code to its level; an escaped value loses what BF16 loses, and a feature that was zero in
    /// calibration all of its value.
    fn error_bound(&self, rank: usize, row: &[f32], bound: &mut [f32]) {
        assert_one_row(self, row, bound);
        let coder = self.coder(self.own_table(rank));
        coder.error_bound(self.tables.row_len, row, bound);
    }
}
