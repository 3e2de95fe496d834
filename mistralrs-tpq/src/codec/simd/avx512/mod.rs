//! AVX-512 lanes: 32 values as two vectors of sixteen.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use half::bf16;

mod rd;

use super::avx2::fetch_ahead;
use super::rows::rows;
use super::{Onto, AT_ONCE, BLOCK, BLOCK_BYTES, MAX_BF16, MAX_FINITE};
use crate::codec::entropy::layout;
use crate::codec::rd::row;
use crate::codec::scalar::{self, BadWord, PaperRow, Width, BIAS};
use crate::codec::values::{Dtype, Element};
use crate::codec::EncodeStats;

/// Proof that the processor has AVX-512 with VBMI and VBMI2: Ice Lake, Zen 4 and later. The ones before also slow down where vectors of
/// 512 bits are in use, and AVX2 serves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512(());

impl Avx512 {
    pub fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vbmi2");
        found.then_some(Self(()))
    }
}

rows!(Avx512, "avx512f,avx512bw,avx512vl,avx512vbmi");

type Lanes = [__m512; 2];

/// Counts by lane.
struct Counter(__m512i);

impl Default for Counter {
    fn default() -> Self {
        // SAFETY: 64 bytes without padding, of which every bit pattern is valid.
        Self(unsafe { std::mem::transmute::<[u8; 64], __m512i>([0; 64]) })
    }
}

/// 32 elements as f32, in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn load<T: Element>(values: &[T; BLOCK]) -> Lanes {
    const { assert!(size_of::<T>() == T::DTYPE.size()) };
    let mut x = [_mm512_setzero_ps(); 2];
    for (x, sixteen) in x.iter_mut().zip(values.as_chunks::<16>().0) {
        let from = sixteen.as_ptr();
        // SAFETY: sixteen elements, of a size that the assertion ties to the dtype: 64 bytes in the first arm, 32 in the
        // others. The loads need no alignment.
        *x = unsafe {
            match T::DTYPE {
                Dtype::F32 => _mm512_loadu_ps(from.cast()),
                Dtype::Bf16 => {
                    let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
                }
                Dtype::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
            }
        };
    }
    x
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn store(x: &Lanes, to: &mut [f32; BLOCK]) {
    for (x, to) in x.iter().zip(to.as_chunks_mut::<16>().0) {
        // SAFETY: `to` is 16 f32; the store needs no alignment.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), *x) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn splat(x: f32) -> Lanes {
    [_mm512_set1_ps(x); 2]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn total(counter: Counter) -> u64 {
    // SAFETY: both are 64 bytes without padding, and every bit pattern is a `u32`.
    let lanes: [u32; 16] = unsafe { std::mem::transmute(counter.0) };
    lanes.into_iter().map(u64::from).sum()
}

/// The bit patterns of the magnitudes, lane by lane the larger of two. As integers they order as the floats do, with infinity
/// and NaN above every number.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn max_magnitudes(x: &Lanes) -> __m512i {
    let magnitude = _mm512_set1_epi32(i32::MAX);
    _mm512_max_epi32(
        _mm512_and_si512(_mm512_castps_si512(x[0]), magnitude),
        _mm512_and_si512(_mm512_castps_si512(x[1]), magnitude),
    )
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn any_magnitude_above(x: &Lanes, limit: u32) -> bool {
    _mm512_cmpgt_epi32_mask(max_magnitudes(x), _mm512_set1_epi32(limit as i32)) != 0
}

/// Bit patterns of 32 values, each rotated left by one: the largest of each four lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn largest_rotated(x: &Lanes) -> [u32; 4] {
    let first = _mm512_rol_epi32::<1>(_mm512_castps_si512(x[0]));
    let second = _mm512_rol_epi32::<1>(_mm512_castps_si512(x[1]));
    let sixteen = _mm512_max_epu32(first, second);
    let eight = _mm256_max_epu32(_mm512_castsi512_si256(sixteen), _mm512_extracti64x4_epi64::<1>(sixteen));
    let four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    // SAFETY: both are 16 bytes without padding, and every bit pattern is a `u32`.
    unsafe { std::mem::transmute(four) }
}

/// `x / step`, rounded to nearest even.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn positions(x: &Lanes, inv_steps: &Lanes) -> [__m512i; 2] {
    let mut positions = [_mm512_setzero_si512(); 2];
    for ((position, x), inv_step) in positions.iter_mut().zip(x).zip(inv_steps) {
        *position = _mm512_cvtps_epi32(_mm512_mul_ps(*x, *inv_step));
    }
    positions
}

