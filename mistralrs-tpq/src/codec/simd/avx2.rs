//! AVX2 kernels: 32 values a step, as four vectors of eight. Blocks with a NaN or an infinity, and what is left of a row
//! after its last whole block, go through `scalar.rs`.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;

use crate::codec::scalar::{self, BadWord, PaperRow, BIAS, GROUP};
use crate::codec::values::{Dtype, Element};
use crate::codec::EncodeStats;

/// Values a step; also the group of `dynamic`.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = BLOCK / 2;
const _: () = assert!(BLOCK == GROUP);

const MAGNITUDE: i32 = 0x7fff_ffff;
const MAX_FINITE: i32 = f32::MAX.to_bits() as i32;
const MAX_BF16: i32 = (bf16::MAX.to_bits() as i32) << 16;

/// Proof that the processor has AVX2, and F16C, which every processor with AVX2 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    pub fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }

    pub fn paper_encode_row<T: Element>(self, table: &PaperRow<'_>, values: &[T], row: &mut [u8]) -> EncodeStats {
        // SAFETY: `self` exists only where `new` has found both features.
        unsafe { paper_encode_row(table, values, row) }
    }

    pub fn paper_decode_row(self, table: &PaperRow<'_>, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
        // SAFETY: `self` exists only where `new` has found both features.
        unsafe { paper_decode_row(table, row, sum) }
    }

    pub fn dynamic_encode_row<T: Element>(self, values: &[T], row: &mut [u8]) -> EncodeStats {
        // SAFETY: `self` exists only where `new` has found both features.
        unsafe { dynamic_encode_row(values, row) }
    }

    pub fn dynamic_decode_row(self, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
        // SAFETY: `self` exists only where `new` has found both features.
        unsafe { dynamic_decode_row(row, sum) }
    }
}

// ---- paper ----

