//! AVX2 lanes: 32 values as four vectors of eight.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;

pub(super) mod rd;

use super::rows::rows;
use super::{Onto, AT_ONCE, BLOCK, BLOCK_BYTES, MAX_BF16, MAX_FINITE};
use crate::codec::entropy::layout;
use crate::codec::rd::row;
use crate::codec::scalar::{self, BadWord, PaperRow, Width, BIAS};
use crate::codec::values::{Dtype, Element};
use crate::codec::EncodeStats;

/// Proof that the processor has AVX2, and F16C, which every processor with AVX2 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    pub fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }
}

rows!(Avx2, "avx2,f16c");

type Lanes = [__m256; 4];

/// How far ahead sums are fetched. The processor's own prefetcher stops at the end of a page: 8 Mi sums in memory took a quarter
/// longer without, and 512 bytes ahead gained half of that. With 2048 decoding onto them took 5 (BF16) and 8% (F32) longer, with
/// 8192 `rd` did.
const AHEAD_BYTES: usize = 4096;
const LINE_BYTES: usize = 64;

/// Counts by lane.
struct Counter(__m256i);

impl Default for Counter {
    fn default() -> Self {
        // SAFETY: 32 bytes without padding, of which every bit pattern is valid.
        Self(unsafe { std::mem::transmute::<[u8; 32], __m256i>([0; 32]) })
    }
}

/// Eight elements as f32.
///
/// # Safety
/// `from` points to eight elements.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) unsafe fn load_eight<T: Element>(from: *const T) -> __m256 {
    const { assert!(size_of::<T>() == T::DTYPE.size()) };
    // SAFETY: eight elements, of a size that the assertion ties to the dtype: 32 bytes in the first arm, 16 in the
    // others. The loads need no alignment.
    unsafe {
        match T::DTYPE {
            Dtype::F32 => _mm256_loadu_ps(from.cast()),
            Dtype::Bf16 => {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            }
            Dtype::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
        }
    }
}

/// 32 elements as f32, in order.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load<T: Element>(values: &[T; BLOCK]) -> Lanes {
    let mut x = [_mm256_setzero_ps(); 4];
    for (x, eight) in x.iter_mut().zip(values.as_chunks::<8>().0) {
        // SAFETY: `eight` is eight elements.
        *x = unsafe { load_eight(eight.as_ptr()) };
    }
    x
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn store(x: &Lanes, to: &mut [f32; BLOCK]) {
    for (x, to) in x.iter().zip(to.as_chunks_mut::<8>().0) {
        // SAFETY: `to` is 8 f32; the store needs no alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), *x) };
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn splat(x: f32) -> Lanes {
    [_mm256_set1_ps(x); 4]
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn total(counter: Counter) -> u64 {
    // SAFETY: both are 32 bytes without padding, and every bit pattern is a `u32`.
    let lanes: [u32; 8] = unsafe { std::mem::transmute(counter.0) };
    lanes.into_iter().map(u64::from).sum()
}

/// The bit patterns of the magnitudes, lane by lane the largest of four. As integers they order as the floats do, with
/// infinity and NaN above every number.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn max_magnitudes(x: &Lanes) -> __m256i {
    let magnitude = _mm256_set1_epi32(i32::MAX);
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
fn any_magnitude_above(x: &Lanes, limit: u32) -> bool {
    let above = _mm256_cmpgt_epi32(max_magnitudes(x), _mm256_set1_epi32(limit as i32));
    _mm256_testz_si256(above, above) == 0
}

/// Bit patterns of 32 values, each rotated left by one: the largest of each four lanes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn largest_rotated(x: &Lanes) -> [u32; 4] {
    let mut eight = _mm256_setzero_si256();
    for x in x {
        let bits = _mm256_castps_si256(*x);
        let rotated = _mm256_or_si256(_mm256_slli_epi32::<1>(bits), _mm256_srli_epi32::<31>(bits));
        eight = _mm256_max_epu32(eight, rotated);
    }
    let four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    // SAFETY: both are 16 bytes without padding, and every bit pattern is a `u32`.
    unsafe { std::mem::transmute(four) }
}

/// `x / step`, rounded to nearest even.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn positions(x: &Lanes, inv_steps: &Lanes) -> [__m256i; 4] {
    let mut positions = [_mm256_setzero_si256(); 4];
    for ((position, x), inv_step) in positions.iter_mut().zip(x).zip(inv_steps) {
        *position = _mm256_cvtps_epi32(_mm256_mul_ps(*x, *inv_step));
    }
    positions
}

/// As [`positions`], those beyond `PAPER_CLIP` counted and moved there.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn clipped_positions(x: &Lanes, inv_steps: &Lanes, clipped: &mut Counter) -> [__m256i; 4] {
    let (lowest, highest) = (_mm256_set1_ps(-scalar::PAPER_CLIP), _mm256_set1_ps(scalar::PAPER_CLIP));
    let mut positions = [_mm256_setzero_si256(); 4];
    for ((position, x), inv_step) in positions.iter_mut().zip(x).zip(inv_steps) {
        let y = _mm256_mul_ps(*x, *inv_step);
        let inside = _mm256_min_ps(_mm256_max_ps(y, lowest), highest);
        let outside = _mm256_cmp_ps::<_CMP_NEQ_UQ>(inside, y);
        clipped.0 = _mm256_sub_epi32(clipped.0, _mm256_castps_si256(outside));
        *position = _mm256_cvtps_epi32(inside);
    }
    positions
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

/// 32 positions, each within the range of `i16`, clamped to `i8` and stored in order.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn narrow(positions: &[__m256i; 4]) -> [u8; BLOCK] {
    let words = [
        _mm256_packs_epi32(positions[0], positions[1]),
        _mm256_packs_epi32(positions[2], positions[3]),
    ];
    // Fours of bytes, in the order that `pack` tells.
    let fours = _mm256_packs_epi16(words[0], words[1]);
    let in_order = _mm256_permutevar8x32_epi32(fours, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    // SAFETY: both are 32 bytes without padding, and every bit pattern is a `u8`.
    unsafe { std::mem::transmute(in_order) }
}

/// 32 codes as bytes, the low eight of each vector in order: nibbles from 16 bytes, whole bytes from 32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn codes<const CODES: usize>(bytes: &[u8; CODES]) -> [__m128i; 4] {
    const { assert!(CODES == BLOCK_BYTES || CODES == BLOCK) };
    // SAFETY: `bytes` is at least 16 bytes; the load needs no alignment.
    let low = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let [first, second] = if CODES == BLOCK {
        // SAFETY: here `bytes` is 32 bytes.
        [low, unsafe { _mm_loadu_si128(bytes.as_ptr().add(16).cast()) }]
    } else {
        let nibble = _mm_set1_epi8(0x0f);
        let high = _mm_and_si128(_mm_srli_epi16::<4>(low), nibble);
        let low = _mm_and_si128(low, nibble);
        let bias = _mm_set1_epi8(BIAS);
        [
            _mm_sub_epi8(_mm_unpacklo_epi8(low, high), bias),
            _mm_sub_epi8(_mm_unpackhi_epi8(low, high), bias),
        ]
    };
    [first, _mm_srli_si128::<8>(first), second, _mm_srli_si128::<8>(second)]
}

