//! Adding raw values in f32, and rounding a finished sum once to its dtype.

use half::slice::HalfFloatSliceExt;

use crate::codec::{round_to_bf16, Dtype, Values, ValuesMut};

/// Elements and dtype of an output.
pub(super) fn describe(output: &ValuesMut<'_>) -> (usize, Dtype) {
    match output {
        ValuesMut::F32(v) => (v.len(), Dtype::F32),
        ValuesMut::Bf16(v) => (v.len(), Dtype::Bf16),
        ValuesMut::F16(v) => (v.len(), Dtype::F16),
    }
}

/// Copies `input`; lengths and dtypes are checked. A different dtype cannot occur and copies nothing.
pub(super) fn copy(input: Values<'_>, output: &mut ValuesMut<'_>) {
    match (input, output) {
        (Values::F32(from), ValuesMut::F32(to)) => to.copy_from_slice(from),
        (Values::Bf16(from), ValuesMut::Bf16(to)) => to.copy_from_slice(from),
        (Values::F16(from), ValuesMut::F16(to)) => to.copy_from_slice(from),
        _ => debug_assert!(false, "dtypes were checked"),
    }
}

/// Rounds `sum` to elements `start..` of `output`, to nearest even.
pub(crate) fn round(sum: &[f32], output: &mut ValuesMut<'_>, start: usize) {
    let end = start + sum.len();
    match output {
        ValuesMut::F32(to) => to[start..end].copy_from_slice(sum),
        ValuesMut::Bf16(to) => round_to_bf16(sum, &mut to[start..end]),
        // One at a time, each would look whether the processor has the instruction.
        ValuesMut::F16(to) => to[start..end].convert_from_f32_slice(sum),
    }
}

/// Adds `values` to `sum`, exactly.
pub(super) fn add_values(values: Values<'_>, sum: &mut [f32]) {
    match values {
        Values::F32(v) => sum.iter_mut().zip(v).for_each(|(sum, x)| *sum += *x),
        // A BF16 is the upper half of an f32; `half` converts one at a time with a test for NaN.
        Values::Bf16(v) => sum
            .iter_mut()
            .zip(v)
            .for_each(|(sum, x)| *sum += f32::from_bits(u32::from(x.to_bits()) << 16)),
        Values::F16(v) => sum.iter_mut().zip(v).for_each(|(sum, x)| *sum += x.to_f32()),
    }
}

/// NaN or infinite elements.
pub(super) fn count_nonfinite(values: Values<'_>) -> u64 {
    match values {
        Values::F32(v) => v.iter().map(|x| u64::from(!x.is_finite())).sum(),
        Values::Bf16(v) => count_16(v, |x| x.to_bits() & 0x7F80 == 0x7F80),
        Values::F16(v) => count_16(v, |x| x.to_bits() & 0x7C00 == 0x7C00),
    }
}

/// With counters as narrow as the elements, in blocks that cannot overflow them: vectors of 16 bits. Nothing is sent before
/// a raw message has been looked through.
fn count_16<T>(values: &[T], nonfinite: impl Fn(&T) -> bool) -> u64 {
    let of_block = |block: &[T]| block.iter().map(|x| u16::from(nonfinite(x))).sum::<u16>();
    values.chunks(4 << 10).map(|block| u64::from(of_block(block))).sum()
}

pub(super) fn as_bytes(values: Values<'_>) -> &[u8] {
    match values {
        Values::F32(v) => bytemuck::cast_slice(v),
        Values::Bf16(v) => bytemuck::cast_slice(v),
        Values::F16(v) => bytemuck::cast_slice(v),
    }
}

pub(super) fn as_bytes_mut<'a>(values: &'a mut ValuesMut<'_>) -> &'a mut [u8] {
    match values {
        ValuesMut::F32(v) => bytemuck::cast_slice_mut(v),
        ValuesMut::Bf16(v) => bytemuck::cast_slice_mut(v),
        ValuesMut::F16(v) => bytemuck::cast_slice_mut(v),
    }
}