#[target_feature(enable = "avx2,f16c")]
fn paper_encode_row<T: Element>(table: &PaperRow<'_>, values: &[T], row: &mut [u8]) -> EncodeStats {
    let slots = table.slots();
    let (plane, outliers) = row.split_at_mut(scalar::plane_len(slots));
    let mut stats = paper_encode_plane(&values[..slots], &table.inv_steps[..slots], plane);
    stats += scalar::paper_patch_row(table, values, plane, outliers);
    stats
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn paper_encode_plane<T: Element>(values: &[T], inv_steps: &[f32], plane: &mut [u8]) -> EncodeStats {
    let (values, rest) = values.as_chunks::<BLOCK>();
    let (inv_steps, inv_rest) = inv_steps.as_chunks::<BLOCK>();
    let (plane, plane_rest) = plane.split_at_mut(values.len() * BLOCK_BYTES);

    let mut stats = EncodeStats::default();
    let mut clipped = _mm256_setzero_si256();
    for ((values, inv_steps), codes) in values.iter().zip(inv_steps).zip(plane.as_chunks_mut().0) {
        let x = load(values);
        if any_magnitude_above(&x, MAX_FINITE) {
            stats += scalar::paper_encode_plane(values, inv_steps, codes);
            continue;
        }
        let inv_steps = load(inv_steps);
        let mut positions = [_mm256_setzero_si256(); 4];
        for i in 0..4 {
            let y = _mm256_mul_ps(x[i], inv_steps[i]);
            let inside = _mm256_min_ps(
                _mm256_max_ps(y, _mm256_set1_ps(-scalar::PAPER_CLIP)),
                _mm256_set1_ps(scalar::PAPER_CLIP),
            );
            let outside = _mm256_cmp_ps::<_CMP_NEQ_UQ>(inside, y);
            clipped = _mm256_sub_epi32(clipped, _mm256_castps_si256(outside));
            positions[i] = _mm256_cvtps_epi32(inside);
        }
        *codes = pack(&positions, scalar::PAPER_LOWEST as i8, scalar::PAPER_HIGHEST as i8);
    }
    stats.clipped += lanes(clipped).into_iter().map(u64::from).sum::<u64>();
    stats += scalar::paper_encode_plane(rest, inv_rest, plane_rest);
    stats
}

#[target_feature(enable = "avx2,f16c")]
fn paper_decode_row(table: &PaperRow<'_>, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
    let slots = table.slots();
    let (plane, outliers) = row.split_at(scalar::plane_len(slots));
    paper_decode_plane(plane, &table.steps[..slots], &mut sum[..slots]);
    scalar::paper_unpatch_row(table, plane, outliers, sum)
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn paper_decode_plane(plane: &[u8], steps: &[f32], sum: &mut [f32]) {
    let (steps, steps_rest) = steps.as_chunks::<BLOCK>();
    let (sum, sum_rest) = sum.as_chunks_mut::<BLOCK>();
    let (plane, plane_rest) = plane.split_at(steps.len() * BLOCK_BYTES);
    for ((codes, steps), sum) in plane.as_chunks().0.iter().zip(steps).zip(sum) {
        accumulate(codes, load(steps), sum);
    }
    scalar::accumulate_plane(plane_rest, steps_rest, sum_rest);
}

// ---- dynamic ----

#[target_feature(enable = "avx2,f16c")]
fn dynamic_encode_row<T: Element>(values: &[T], row: &mut [u8]) -> EncodeStats {
    let (plane, scales) = row.split_at_mut(scalar::plane_len(values.len()));
    let (groups, rest) = values.as_chunks::<BLOCK>();
    let (plane, plane_rest) = plane.split_at_mut(groups.len() * BLOCK_BYTES);
    let (scales, scales_rest) = scales.split_at_mut(groups.len() * 2);

    let mut stats = EncodeStats::default();
    let outputs = plane.as_chunks_mut().0.iter_mut().zip(scales.as_chunks_mut().0);
    for (values, (codes, scale)) in groups.iter().zip(outputs) {
        let sent = dynamic_encode_group(values, codes);
        let sent = sent.unwrap_or_else(|| scalar::dynamic_encode_group(values, codes, &mut stats));
        *scale = sent.to_le_bytes();
    }
    if let [scale] = scales_rest.as_chunks_mut().0 {
        *scale = scalar::dynamic_encode_group(rest, plane_rest, &mut stats).to_le_bytes();
    }
    stats
}

/// `None` for a group that `scalar::dynamic_input` would change, which leaves the codes to the scalar code.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn dynamic_encode_group<T: Element>(values: &[T; BLOCK], codes: &mut [u8; BLOCK_BYTES]) -> Option<bf16> {
    let x = load(values);
    let magnitude = max_magnitude(&x);
    if magnitude > MAX_BF16 {
        return None;
    }
    let magnitude = f32::from_bits(magnitude as u32);
    let lowest = min_value(&x);
    // Without a NaN among them the extreme is one of these two, and a tie takes the negative one, as specified.
    let scale = scalar::group_scale(if lowest == -magnitude { lowest } else { magnitude });
    let inv_scale = _mm256_set1_ps(scalar::reciprocal(scale));
    let mut positions = [_mm256_setzero_si256(); 4];
    for i in 0..4 {
        positions[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], inv_scale));
    }
    *codes = pack(&positions, scalar::DYNAMIC_LOWEST as i8, scalar::DYNAMIC_HIGHEST as i8);
    Some(scale)
}

#[target_feature(enable = "avx2,f16c")]
fn dynamic_decode_row(row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
    let (plane, scales) = row.split_at(scalar::plane_len(sum.len()));
    let (groups, rest) = sum.as_chunks_mut::<BLOCK>();
    let (plane, plane_rest) = plane.split_at(groups.len() * BLOCK_BYTES);
    let count = groups.len();
    let (scales, scales_rest) = scales.as_chunks().0.split_at(count);
    let inputs = plane.as_chunks().0.iter().zip(scales);
    for (group, (sum, (codes, scale))) in groups.iter_mut().zip(inputs).enumerate() {
        let scale = _mm256_set1_ps(scalar::received_scale(*scale, group)?);
        accumulate(codes, [scale; 4], sum);
    }
    if let [scale] = scales_rest {
        scalar::dynamic_decode_group(scalar::received_scale(*scale, count)?, plane_rest, rest);
    }
    Ok(())
}

// ---- lanes ----

/// 32 elements as f32, in order.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load<T: Element>(values: &[T; BLOCK]) -> [__m256; 4] {
    const { assert!(size_of::<T>() == T::DTYPE.size()) };
    let mut x = [_mm256_setzero_ps(); 4];
    for (x, eight) in x.iter_mut().zip(values.as_chunks::<8>().0) {
        let from = eight.as_ptr();
        // SAFETY: `from` points to 8 elements, of a size that the assertion ties to the dtype: 32 bytes in the first arm,
        // 16 in the others. The loads need no alignment.
        *x = unsafe {
            match T::DTYPE {
                Dtype::F32 => _mm256_loadu_ps(from.cast()),
                Dtype::Bf16 => {
                    let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
                }
                Dtype::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
            }
        };
    }
    x
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn lanes(x: __m256i) -> [u32; 8] {
    // SAFETY: both are 32 bytes without padding, and every bit pattern is a `u32`.
    unsafe { std::mem::transmute(x) }
}

