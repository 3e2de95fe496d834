//! AVX2 lanes of `rd`.

use std::arch::x86_64::*;

use super::super::rd::rd_rows;
use super::{load, narrow, splat, store, total, widen, Avx2, Counter, Lanes};
use crate::codec::rd::codebook::{self, magnitudes};
use crate::codec::rd::layout::{Class, Layout, Planes, BLOCK, GAIN_LEN};
use crate::codec::rd::row::{self, energy, gain_of, put_words, received_gain, reciprocal, take_words};
use crate::codec::rd::scratch::{Parts, Scratch};
use crate::codec::scalar::BadWord;
use crate::codec::values::Element;
use crate::codec::EncodeStats;

rd_rows!(Avx2, "avx2,f16c");

/// `values[places[j]]`, a load each. Not `vgatherdps`, which the microcode against Downfall makes slow on many processors.
///
/// # Safety
/// Every place is below the length of `values`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn gather(values: &[f32], places: &[u32; BLOCK]) -> Lanes {
    let mut x = splat(0.0);
    for (x, places) in x.iter_mut().zip(places.as_chunks::<8>().0) {
        // SAFETY: the caller's promise.
        let [a, b, c, d, e, f, g, h] = places.map(|place| unsafe { *values.get_unchecked(place as usize) });
        *x = _mm256_setr_ps(a, b, c, d, e, f, g, h);
    }
    x
}

/// `sum[j] += values[places[j]]`.
///
/// # Safety
/// As [`gather`].
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn add_gathered(values: &[f32], places: &[u32; BLOCK], sum: &mut [f32; BLOCK]) {
    // SAFETY: the caller's promise.
    let mut x = unsafe { gather(values, places) };
    for (x, before) in x.iter_mut().zip(load(sum)) {
        *x = _mm256_add_ps(before, *x);
    }
    store(&x, sum);
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn times(a: &Lanes, b: &Lanes) -> Lanes {
    let mut product = *a;
    for (product, b) in product.iter_mut().zip(b) {
        *product = _mm256_mul_ps(*product, *b);
    }
    product
}

/// Positions in steps.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn scaled(x: &Lanes, inv_gain: &Lanes, inv_steps: &Lanes) -> Lanes {
    times(&times(x, inv_gain), inv_steps)
}

/// Codes of positions in the low `BITS` bits of a byte each; those beyond `clip` are counted.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn codes<const BITS: u8>(positions: &Lanes, clip: f32, clipped: &mut Counter) -> [u8; BLOCK] {
    let mut codes = [_mm256_setzero_si256(); 4];
    let (clip, zero) = (_mm256_set1_ps(clip), _mm256_setzero_ps());
    // With the ones above it: as a number it stays within the range of `i8`.
    let sign = _mm256_set1_epi32(-(magnitudes(BITS) as i32));
    for (code, position) in codes.iter_mut().zip(positions) {
        let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), *position);
        let beyond = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(magnitude, clip));
        clipped.0 = _mm256_sub_epi32(clipped.0, beyond);
        let negative = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(*position, zero));
        *code = _mm256_or_si256(nearest::<BITS>(magnitude), _mm256_and_si256(negative, sign));
    }
    narrow(&codes)
}

/// As `codebook::nearest`: how many thresholds a position reaches, by halving.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn nearest<const BITS: u8>(position: __m256) -> __m256i {
    if BITS >= 6 {
        let highest = _mm256_set1_ps((magnitudes(BITS) - 1) as f32);
        return _mm256_cvttps_epi32(_mm256_min_ps(position, highest));
    }
    let search = const { search(BITS) };
    let mut index = _mm256_setzero_si256();
    for (round, thresholds) in search.iter().enumerate().take(BITS as usize - 1) {
        // SAFETY: 8 f32; the load needs no alignment.
        let thresholds = unsafe { _mm256_loadu_ps(thresholds.as_ptr()) };
        let threshold = match round {
            0 => thresholds,
            1 | 2 => _mm256_permutevar_ps(thresholds, index),
            _ => _mm256_permutevar8x32_ps(thresholds, index),
        };
        let reached = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GE_OQ>(position, threshold));
        index = _mm256_sub_epi32(_mm256_add_epi32(index, index), reached);
    }
    index
}

/// The thresholds of each round of a search by halving, by the index found so far. What fits into half a vector is there
/// twice, because a shuffle of four takes half the time of one of eight.
const fn search(bits: u8) -> [[f32; 8]; 4] {
    let thresholds = codebook::thresholds(bits);
    let mut rounds = [[0.0; 8]; 4];
    let count = if bits < 6 { bits as usize - 1 } else { 0 };
    let mut round = 0;
    while round < count {
        let stride = magnitudes(bits) >> (round + 1);
        let mut at = 0;
        while at < 8 {
            let found = at % (1 << round);
            rounds[round][at] = thresholds[(2 * found + 1) * stride - 1];
            at += 1;
        }
        round += 1;
    }
    rounds
}

