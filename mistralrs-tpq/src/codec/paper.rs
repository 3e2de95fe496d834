//! `paper`: static symmetric int4 per feature and rank, a few outlier features in BF16 (arXiv 2411.07942).
//!
//! With k = E / 64 outliers a value takes exactly (4 (E - k) + 16 k) / E = 4 + 12 / 64 = 4.1875 bits: ranges and outlier
//! indices are calibrated, so no side information travels. Rows are whole bytes: an odd E - k adds half a byte a row.

use super::rows::{self, BadRow, Rows};
use super::scalar::{self, PaperRow};
use super::simd::Onto;
use super::split::{Split, Splits};
use super::values::Element;
use super::{assert_one_row, bound};
use super::{Codec, CodecError, CodecKind, Dtype, EncodeStats, Level, Values};

/// The largest range accepted, 2^127: with it all sixteen nibbles a peer may send decode to finite values.
const MAX_RANGE: f32 = f32::from_bits(0x7f00_0000);

/// Calibration of one reduce site, checked: steps of all ranks, and the outlier features they share.
#[derive(Debug, Clone, PartialEq)]
pub struct PaperTables {
    features: usize,
    outliers: Vec<u32>,
    displaced: Vec<u32>,
    ranks: Vec<RankTable>,
}

#[derive(Debug, Clone, PartialEq)]
struct RankTable {
    steps: Vec<f32>,
    inv_steps: Vec<f32>,
    dead: Vec<u32>,
}

/// Why a calibration cannot be used. Each is a defect of the manifest, or of whoever edited it.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum PaperTablesError {
    #[error("no ranges: expected one list per rank")]
    NoRanks,
    #[error("rank {rank} has ranges for {got} features, rank 0 for {expected}")]
    FeatureCount { rank: usize, expected: usize, got: usize },
    #[error("rank {rank}, feature {feature}: range {got}, expected 0 to 2^127")]
    Range { rank: usize, feature: usize, got: f32 },
    #[error("{got} outliers among {features} features")]
    TooManyOutliers { features: usize, got: usize },
    #[error("outlier {got} at position {position}: features are 0..{features}")]
    OutlierOutOfRange { position: usize, features: usize, got: u32 },
    #[error("outlier {got} at position {position} follows {previous}: outliers must ascend without repetition")]
    OutliersUnsorted { position: usize, previous: u32, got: u32 },
}

impl PaperTables {
    /// `ranges[rank][feature]` is the largest magnitude the feature is expected to have in that rank's partial sum, in the
    /// unit of the values; `outliers` are feature indices, ascending, the same on all ranks. The range of an outlier is
    /// checked but not used.
    ///
    /// A range whose step (range / 7) is below the smallest normal f32 counts as zero: its reciprocal may overflow.
    ///
    /// # Errors
    /// See [`PaperTablesError`].
    pub fn new(ranges: Vec<Vec<f32>>, outliers: Vec<u32>) -> Result<Self, PaperTablesError> {
        let features = ranges.first().ok_or(PaperTablesError::NoRanks)?.len();
        check_outliers(features, &outliers)?;
        let displaced = displaced(features, &outliers);
        let ranks = ranges.into_iter().enumerate();
        let ranks = ranks
            .map(|(rank, ranges)| RankTable::new(rank, features, ranges, &outliers))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            features,
            outliers,
            displaced,
            ranks,
        })
    }

    /// The tables of features `start..end`, as features from 0.
    fn slice(&self, start: usize, end: usize) -> Self {
        let within = |features: &[u32]| -> Vec<u32> {
            let kept = features.iter().map(|feature| *feature as usize);
            kept.filter(|feature| (start..end).contains(feature))
                .map(|feature| (feature - start) as u32)
                .collect()
        };
        let outliers = within(&self.outliers);
        let ranks = self.ranks.iter().map(|table| RankTable {
            steps: table.steps[start..end].to_vec(),
            inv_steps: table.inv_steps[start..end].to_vec(),
            dead: within(&table.dead),
        });
        Self {
            features: end - start,
            displaced: displaced(end - start, &outliers),
            outliers,
            ranks: ranks.collect(),
        }
    }

    /// E.
    pub fn features(&self) -> usize {
        self.features
    }

    /// How many ranks have ranges.
    pub fn ranks(&self) -> usize {
        self.ranks.len()
    }

    /// Outlier features, ascending.
    pub fn outliers(&self) -> &[u32] {
        &self.outliers
    }

    pub(crate) fn rank(&self, rank: usize) -> Option<PaperRow<'_>> {
        self.ranks.get(rank).map(|table| PaperRow {
            steps: &table.steps,
            inv_steps: &table.inv_steps,
            outliers: &self.outliers,
            displaced: &self.displaced,
            dead: &table.dead,
        })
    }
}