/// The bit patterns of the magnitudes, lane by lane the largest of four. As integers they order as the floats do, with
/// infinity and NaN above every number.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn max_magnitudes(x: &[__m256; 4]) -> __m256i {
    let magnitude = _mm256_set1_epi32(MAGNITUDE);
    let [a, b, c, d] = [
        _mm256_and_si256(_mm256_castps_si256(x[0]), magnitude),
        _mm256_and_si256(_mm256_castps_si256(x[1]), magnitude),
        _mm256_and_si256(_mm256_castps_si256(x[2]), magnitude),
        _mm256_and_si256(_mm256_castps_si256(x[3]), magnitude),
    ];
    _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn any_magnitude_above(x: &[__m256; 4], limit: i32) -> bool {
    let above = _mm256_cmpgt_epi32(max_magnitudes(x), _mm256_set1_epi32(limit));
    _mm256_testz_si256(above, above) == 0
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn max_magnitude(x: &[__m256; 4]) -> i32 {
    let eight = max_magnitudes(x);
    let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
    _mm_cvtsi128_si32(one)
}

/// The smallest of 32 values. Meaningless with a NaN among them.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn min_value(x: &[__m256; 4]) -> f32 {
    let eight = _mm256_min_ps(_mm256_min_ps(x[0], x[1]), _mm256_min_ps(x[2], x[3]));
    let four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    let one = _mm_min_ps(two, _mm_movehdup_ps(two));
    _mm_cvtss_f32(one)
}

/// 32 positions, each within the range of `i8`, clamped and stored as nibbles in order.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn pack(positions: &[__m256i; 4], lowest: i8, highest: i8) -> [u8; BLOCK_BYTES] {
    // Packing works within 128-bit halves: bytes 0..4 8..12 16..20 24..28, then 4..8 12..16 20..24 28..32.
    let words = [
        _mm256_packs_epi32(positions[0], positions[1]),
        _mm256_packs_epi32(positions[2], positions[3]),
    ];
    let codes = _mm256_packs_epi16(words[0], words[1]);
    let codes = _mm256_max_epi8(codes, _mm256_set1_epi8(lowest));
    let codes = _mm256_min_epi8(codes, _mm256_set1_epi8(highest));
    let stored = _mm256_add_epi8(codes, _mm256_set1_epi8(BIAS));
    // low + 16 * high, at most 255, in 16 bits each.
    let pairs = _mm256_maddubs_epi16(stored, _mm256_set1_epi16(0x1001));
    let bytes = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
    // Two bytes from the first half, two from the second, in turn.
    let in_order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    // SAFETY: both are 16 bytes without padding, and every bit pattern is a `u8`.
    unsafe { std::mem::transmute(_mm_shuffle_epi8(bytes, in_order)) }
}

/// `sum[j] += code j * steps[j]` for 32 codes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn accumulate(codes: &[u8; BLOCK_BYTES], steps: [__m256; 4], sum: &mut [f32; BLOCK]) {
    // SAFETY: `codes` is 16 bytes; the load needs no alignment.
    let bytes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
    let nibble = _mm_set1_epi8(0x0f);
    let low = _mm_and_si128(bytes, nibble);
    let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
    let bias = _mm_set1_epi8(BIAS);
    let first = _mm_sub_epi8(_mm_unpacklo_epi8(low, high), bias);
    let second = _mm_sub_epi8(_mm_unpackhi_epi8(low, high), bias);
    let eights = [first, _mm_srli_si128::<8>(first), second, _mm_srli_si128::<8>(second)];
    for ((codes, step), sum) in eights.into_iter().zip(steps).zip(sum.as_chunks_mut::<8>().0) {
        let codes = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
        let sum = sum.as_mut_ptr();
        // SAFETY: `sum` points to 8 f32; load and store need no alignment.
        unsafe { _mm256_storeu_ps(sum, _mm256_add_ps(_mm256_loadu_ps(sum), _mm256_mul_ps(codes, step))) };
    }
}
