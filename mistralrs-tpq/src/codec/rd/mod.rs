//! `rd`: each feature gets the bits that lower the error most, from {0, 1, 2, 3, 4, 5, 6, 8, 16}, under an average that all
//! side information counts against.
//!
//! A row is divided by its root mean square, sent as BF16 (16 bits a token): static steps then fit loud and quiet tokens
//! alike. Steps and bits per feature and rank come from calibration (`calibrate::allocate`). A feature of 16 bits travels as
//! BF16 as it is, one of 0 bits not at all. Rows of all ranks have one length: that of the longest, the others are padded.

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "what AVX-512 looks up"))]
pub(super) mod cells;
pub(crate) mod codebook;
pub(crate) mod layout;
pub(super) mod row;
pub(super) mod scratch;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "what AVX-512 looks up"))]
pub(super) mod spans;

use std::cell::RefCell;

use self::layout::{Layout, Planes, SENT};
use self::scratch::Scratch;
use super::rows::{self, BadRow, Rows};
use super::simd::Onto;
use super::values::Element;
use super::{assert_one_row, bound};
use super::{Codec, CodecError, CodecKind, Dtype, EncodeStats, Level, Values};

pub use codebook::CLASSES;
pub(crate) use layout::GAIN_LEN;
pub(crate) use row::level;

/// Steps beyond this are refused: the largest of a class of 1 bit in a row of 2^20 features of which one is not zero.
const MAX_STEP: f32 = 1024.0;

/// One rank's features: bits of each, from [`CLASSES`], and steps in units of the token's gain (unused for 0 and 16 bits).
#[derive(Debug, Clone, PartialEq)]
pub struct RdRank {
    pub bits: Vec<u8>,
    pub steps: Vec<f32>,
}

/// Bits and steps of one reduce site, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct RdTables {
    features: usize,
    row_len: usize,
    ranks: Vec<Layout>,
}

/// Why bits and steps cannot be used: a defect of the manifest.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum RdTablesError {
    #[error("no bits: expected one list per rank")]
    NoRanks,
    #[error("rank {rank} has bits of {bits} and steps of {steps} features, expected {expected}")]
    FeatureCount {
        rank: usize,
        expected: usize,
        bits: usize,
        steps: usize,
    },
    #[error("rank {rank}, feature {feature}: {got} bits, expected one of {CLASSES:?}")]
    Bits { rank: usize, feature: usize, got: u8 },
    #[error("rank {rank}, feature {feature}: step {got}, expected 2^-100 to {MAX_STEP}")]
    Step { rank: usize, feature: usize, got: f32 },
}

impl RdTables {
    /// # Errors
    /// See [`RdTablesError`].
    pub fn new(ranks: &[RdRank]) -> Result<Self, RdTablesError> {
        let features = ranks.first().ok_or(RdTablesError::NoRanks)?.bits.len();
        let ranks = ranks
            .iter()
            .enumerate()
            .map(|(rank, table)| Layout::new(rank, features, table))
            .collect::<Result<Vec<_>, _>>()?;
        let row_len = ranks.iter().map(|layout| layout.planes().end).max();
        Ok(Self {
            features,
            row_len: row_len.unwrap_or(0),
            ranks,
        })
    }

    pub(crate) fn features(&self) -> usize {
        self.features
    }

    /// Bytes of every rank's rows.
    pub(crate) fn longest_row(&self) -> usize {
        self.row_len
    }

    /// By rank.
    pub(crate) fn layouts(&self) -> &[Layout] {
        &self.ranks
    }

    /// Bytes of a row whose features have these bits; classes unknown count as 0 bits.
    pub fn row_len(bits: impl IntoIterator<Item = u8>) -> usize {
        let mut counts = [0; SENT.len()];
        for bits in bits {
            if let Some(class) = SENT.iter().position(|class| *class == bits) {
                counts[class] += 1;
            }
        }
        Planes::new(&counts).end
    }
}

