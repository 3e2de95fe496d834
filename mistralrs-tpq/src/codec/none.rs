//! `none`: the elements as they are. The lossless reference, and the baseline of every table.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{assert_one_row, rows_to_decode, rows_to_encode};
use super::{Codec, CodecError, CodecKind, Dtype, EncodeStats, Values};

/// Elements handled at a time where a pass over all of them would leave the cache.
const BLOCK: usize = 1024;

/// Row: `features` elements of the dtype, little endian, NaN and infinity included.
#[derive(Debug, Clone)]
pub struct NoCodec {
    features: usize,
}

impl NoCodec {
    pub const fn new(features: usize) -> Self {
        Self { features }
    }
}

impl Codec for NoCodec {
    fn name(&self) -> &'static str {
        CodecKind::None.name()
    }

    fn tag(&self) -> u8 {
        CodecKind::None.tag()
    }

    fn features(&self) -> usize {
        self.features
    }

    fn payload_len(&self, tokens: usize, dtype: Dtype) -> usize {
        tokens.saturating_mul(self.features).saturating_mul(dtype.size())
    }

    fn encode(&self, _rank: usize, values: Values<'_>, payload: &mut [u8]) -> EncodeStats {
        rows_to_encode(self, values, payload);
        let nonfinite = match values {
            Values::F32(v) => copy_f32(v, payload),
            Values::Bf16(v) => copy_16(v, payload, bf16::to_bits, bf16::INFINITY.to_bits()),
            Values::F16(v) => copy_16(v, payload, f16::to_bits, f16::INFINITY.to_bits()),
        };
        EncodeStats { clipped: 0, nonfinite }
    }

    fn decode_accumulate(&self, rank: usize, payload: &[u8], dtype: Dtype, sum: &mut [f32]) -> Result<(), CodecError> {
        rows_to_decode(self, rank, payload, dtype, sum.len())?;
        match dtype {
            Dtype::F32 => add(sum, payload.as_chunks().0, f32::from_le_bytes),
            Dtype::Bf16 => add(sum, payload.as_chunks().0, |bytes| {
                f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
            }),
            Dtype::F16 => add_f16(sum, payload),
        }
        Ok(())
    }

    fn error_bound(&self, _rank: usize, row: &[f32], bound: &mut [f32]) {
        assert_one_row(self, row, bound);
        bound.fill(0.0);
    }
}

/// Copies, and counts the elements whose exponent bits are all ones: NaN and infinity.
fn copy_f32(values: &[f32], payload: &mut [u8]) -> u64 {
    const EXPONENT: u32 = f32::INFINITY.to_bits();
    let mut nonfinite = 0;
    for (bytes, x) in payload.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = x.to_le_bytes();
        nonfinite += u64::from(x.to_bits() & EXPONENT == EXPONENT);
    }
    nonfinite
}

/// As [`copy_f32`], for both 16-bit types. A 64-bit counter in one loop, as there, takes twice the time for BF16 (4.8 ms
/// against 2.6 ms for 8 Mi values); a 16-bit counter needs blocks in which it cannot overflow.
fn copy_16<T: Copy>(values: &[T], payload: &mut [u8], to_bits: impl Fn(T) -> u16, exponent: u16) -> u64 {
    let mut nonfinite = 0;
    for (bytes, values) in payload.chunks_mut(BLOCK * 2).zip(values.chunks(BLOCK)) {
        for (bytes, &x) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = to_bits(x).to_le_bytes();
        }
        nonfinite += u64::from(
            values
                .iter()
                .map(|&x| u16::from(to_bits(x) & exponent == exponent))
                .sum::<u16>(),
        );
    }
    nonfinite
}

fn add<const N: usize>(sum: &mut [f32], payload: &[[u8; N]], to_f32: impl Fn([u8; N]) -> f32) {
    for (sum, bytes) in sum.iter_mut().zip(payload) {
        *sum += to_f32(*bytes);
    }
}

/// `half` converts slices with F16C where the processor has it, single elements behind a check each: so in blocks that
/// stay in the first-level cache.
fn add_f16(sum: &mut [f32], payload: &[u8]) {
    let mut halves = [f16::ZERO; BLOCK];
    let mut floats = [0.0; BLOCK];
    for (sum, bytes) in sum.chunks_mut(BLOCK).zip(payload.chunks(BLOCK * 2)) {
        let (halves, floats) = (&mut halves[..sum.len()], &mut floats[..sum.len()]);
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(floats);
        for (sum, x) in sum.iter_mut().zip(floats) {
            *sum += *x;
        }
    }
}
