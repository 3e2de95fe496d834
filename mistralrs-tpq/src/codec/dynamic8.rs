//! `dynamic8`: as [`Dynamic`](super::Dynamic) with codes of 8 bits, 8.5 bits a value. For sums of several ranks, which
//! no calibrated range of one rank fits: the second stage of a two-shot exchange.
//!
//! The scale is the extreme of a group of 32, with its sign, divided by -128 and rounded to BF16.

use super::scalar::BadWord;
use super::values::Element;
use super::{assert_one_row, bound, rows_to_decode, rows_to_encode};
use super::{Codec, CodecError, Dtype, EncodeStats, Level, Values};

/// The tag on the wire. Not a [`CodecKind`](super::CodecKind): nobody chooses it for partial sums.
const TAG: u8 = 16;

/// Row: E codes of 8 bits (two's complement), then ceil(E / 32) BF16 scales. The last group holds what is left.
#[derive(Debug, Clone)]
pub struct Dynamic8 {
    features: usize,
    row_len: usize,
    level: Level,
}

impl Dynamic8 {
    /// Takes no memory of its own: made anew where it is needed.
    pub fn new(features: usize) -> Self {
        Self {
            features,
            row_len: features + 2 * features.div_ceil(kernel::GROUP),
            level: Level::best(),
        }
    }

    /// The same codec on other instructions: the same bits, at another speed.
    #[must_use]
    pub fn with_level(self, level: Level) -> Self {
        Self { level, ..self }
    }

    fn encode_rows<T: Element>(&self, values: &[T], payload: &mut [u8]) -> EncodeStats {
        let mut stats = EncodeStats::default();
        if self.features == 0 {
            return stats;
        }
        for (values, row) in values
            .chunks_exact(self.features)
            .zip(payload.chunks_exact_mut(self.row_len))
        {
            stats.nonfinite += self.level.dynamic8_encode_row(values, row);
        }
        stats
    }
}

impl Codec for Dynamic8 {
    fn name(&self) -> &'static str {
        "dynamic8"
    }

    fn tag(&self) -> u8 {
        TAG
    }

    fn features(&self) -> usize {
        self.features
    }

    fn payload_len(&self, tokens: usize, _dtype: Dtype) -> usize {
        tokens.saturating_mul(self.row_len)
    }

    fn encode(&self, _rank: usize, values: Values<'_>, payload: &mut [u8]) -> EncodeStats {
        rows_to_encode(self, values, payload);
        match values {
            Values::F32(v) => self.encode_rows(v, payload),
            Values::Bf16(v) => self.encode_rows(v, payload),
            Values::F16(v) => self.encode_rows(v, payload),
        }
    }

    fn decode_accumulate(&self, rank: usize, payload: &[u8], dtype: Dtype, sum: &mut [f32]) -> Result<(), CodecError> {
        let tokens = rows_to_decode(self, rank, payload, dtype, sum)?;
        if tokens == 0 {
            return Ok(());
        }
        let rows = payload
            .chunks_exact(self.row_len)
            .zip(sum.chunks_exact_mut(self.features));
        for (token, (row, sum)) in rows.enumerate() {
            let decoded = self.level.dynamic8_decode_row(row, sum);
            decoded.map_err(|BadWord { feature, bits }| CodecError::Content {
                rank,
                token,
                feature,
                bits,
            })?;
        }
        Ok(())
    }

    /// Half of extreme / 128, or about a step for a value close to the extreme with the opposite sign.
    fn error_bound(&self, _rank: usize, row: &[f32], bound: &mut [f32]) {
        // Positions reach 128 and not 8.5, so their f32 arithmetic is off by up to 2^-15 steps: `bound`'s own slack is
        // made for four bits.
        const SLACK_STEPS: f32 = 1.0 / 32768.0;
        assert_one_row(self, row, bound);
        for (values, bounds) in row.chunks(kernel::GROUP).zip(bound.chunks_mut(kernel::GROUP)) {
            let scale = kernel::group_scale(kernel::group_extreme(values)).to_f32();
            for (bound, &x) in bounds.iter_mut().zip(values) {
                let of_code = bound::of_code(x, scale, kernel::LOWEST, kernel::HIGHEST) + scale.abs() * SLACK_STEPS;
                *bound = bound::with_bf16_saturation(x, of_code);
            }
        }
    }
}