/// What codes stand for, in steps. The bits above the low `BITS` are zero.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn levels<const BITS: u8>(codes: &[u8; BLOCK]) -> Lanes {
    let mut levels = splat(0.0);
    for (level, codes) in levels.iter_mut().zip(codes.as_chunks::<8>().0) {
        // SAFETY: `codes` is 8 bytes; the load needs no alignment.
        let codes = unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) };
        let codes = _mm256_cvtepu8_epi32(codes);
        let sign = _mm256_and_si256(
            _mm256_sll_epi32(codes, _mm_cvtsi32_si128(32 - BITS as i32)),
            _mm256_set1_epi32(i32::MIN),
        );
        *level = _mm256_xor_ps(magnitude::<BITS>(codes), _mm256_castsi256_ps(sign));
    }
    levels
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn magnitude<const BITS: u8>(codes: __m256i) -> __m256 {
    if BITS >= 6 {
        let index = _mm256_and_si256(codes, _mm256_set1_epi32(magnitudes(BITS) as i32 - 1));
        return _mm256_add_ps(_mm256_cvtepi32_ps(index), _mm256_set1_ps(0.5));
    }
    let [low, high] = const { tables(BITS) };
    // SAFETY: 8 f32 each; the loads need no alignment.
    let (low, high) = unsafe { (_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())) };
    // A permutation looks at the low three bits alone.
    let low = _mm256_permutevar8x32_ps(low, codes);
    if BITS < 5 {
        return low;
    }
    let high = _mm256_permutevar8x32_ps(high, codes);
    let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
    _mm256_blendv_ps(low, high, upper)
}

/// Magnitudes by the low four bits of a code, in halves: a smaller class repeats itself.
const fn tables(bits: u8) -> [[f32; 8]; 2] {
    let levels = codebook::table(bits);
    let mut tables = [[0.0; 8]; 2];
    let mut at = 0;
    while at < 16 && !levels.is_empty() {
        tables[at / 8][at % 8] = levels[at % levels.len()];
        at += 1;
    }
    tables
}

/// Parts of codes, `BYTES` bytes from 32 of them: nibbles, crumbs or single bits.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn pack<const BYTES: usize>(parts: &[u8; BLOCK], packed: &mut [u8; BYTES]) {
    // SAFETY: 32 bytes; the load needs no alignment.
    let parts = unsafe { _mm256_loadu_si256(parts.as_ptr().cast()) };
    if BYTES == 4 {
        let bits = _mm256_movemask_epi8(_mm256_slli_epi16::<7>(parts));
        packed.copy_from_slice(&bits.to_le_bytes());
        return;
    }
    // first + 16 * second, or first + 4 * second, at most 255, in 16 bits each.
    let weights = if BYTES == 16 { 0x1001 } else { 0x0401 };
    let pairs = _mm256_maddubs_epi16(parts, _mm256_set1_epi16(weights));
    if BYTES == 16 {
        let halves = _mm256_packus_epi16(pairs, pairs);
        let bytes = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b10_00>(halves));
        // SAFETY: here `packed` is 16 bytes; the store needs no alignment.
        unsafe { _mm_storeu_si128(packed.as_mut_ptr().cast(), bytes) };
        return;
    }
    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x0010_0001));
    let words = _mm_packus_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256::<1>(fours));
    let bytes = _mm_packus_epi16(words, words);
    packed.copy_from_slice(&_mm_cvtsi128_si64(bytes).to_le_bytes());
}

/// The reverse of [`pack`].
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn unpack<const BYTES: usize>(packed: &[u8; BYTES]) -> [u8; BLOCK] {
    let parts = match BYTES {
        16 => {
            // SAFETY: here `packed` is 16 bytes; the load needs no alignment.
            let bytes = unsafe { _mm_loadu_si128(packed.as_ptr().cast()) };
            let nibble = _mm_set1_epi8(0x0f);
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
            let low = _mm_and_si128(bytes, nibble);
            _mm256_setr_m128i(_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high))
        }
        8 => {
            // SAFETY: here `packed` is 8 bytes; the load needs no alignment.
            let bytes = unsafe { _mm_loadl_epi64(packed.as_ptr().cast()) };
            let crumb = _mm_set1_epi8(3);
            let pairs = |bytes: __m128i| {
                let (first, second) = (
                    _mm_and_si128(bytes, crumb),
                    _mm_and_si128(_mm_srli_epi16::<2>(bytes), crumb),
                );
                _mm_unpacklo_epi8(first, second)
            };
            let (low, high) = (pairs(bytes), pairs(_mm_srli_epi16::<4>(bytes)));
            _mm256_setr_m128i(_mm_unpacklo_epi16(low, high), _mm_unpackhi_epi16(low, high))
        }
        _ => {
            // SAFETY: here `packed` is 4 bytes; the load needs no alignment.
            let word = unsafe { packed.as_ptr().cast::<i32>().read_unaligned() };
            let spread = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(word), spread);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
            _mm256_and_si256(set, _mm256_set1_epi8(1))
        }
    };
    // SAFETY: both are 32 bytes without padding, and every bit pattern is a `u8`.
    unsafe { std::mem::transmute(parts) }
}