/// Row: gain, then the features by class; see `row.rs`.
#[derive(Debug, Clone)]
pub struct Rd {
    tables: RdTables,
    level: Level,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Rd {
    pub fn new(tables: RdTables) -> Self {
        let level = Level::best();
        Self { tables, level }
    }

    /// The same codec on other instructions: the same bits, at another speed.
    #[must_use]
    pub fn with_level(self, level: Level) -> Self {
        Self { level, ..self }
    }
}

impl Rows for Rd {
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
        SCRATCH.with_borrow_mut(|scratch| self.level.rd_encode_row(layout, values, scratch, row))
    }

    /// Two multiplies and one add an element: the step is scaled by the token's gain first.
    fn decode_row(&self, layout: &&Layout, row: &[u8], onto: Onto, sum: &mut [f32]) -> Result<(), BadRow> {
        Ok(SCRATCH.with_borrow_mut(|scratch| self.level.rd_decode_row(layout, row, scratch, onto, sum))?)
    }
}

impl Codec for Rd {
    fn name(&self) -> &'static str {
        CodecKind::Rd.name()
    }

    fn tag(&self) -> u8 {
        CodecKind::Rd.tag()
    }

    fn features(&self) -> usize {
        self.tables.features
    }

    fn rd_tables(&self) -> Option<&RdTables> {
        Some(&self.tables)
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

    fn decode_first(&self, rank: usize, payload: &[u8], dtype: Dtype, sum: &mut [f32]) -> Result<(), CodecError> {
        rows::decode(self, rank, payload, dtype, Onto::Zero, sum)
    }

    /// Inside the levels at most half the widest gap, beyond them the distance to the highest; a feature of 0 bits loses all
    /// of its value.
    fn error_bound(&self, rank: usize, row: &[f32], bound: &mut [f32]) {
        assert_one_row(self, row, bound);
        let layout = self.own_table(rank);
        let gain = row::gain(row).to_f32();
        bound
            .iter_mut()
            .zip(row)
            .for_each(|(bound, x)| *bound = if x.is_finite() { x.abs() } else { f32::INFINITY });
        for class in layout.classes() {
            let slots = class.order.as_flattened().iter().zip(class.steps.as_flattened());
            for (&feature, &step) in slots.take(class.count) {
                let x = row[feature as usize];
                bound[feature as usize] = match class.bits {
                    16 => bound::of_bf16(x),
                    bits => bound::of_level(
                        x,
                        f64::from(step) * f64::from(gain),
                        codebook::level(bits, codebook::magnitudes(bits) - 1),
                        codebook::worst_inside(bits),
                    ),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One feature of 0 bits makes the root mean square exactly 1, so that positions are the values over the step.
    #[test]
    fn positions_on_a_threshold_are_rounded_alike_on_every_level() {
        const STEP: f32 = 1.0 / 256.0;
        for bits in CLASSES.into_iter().filter(|bits| (1..=8).contains(bits)) {
            let levels = (0..=codebook::magnitudes(bits)).map(|index| index as f32);
            let marks = codebook::thresholds(bits).into_iter().filter(|mark| mark.is_finite());
            let marks = marks.chain(levels).chain([codebook::clip(bits)]);
            let near = marks.flat_map(|x| [x.next_down(), x, x.next_up()]);
            let mut row: Vec<f32> = near.flat_map(|x| [x * STEP, -x * STEP]).collect();
            let energy: f32 = row.iter().map(|x| x * x).sum();
            row.push(((row.len() + 1) as f32 - energy).sqrt());
            let mut classes = vec![bits; row.len()];
            classes[row.len() - 1] = 0;
            let rank = RdRank {
                bits: classes,
                steps: vec![STEP; row.len()],
            };
            let codec = Rd::new(RdTables::new(&[rank]).unwrap());
            let encoded = |level: Level| {
                let codec = codec.clone().with_level(level);
                let mut payload = vec![0; codec.payload_len(1, Dtype::F32)];
                let stats = codec.encode(0, Values::F32(&row), &mut payload);
                (payload, stats)
            };
            let expected = encoded(Level::scalar());
            assert_eq!(expected.0[..2], [0x80, 0x3f], "the gain is 1");
            for level in Level::all() {
                assert_eq!(encoded(level), expected, "{bits} bits, {}", level.name());
            }
        }
    }
}
