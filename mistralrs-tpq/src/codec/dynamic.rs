//! `dynamic`: int4 in groups of 32 with a scale from the values themselves. It needs no calibration and works on any model
//! on day one, for 4.5 bits a value.
//!
//! The scale is the extreme of the group, with its sign, divided by -8, as in QuickReduce's INT4 codec: the extreme lands
//! on code -8, so 16 levels are in use, not 15. QuickReduce sends the scale as FP16, which overflows from a group extreme
//! of 8 * 65504 on; here it is BF16.

use super::scalar::{self, BadWord, GROUP};
use super::split::{Split, Splits};
use super::values::Element;
use super::{assert_one_row, bound, rows_to_decode, rows_to_encode};
use super::{Codec, CodecError, CodecKind, Dtype, EncodeStats, Level, Values};

/// Row: E codes of 4 bits, two to a byte, then ceil(E / 32) BF16 scales. The last group holds what is left of the row.
#[derive(Debug, Clone)]
pub struct Dynamic {
    features: usize,
    row_len: usize,
    level: Level,
    splits: Splits,
}

impl Dynamic {
    pub fn new(features: usize) -> Self {
        let row_len = scalar::plane_len(features) + 2 * features.div_ceil(GROUP);
        Self {
            features,
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

    fn encode_rows<T: Element>(&self, values: &[T], payload: &mut [u8]) -> EncodeStats {
        let mut stats = EncodeStats::default();
        if self.features == 0 {
            return stats;
        }
        for (values, row) in values
            .chunks_exact(self.features)
            .zip(payload.chunks_exact_mut(self.row_len))
        {
            stats += self.level.dynamic_encode_row(values, row);
        }
        stats
    }
}

impl Codec for Dynamic {
    fn name(&self) -> &'static str {
        CodecKind::Dynamic.name()
    }

    fn tag(&self) -> u8 {
        CodecKind::Dynamic.tag()
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
            let decoded = self.level.dynamic_decode_row(row, sum);
            decoded.map_err(|BadWord { feature, bits }| CodecError::Content {
                rank,
                token,
                feature,
                bits,
            })?;
        }
        Ok(())
    }

    /// The other values of a group set its step, and with it the error of each: at most half of (extreme / 8), or a whole
    /// step for a value close to the extreme with the opposite sign, which has no level of its own.
    fn error_bound(&self, _rank: usize, row: &[f32], bound: &mut [f32]) {
        assert_one_row(self, row, bound);
        for (values, bounds) in row.chunks(GROUP).zip(bound.chunks_mut(GROUP)) {
            let scale = scalar::group_scale(scalar::group_extreme(values)).to_f32();
            for (bound, &x) in bounds.iter_mut().zip(values) {
                let of_code = bound::of_code(x, scale, scalar::DYNAMIC_LOWEST, scalar::DYNAMIC_HIGHEST);
                *bound = bound::with_bf16_saturation(x, of_code);
            }
        }
    }

    fn split(&self, ways: usize) -> Option<Split> {
        let part = |start, end| Box::new(Self::new(end - start).with_level(self.level)) as Box<dyn Codec>;
        Some(self.splits.get(self.features, ways, part))
    }
}