/// As [`positions`], those beyond `PAPER_CLIP` counted and moved there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn clipped_positions(x: &Lanes, inv_steps: &Lanes, clipped: &mut Counter) -> [__m512i; 2] {
    let (lowest, highest) = (_mm512_set1_ps(-scalar::PAPER_CLIP), _mm512_set1_ps(scalar::PAPER_CLIP));
    let mut positions = [_mm512_setzero_si512(); 2];
    for ((position, x), inv_step) in positions.iter_mut().zip(x).zip(inv_steps) {
        let y = _mm512_mul_ps(*x, *inv_step);
        let inside = _mm512_min_ps(_mm512_max_ps(y, lowest), highest);
        let outside = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(inside, y);
        clipped.0 = _mm512_mask_add_epi32(clipped.0, outside, clipped.0, _mm512_set1_epi32(1));
        *position = _mm512_cvtps_epi32(inside);
    }
    positions
}

/// 32 positions, each within the range of `i8`, clamped and stored as nibbles in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn pack(positions: &[__m512i; 2], lowest: i8, highest: i8) -> [u8; BLOCK_BYTES] {
    // Packing works within 128-bit quarters: words 0..4 16..20 4..8 20..24 and so on.
    let codes = _mm512_packs_epi32(positions[0], positions[1]);
    let codes = _mm512_max_epi16(codes, _mm512_set1_epi16(lowest.into()));
    let codes = _mm512_min_epi16(codes, _mm512_set1_epi16(highest.into()));
    let stored = _mm512_add_epi16(codes, _mm512_set1_epi16(BIAS.into()));
    // low + 16 * high, at most 255, in 32 bits each.
    let pairs = _mm512_madd_epi16(stored, _mm512_set1_epi32(0x0010_0001));
    // The lowest byte of each pair: two of the first vector, two of the second, in turn.
    let in_order = _mm_setr_epi8(0, 4, 16, 20, 32, 36, 48, 52, 8, 12, 24, 28, 40, 44, 56, 60);
    let bytes = _mm512_permutexvar_epi8(_mm512_castsi128_si512(in_order), pairs);
    // SAFETY: both are 16 bytes without padding, and every bit pattern is a `u8`.
    unsafe { std::mem::transmute(_mm512_castsi512_si128(bytes)) }
}

/// 32 positions clamped to `i8` and stored in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn narrow(positions: &[__m512i; 2]) -> [u8; BLOCK] {
    let halves = [_mm512_cvtsepi32_epi8(positions[0]), _mm512_cvtsepi32_epi8(positions[1])];
    // SAFETY: both are 32 bytes without padding, and every bit pattern is a `u8`.
    unsafe { std::mem::transmute::<[__m128i; 2], [u8; BLOCK]>(halves) }
}

/// 32 codes in order: nibbles from 16 bytes, whole bytes from 32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn codes<const CODES: usize>(bytes: &[u8; CODES]) -> Lanes {
    const { assert!(CODES == BLOCK_BYTES || CODES == BLOCK) };
    let mut codes = [_mm512_setzero_ps(); 2];
    for (codes, bytes) in codes.iter_mut().zip(bytes.chunks_exact(CODES / 2)) {
        *codes = if CODES == BLOCK {
            // SAFETY: here `bytes` is 16 bytes; the load needs no alignment.
            let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))
        } else {
            nibble_codes(bytes.as_chunks().0)
        };
    }
    codes
}