/// The specification: plain loops, written so that a compiler turns them into vectors. Every rounding is to nearest even
/// and nothing is fused, so they give the same bits whatever they are compiled for.
pub(super) mod kernel {
    use half::bf16;

    use crate::codec::scalar::{dynamic_input, reciprocal, BadWord};
    use crate::codec::values::Element;

    /// Values that share one scale.
    pub const GROUP: usize = 32;
    pub const LOWEST: f32 = -128.0;
    pub const HIGHEST: f32 = 127.0;
    /// BF16 max / 128: all levels are finite.
    const MAX_SCALE: u16 = bf16::MAX.to_bits() - (7 << 7);
    /// 1.5 * 2^23: adding it rounds to a whole number, ties to even, in the low bits. `f32::round_ties_even` is a call
    /// where the build's baseline has no instruction for it.
    const ROUNDER: f32 = 12_582_912.0;

    /// Returns how many inputs are NaN or infinite.
    #[inline(always)]
    pub fn encode_row<T: Element>(values: &[T], row: &mut [u8]) -> u64 {
        let (codes, scales) = row.split_at_mut(values.len());
        let (groups, rest) = values.as_chunks::<GROUP>();
        let (group_codes, rest_codes) = codes.split_at_mut(groups.len() * GROUP);
        let (scales, last) = scales.as_chunks_mut().0.split_at_mut(groups.len());
        let mut nonfinite = 0;
        let outputs = group_codes.as_chunks_mut::<GROUP>().0.iter_mut().zip(scales);
        for (values, (codes, scale)) in groups.iter().zip(outputs) {
            let (sent, bad) = encode_group(values, codes);
            *scale = sent.to_le_bytes();
            nonfinite += bad;
        }
        if let [scale] = last {
            let (sent, bad) = encode_group(rest, rest_codes);
            *scale = sent.to_le_bytes();
            nonfinite += bad;
        }
        nonfinite
    }

    #[inline(always)]
    fn encode_group<T: Element>(values: &[T], codes: &mut [u8]) -> (bf16, u64) {
        let scale = group_scale(group_extreme(values));
        let inv_scale = reciprocal(scale);
        let mut nonfinite = 0_u32;
        for (code, x) in codes.iter_mut().zip(values) {
            let x = x.to_f32();
            nonfinite += u32::from(!x.is_finite());
            let position = (dynamic_input(x) * inv_scale).clamp(LOWEST, HIGHEST);
            *code = (position + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as u8;
        }
        (scale, u64::from(nonfinite))
    }

    /// The value of largest magnitude; the negative one when two of opposite sign tie.
    #[inline(always)]
    pub fn group_extreme<T: Element>(values: &[T]) -> f32 {
        // As bits, magnitudes order like integers, and a maximum of integers may be taken in any order.
        let magnitude = |x: &T| dynamic_input(x.to_f32()).to_bits() & 0x7fff_ffff;
        let largest = f32::from_bits(values.iter().map(magnitude).max().unwrap_or(0));
        let negative: u32 = values
            .iter()
            .map(|x| u32::from(dynamic_input(x.to_f32()) == -largest))
            .sum();
        if negative > 0 {
            -largest
        } else {
            largest
        }
    }

    /// `extreme / -128` as BF16; zero when that is zero or subnormal, whose reciprocal may overflow.
    #[inline(always)]
    pub fn group_scale(extreme: f32) -> bf16 {
        let scale = bf16::from_f32(extreme * (-1.0 / 128.0));
        if scale.to_f32().abs() < f32::MIN_POSITIVE {
            bf16::ZERO
        } else {
            scale
        }
    }

    /// Adds a row to `sum` (E). Refuses a scale whose levels are not all finite.
    #[inline(always)]
    pub fn decode_row(row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
        let (codes, scales) = row.split_at(sum.len());
        let groups = codes.chunks(GROUP).zip(sum.chunks_mut(GROUP));
        for (group, (scale, (codes, sum))) in scales.as_chunks().0.iter().zip(groups).enumerate() {
            let bits = u16::from_le_bytes(*scale);
            if bits & 0x7fff > MAX_SCALE {
                let feature = group * GROUP;
                return Err(BadWord { feature, bits });
            }
            let scale = bf16::from_bits(bits).to_f32();
            for (sum, code) in sum.iter_mut().zip(codes) {
                *sum += f32::from(*code as i8) * scale;
            }
        }
        Ok(())
    }
}