/// `0 + code j * steps[j]` for 32 codes: a zero is never negative, as in a sum that starts from zero.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn products(codes: &[__m128i; 4], steps: &Lanes) -> Lanes {
    let mut x = [_mm256_setzero_ps(); 4];
    for ((x, codes), step) in x.iter_mut().zip(codes).zip(steps) {
        let codes = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(*codes));
        *x = _mm256_add_ps(*x, _mm256_mul_ps(codes, *step));
    }
    x
}

/// `sum[j] += code j * steps[j]` for 32 codes; ONTO_ZERO: as if `sum` were zeros.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn accumulate<const ONTO_ZERO: bool>(codes: &[__m128i; 4], steps: &Lanes, sum: &mut [f32; BLOCK]) {
    fetch_ahead(sum);
    if ONTO_ZERO {
        return store(&products(codes, steps), sum);
    }
    for ((codes, step), sum) in codes.iter().zip(steps).zip(sum.as_chunks_mut::<8>().0) {
        let codes = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(*codes));
        let sum = sum.as_mut_ptr();
        // SAFETY: `sum` points to 8 f32; load and store need no alignment.
        unsafe { _mm256_storeu_ps(sum, _mm256_add_ps(_mm256_loadu_ps(sum), _mm256_mul_ps(codes, *step))) };
    }
}

/// Asks for what lies `AHEAD_BYTES` after `block`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn fetch_ahead<T>(block: &[T; BLOCK]) {
    fetch_after(block, AHEAD_BYTES);
}

/// Asks for what lies `bytes` after `block`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
#[allow(unused_unsafe, reason = "newer compilers know that a prefetch is safe")]
pub(super) fn fetch_after<T>(block: &[T; BLOCK], bytes: usize) {
    let ahead = block.as_ptr().wrapping_byte_add(bytes).cast::<i8>();
    for line in 0..size_of_val(block) / LINE_BYTES {
        // SAFETY: a prefetch may name any address; where nothing is mapped it does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_byte_add(line * LINE_BYTES)) };
    }
}

/// 32 values to nearest even, in order, as [`scalar::round`].
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn store_rounded<T: Element>(x: &Lanes, to: &mut [T; BLOCK]) {
    const { assert!(size_of::<T>() == T::DTYPE.size()) };
    let to = to.as_mut_ptr().cast::<u8>();
    let sixteens = x.as_chunks::<2>().0.iter().enumerate();
    for (at, [low, high]) in sixteens {
        // SAFETY: the two halves of `to`, each 16 elements of a size that the assertion ties to the dtype: 64 bytes in
        // the first arm, 32 in the others. The stores need no alignment.
        unsafe {
            let to = to.add(at * 16 * T::DTYPE.size());
            match T::DTYPE {
                Dtype::F32 => {
                    _mm256_storeu_ps(to.cast(), *low);
                    _mm256_storeu_ps(to.add(32).cast(), *high);
                }
                Dtype::Bf16 => {
                    // Packing works within 128-bit halves.
                    let mixed = _mm256_packus_epi32(nearest_bf16(*low), nearest_bf16(*high));
                    _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed));
                }
                Dtype::F16 => {
                    _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(*low));
                    _mm_storeu_si128(to.add(16).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(*high));
                }
            }
        }
    }
}

/// The bits of [`scalar::nearest_bf16`], each in the lower half of 32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn nearest_bf16(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let upper = _mm256_srli_epi32::<16>(bits);
    let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    let nearest = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
    let nan = _mm256_or_si256(upper, _mm256_set1_epi32(0x0040));
    let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    _mm256_blendv_epi8(nearest, nan, is_nan)
}