/// What nibbles stand for.
const LEVELS: [f32; 16] = {
    let mut levels = [0.0; 16];
    let mut nibble = 0;
    while nibble < 16 {
        levels[nibble] = (nibble as i8 - BIAS) as f32;
        nibble += 1;
    }
    levels
};

/// 16 codes from two words of eight nibbles: each lane shifts its own to the lowest place, which is all that a permutation
/// of sixteen looks at.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn nibble_codes(words: &[[u8; 4]]) -> __m512 {
    let low = _mm512_set1_epi32(i32::from_le_bytes(words[0]));
    let high = _mm512_set1_epi32(i32::from_le_bytes(words[1]));
    let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    let nibbles = _mm512_srlv_epi32(_mm512_mask_mov_epi32(low, 0xff00, high), shifts);
    // SAFETY: 16 f32; the load needs no alignment.
    let levels = unsafe { _mm512_loadu_ps(LEVELS.as_ptr()) };
    _mm512_permutexvar_ps(nibbles, levels)
}

/// `0 + code j * steps[j]` for 32 codes: a zero is never negative, as in a sum that starts from zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn products(codes: &Lanes, steps: &Lanes) -> Lanes {
    plus_products(splat(0.0), codes, steps)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn plus_products(mut sum: Lanes, codes: &Lanes, steps: &Lanes) -> Lanes {
    for ((sum, codes), step) in sum.iter_mut().zip(codes).zip(steps) {
        *sum = _mm512_add_ps(*sum, _mm512_mul_ps(*codes, *step));
    }
    sum
}

/// `sum[j] += code j * steps[j]` for 32 codes; ONTO_ZERO: as if `sum` were zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn accumulate<const ONTO_ZERO: bool>(codes: &Lanes, steps: &Lanes, sum: &mut [f32; BLOCK]) {
    fetch_ahead(sum);
    let before = if ONTO_ZERO { splat(0.0) } else { load(sum) };
    store(&plus_products(before, codes, steps), sum);
}

/// 32 values to nearest even, in order, as [`scalar::round`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn store_rounded<T: Element>(x: &Lanes, to: &mut [T; BLOCK]) {
    const { assert!(size_of::<T>() == T::DTYPE.size()) };
    let to = to.as_mut_ptr().cast::<u8>();
    // SAFETY: `to` is 32 elements of a size that the assertion ties to the dtype: 128 bytes in the first arm, 64 in the
    // others. The stores need no alignment.
    unsafe {
        match T::DTYPE {
            Dtype::F32 => {
                _mm512_storeu_ps(to.cast(), x[0]);
                _mm512_storeu_ps(to.add(64).cast(), x[1]);
            }
            Dtype::Bf16 => _mm512_storeu_si512(to.cast(), nearest_bf16(x)),
            Dtype::F16 => {
                _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
                _mm256_storeu_si256(to.add(32).cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
            }
        }
    }
}

/// [`scalar::nearest_bf16`] of 32 values, in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn nearest_bf16(x: &Lanes) -> __m512i {
    let [first, second] = [upper_bf16(x[0]), upper_bf16(x[1])];
    // Words of the first at even places, of the second at odd ones.
    let mixed = _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(first), 0xaaaa_aaaa, second);
    // SAFETY: both are 64 bytes without padding, and every bit pattern is valid.
    let in_order = unsafe { std::mem::transmute::<[u16; BLOCK], __m512i>(EVENS_THEN_ODDS) };
    _mm512_permutexvar_epi16(in_order, mixed)
}

/// The nearest BF16 in the upper half of each lane. Not the instruction of AVX512-BF16, which takes subnormals for zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn upper_bf16(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_or_epi32(nearest, is_nan, bits, _mm512_set1_epi32(0x0040_0000))
}

const EVENS_THEN_ODDS: [u16; BLOCK] = {
    let mut places = [0; BLOCK];
    let mut at = 0;
    while at < BLOCK {
        places[at] = (2 * (at % 16) + at / 16) as u16;
        at += 1;
    }
    places
};
