//! `dynamic`: groups of 32 with a scale from the values themselves. It needs no calibration and works on any model on day
//! one. Codes of 4 bits make 4.5 bits a value; those of 8 bits, 8.5 a value, are for sums of several ranks, which no
//! calibrated range of one rank fits: the second stage of an exchange.
//!
//! The scale is the extreme of the group, with its sign, divided by -8 (-128), as in QuickReduce's INT4 codec: the extreme
//! lands on the lowest code, so 16 (256) levels are in use, not one less. QuickReduce sends the scale as FP16, which
//! overflows from a group extreme of 8 * 65504 on; here it is BF16.

use super::rows::{self, BadRow, Rows};
use super::scalar::{self, Width, GROUP};
use super::simd::Onto;
use super::split::{Split, Splits};
use super::values::Element;
use super::{assert_one_row, bound};
use super::{Codec, CodecError, CodecKind, Dtype, EncodeStats, Level, Values, ValuesMut};

/// Row: E codes, then ceil(E / 32) BF16 scales. Codes of 4 bits are two to a byte. The last group holds what is left of
/// the row.
#[derive(Debug, Clone)]
pub struct Dynamic {
    features: usize,
    row_len: usize,
    width: Width,
    level: Level,
    splits: Splits,
}

/// The tag of the codec with 8 bits. Not a [`CodecKind`]: nobody chooses it for partial sums.
const WIDE_TAG: u8 = 16;

impl Dynamic {
    /// Codes of 4 bits. Takes no memory of its own, like [`Dynamic::wide`]: made anew where it is needed.
    pub fn new(features: usize) -> Self {
        Self::with_width(features, Width::Four)
    }

    /// Codes of 8 bits: `dynamic8`.
    pub fn wide(features: usize) -> Self {
        Self::with_width(features, Width::Eight)
    }

    fn with_width(features: usize, width: Width) -> Self {
        Self {
            features,
            row_len: width.codes_len(features) + 2 * features.div_ceil(GROUP),
            width,
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

    /// Decodes `rank`'s payload, each value rounded once to `values` (`tokens * features` elements): what
    /// [`Codec::decode_first`] gives, without the way through f32 in memory.
    ///
    /// # Errors
    /// As [`Codec::decode_accumulate`].
    ///
    /// # Panics
    /// When `values` is not whole rows: a caller's bug.
    pub fn decode_rounded(&self, rank: usize, payload: &[u8], values: ValuesMut<'_>) -> Result<(), CodecError> {
        match values {
            ValuesMut::F32(values) => self.decode_elements(rank, payload, values),
            ValuesMut::Bf16(values) => self.decode_elements(rank, payload, values),
            ValuesMut::F16(values) => self.decode_elements(rank, payload, values),
        }
    }

    fn decode_elements<T: Element>(&self, rank: usize, payload: &[u8], values: &mut [T]) -> Result<(), CodecError> {
        rows::decode_each(self, rank, payload, T::DTYPE, values, |row, values| {
            Ok(self.level.dynamic_decode_rounded_row(self.width, row, values)?)
        })
    }
}

impl Rows for Dynamic {
    type Table<'a> = ();

    fn table(&self, _rank: usize) -> Result<(), CodecError> {
        Ok(())
    }

    fn row_len(&self) -> usize {
        self.row_len
    }

    fn encode_row<T: Element>(&self, (): &(), values: &[T], row: &mut [u8]) -> EncodeStats {
        self.level.dynamic_encode_row(self.width, values, row)
    }

    fn decode_row(&self, (): &(), row: &[u8], onto: Onto, sum: &mut [f32]) -> Result<(), BadRow> {
        Ok(self.level.dynamic_decode_row(self.width, row, onto, sum)?)
    }
}

impl Codec for Dynamic {
    fn name(&self) -> &'static str {
        match self.width {
            Width::Four => CodecKind::Dynamic.name(),
            Width::Eight => "dynamic8",
        }
    }

    fn tag(&self) -> u8 {
        match self.width {
            Width::Four => CodecKind::Dynamic.tag(),
            Width::Eight => WIDE_TAG,
        }
    }

    fn features(&self) -> usize {
        self.features
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

    /// The other values of a group set its step, and with it the error of each: at most half of (extreme / 8 or 128), or a
    /// whole step for a value close to the extreme with the opposite sign, which has no level of its own.
    fn error_bound(&self, _rank: usize, row: &[f32], bound: &mut [f32]) {
        assert_one_row(self, row, bound);
        let slack_steps = match self.width {
            Width::Four => 0.0,
            // Positions reach 128 and not 8.5, so their f32 arithmetic is off by up to 2^-15 steps: `bound`'s own slack is
            // made for four bits.
            Width::Eight => 1.0 / 32768.0,
        };
        for (values, bounds) in row.chunks(GROUP).zip(bound.chunks_mut(GROUP)) {
            let scale = self.width.scale(scalar::group_extreme(values)).to_f32();
            let slack = scale.abs() * slack_steps;
            for (bound, &x) in bounds.iter_mut().zip(values) {
                let of_code = bound::of_code(x, scale, self.width.lowest(), self.width.highest()) + slack;
                *bound = bound::with_bf16_saturation(x, of_code);
            }
        }
    }

    fn split(&self, ways: usize) -> Option<Split> {
        let part = |start, end| {
            let part = Self::with_width(end - start, self.width).with_level(self.level);
            Box::new(part) as Box<dyn Codec>
        };
        Some(self.splits.get(self.features, ways, part))
    }
}