impl RankTable {
    fn new(rank: usize, features: usize, ranges: Vec<f32>, outliers: &[u32]) -> Result<Self, PaperTablesError> {
        if ranges.len() != features {
            return Err(PaperTablesError::FeatureCount {
                rank,
                expected: features,
                got: ranges.len(),
            });
        }
        if let Some(feature) = ranges.iter().position(|range| !(0.0..=MAX_RANGE).contains(range)) {
            return Err(PaperTablesError::Range {
                rank,
                feature,
                got: ranges[feature],
            });
        }
        let mut steps = ranges;
        for step in &mut steps {
            *step /= scalar::PAPER_HIGHEST;
            if *step < f32::MIN_POSITIVE {
                *step = 0.0;
            }
        }
        // An outlier's own code slot, where it has one, then quantizes to 0, decodes to 0, and never counts as clipped.
        let mut remaining = outliers.iter().peekable();
        let mut dead = Vec::new();
        for (feature, step) in (0u32..).zip(&mut steps) {
            if remaining.next_if_eq(&&feature).is_some() {
                *step = 0.0;
            } else if *step == 0.0 {
                dead.push(feature);
            }
        }
        let inv_steps = steps
            .iter()
            .map(|&step| if step == 0.0 { 0.0 } else { 1.0 / step })
            .collect();
        Ok(Self { steps, inv_steps, dead })
    }
}

/// See [`PaperRow::displaced`].
fn displaced(features: usize, outliers: &[u32]) -> Vec<u32> {
    let slots = features - outliers.len();
    let below = outliers.partition_point(|&o| (o as usize) < slots);
    let mut tail_outliers = outliers[below..].iter().peekable();
    (slots..features)
        .map(|feature| feature as u32)
        .filter(|feature| tail_outliers.next_if_eq(&feature).is_none())
        .collect()
}

fn check_outliers(features: usize, outliers: &[u32]) -> Result<(), PaperTablesError> {
    if outliers.len() > features {
        return Err(PaperTablesError::TooManyOutliers {
            features,
            got: outliers.len(),
        });
    }
    let mut previous = None;
    for (position, &got) in outliers.iter().enumerate() {
        if let Some(previous) = previous.filter(|&previous| previous >= got) {
            return Err(PaperTablesError::OutliersUnsorted {
                position,
                previous,
                got,
            });
        }
        if got as usize >= features {
            return Err(PaperTablesError::OutlierOutOfRange {
                position,
                features,
                got,
            });
        }
        previous = Some(got);
    }
    Ok(())
}

/// Row: E - k codes of 4 bits, two to a byte, then k BF16.
#[derive(Debug, Clone)]
pub struct Paper {
    tables: PaperTables,
    row_len: usize,
    level: Level,
    splits: Splits,
}

impl Paper {
    pub fn new(tables: PaperTables) -> Self {
        let k = tables.outliers.len();
        let row_len = scalar::plane_len(tables.features - k) + 2 * k;
        Self {
            tables,
            row_len,
            level: Level::best(),
            splits: Splits::default(),
        }
    }

    /// The same codec on other instructions: the same bits, at another speed.
    #[must_use]
    pub fn with_level(self, level: Level) -> Self {
        Self {
            level,
            splits: Splits::default(),
            ..self
        }
    }

    pub fn tables(&self) -> &PaperTables {
        &self.tables
    }
}

impl Rows for Paper {
    type Table<'a> = PaperRow<'a>;

    fn table(&self, rank: usize) -> Result<PaperRow<'_>, CodecError> {
        let ranks = self.tables.ranks();
        self.tables.rank(rank).ok_or(CodecError::UnknownRank { rank, ranks })
    }

    fn row_len(&self) -> usize {
        self.row_len
    }

    fn encode_row<T: Element>(&self, table: &PaperRow<'_>, values: &[T], row: &mut [u8]) -> EncodeStats {
        self.level.paper_encode_row(table, values, row)
    }

    fn decode_row(&self, table: &PaperRow<'_>, row: &[u8], onto: Onto, sum: &mut [f32]) -> Result<(), BadRow> {
        Ok(self.level.paper_decode_row(table, row, onto, sum)?)
    }
}

impl Codec for Paper {
    fn name(&self) -> &'static str {
        CodecKind::Paper.name()
    }

    fn tag(&self) -> u8 {
        CodecKind::Paper.tag()
    }

    fn features(&self) -> usize {
        self.tables.features
    }

    fn payload_len(&self, tokens: usize, _dtype: Dtype) -> usize {
        tokens.saturating_mul(self.row_len)
    }

    fn encode(&self, rank: usize, values: Values<'_>, payload: &mut [u8]) -> EncodeStats {
        rows::encode(self, rank, values, payload)
    }

    fn decode_accumulate(&self, rank: usize, payload: &[u8], dtype: Dtype, sum: &mut [f32]) -> Result<(), CodecError> {
        rows::decode(self, rank, payload, dtype, Onto::Sum, sum)
    }

    fn decode_first(&self, rank: usize, payload: &[u8], dtype: Dtype, sum: &mut [f32]) -> Result<(), CodecError> {
        rows::decode(self, rank, payload, dtype, Onto::Zero, sum)
    }

    fn error_bound(&self, rank: usize, row: &[f32], bound: &mut [f32]) {
        assert_one_row(self, row, bound);
        let table = self.own_table(rank);
        for ((bound, &x), &step) in bound.iter_mut().zip(row).zip(table.steps) {
            *bound = bound::of_code(x, step, scalar::PAPER_LOWEST, scalar::PAPER_HIGHEST);
        }
        for &outlier in table.outliers {
            bound[outlier as usize] = bound::of_bf16(row[outlier as usize]);
        }
    }

    fn split(&self, ways: usize) -> Option<Split> {
        let part = |start, end| {
            let part = Self::new(self.tables.slice(start, end)).with_level(self.level);
            Box::new(part) as Box<dyn Codec>
        };
        Some(self.splits.get(self.tables.features, ways, part))
    }

    fn paper_tables(&self) -> Option<&PaperTables> {
        Some(&self.tables)
    }
}
