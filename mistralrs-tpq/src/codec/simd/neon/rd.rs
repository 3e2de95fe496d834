//! NEON lanes of `rd`.

use std::arch::aarch64::*;

use super::super::rd::rd_rows;
use super::{load, narrow, splat, store, total, widen, Counter, Lanes, Neon};
use crate::codec::rd::codebook::{self, magnitudes};
use crate::codec::rd::layout::{Class, Layout, Planes, BLOCK, GAIN_LEN};
use crate::codec::rd::row::{self, energy, gain_of, put_words, received_gain, reciprocal, take_words};
use crate::codec::rd::scratch::{Parts, Scratch};
use crate::codec::scalar::BadWord;
use crate::codec::values::Element;
use crate::codec::EncodeStats;

rd_rows!(Neon, "neon");

/// `values[places[j]]`, one load each.
///
/// # Safety
/// Every place is below the length of `values`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn gather(values: &[f32], places: &[u32; BLOCK]) -> Lanes {
    let mut x = splat(0.0);
    for (x, [a, b, c, d]) in x.iter_mut().zip(places.as_chunks::<4>().0) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = |place: &u32| values.as_ptr().add(*place as usize);
            *x = vld1q_lane_f32::<0>(at(a), *x);
            *x = vld1q_lane_f32::<1>(at(b), *x);
            *x = vld1q_lane_f32::<2>(at(c), *x);
            *x = vld1q_lane_f32::<3>(at(d), *x);
        }
    }
    x
}

/// `sum[j] += values[places[j]]`.
///
/// # Safety
/// As [`gather`].
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_gathered(values: &[f32], places: &[u32; BLOCK], sum: &mut [f32; BLOCK]) {
    // SAFETY: the caller's promise.
    let mut x = unsafe { gather(values, places) };
    for (x, before) in x.iter_mut().zip(load(sum)) {
        *x = vaddq_f32(before, *x);
    }
    store(&x, sum);
}

#[inline]
#[target_feature(enable = "neon")]
fn times(a: &Lanes, b: &Lanes) -> Lanes {
    let mut product = *a;
    for (product, b) in product.iter_mut().zip(b) {
        *product = vmulq_f32(*product, *b);
    }
    product
}

/// Positions in steps.
#[inline]
#[target_feature(enable = "neon")]
fn scaled(x: &Lanes, inv_gain: &Lanes, inv_steps: &Lanes) -> Lanes {
    times(&times(x, inv_gain), inv_steps)
}

/// Codes of positions in the low `BITS` bits of a byte each; those beyond `clip` are counted.
#[inline]
#[target_feature(enable = "neon")]
fn codes<const BITS: u8>(positions: &Lanes, clip: f32, clipped: &mut Counter) -> [u8; BLOCK] {
    let mut codes = [vdupq_n_s32(0); 8];
    let mut beyond = vdupq_n_u32(0);
    // With the ones above it: as a number it stays within the range of `i8`.
    let sign = vdupq_n_s32(-(magnitudes(BITS) as i32));
    for (code, position) in codes.iter_mut().zip(positions) {
        let magnitude = vabsq_f32(*position);
        beyond = vsubq_u32(beyond, vcgtq_f32(magnitude, vdupq_n_f32(clip)));
        let negative = vreinterpretq_s32_u32(vcltzq_f32(*position));
        *code = vorrq_s32(nearest::<BITS>(magnitude), vandq_s32(negative, sign));
    }
    clipped.0 += u64::from(vaddvq_u32(beyond));
    narrow(&codes)
}

/// As `codebook::nearest`.
#[inline]
#[target_feature(enable = "neon")]
fn nearest<const BITS: u8>(position: float32x4_t) -> int32x4_t {
    if BITS >= 6 {
        let highest = vdupq_n_f32((magnitudes(BITS) - 1) as f32);
        return vcvtq_s32_f32(vminq_f32(position, highest));
    }
    let thresholds = const { codebook::thresholds(BITS) };
    let mut index = vdupq_n_u32(0);
    for threshold in &thresholds[..magnitudes(BITS) - 1] {
        index = vsubq_u32(index, vcgeq_f32(position, vdupq_n_f32(*threshold)));
    }
    vreinterpretq_s32_u32(index)
}

/// What codes stand for, in steps. The bits above the low `BITS` are zero.
#[inline]
#[target_feature(enable = "neon")]
fn levels<const BITS: u8>(codes: &[u8; BLOCK]) -> Lanes {
    let mut levels = splat(0.0);
    for (level, codes) in levels.iter_mut().zip(codes.as_chunks::<4>().0) {
        let signed = codes.map(|code| row::level(BITS, usize::from(code)));
        // SAFETY: 4 f32.
        *level = unsafe { vld1q_f32(signed.as_ptr()) };
    }
    levels
}

/// Parts of codes, `BYTES` bytes from 32 of them: nibbles, crumbs or single bits.
#[inline]
#[target_feature(enable = "neon")]
fn pack<const BYTES: usize>(parts: &[u8; BLOCK], packed: &mut [u8; BYTES]) {
    // SAFETY: 32 bytes.
    let (first, second) = unsafe { (vld1q_u8(parts.as_ptr()), vld1q_u8(parts.as_ptr().add(16))) };
    if BYTES == 4 {
        let bits: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        // SAFETY: 16 bytes.
        let bits = unsafe { vld1q_u8(bits.as_ptr()) };
        // Sums of two, four and eight neighbours.
        let twos = vpaddq_u8(vmulq_u8(first, bits), vmulq_u8(second, bits));
        let fours = vpaddq_u8(twos, twos);
        let word = vgetq_lane_u32::<0>(vreinterpretq_u32_u8(vpaddq_u8(fours, fours)));
        packed.copy_from_slice(&word.to_le_bytes());
        return;
    }
    let (even, odd) = (vuzp1q_u8(first, second), vuzp2q_u8(first, second));
    if BYTES == 16 {
        // SAFETY: here `packed` is 16 bytes.
        unsafe { vst1q_u8(packed.as_mut_ptr(), vorrq_u8(even, vshlq_n_u8::<4>(odd))) };
        return;
    }
    let pairs = vorrq_u8(even, vshlq_n_u8::<2>(odd));
    let fours = vorrq_u8(vuzp1q_u8(pairs, pairs), vshlq_n_u8::<4>(vuzp2q_u8(pairs, pairs)));
    packed.copy_from_slice(&vgetq_lane_u64::<0>(vreinterpretq_u64_u8(fours)).to_le_bytes());
}

/// The reverse of [`pack`].
#[inline]
#[target_feature(enable = "neon")]
fn unpack<const BYTES: usize>(packed: &[u8; BYTES]) -> [u8; BLOCK] {
    let halves = match BYTES {
        16 => {
            // SAFETY: here `packed` is 16 bytes.
            let bytes = unsafe { vld1q_u8(packed.as_ptr()) };
            let (low, high) = (vandq_u8(bytes, vdupq_n_u8(0x0f)), vshrq_n_u8::<4>(bytes));
            [vzip1q_u8(low, high), vzip2q_u8(low, high)]
        }
        8 => {
            // SAFETY: here `packed` is 8 bytes.
            let bytes = unsafe { vld1_u8(packed.as_ptr()) };
            let bytes = vcombine_u8(bytes, bytes);
            let crumb = vdupq_n_u8(3);
            let pairs = |bytes| vzip1q_u8(vandq_u8(bytes, crumb), vandq_u8(vshrq_n_u8::<2>(bytes), crumb));
            let low = vreinterpretq_u16_u8(pairs(bytes));
            let high = vreinterpretq_u16_u8(pairs(vshrq_n_u8::<4>(bytes)));
            [
                vreinterpretq_u8_u16(vzip1q_u16(low, high)),
                vreinterpretq_u8_u16(vzip2q_u16(low, high)),
            ]
        }
        _ => {
            let bits: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
            // SAFETY: 16 bytes.
            let bits = unsafe { vld1q_u8(bits.as_ptr()) };
            let eight = |at: usize| vcombine_u8(vdup_n_u8(packed[at]), vdup_n_u8(packed[at + 1]));
            let set = |bytes| vandq_u8(vtstq_u8(bytes, bits), vdupq_n_u8(1));
            [set(eight(0)), set(eight(2))]
        }
    };
    let mut parts = [0; BLOCK];
    for (parts, half) in parts.as_chunks_mut::<16>().0.iter_mut().zip(halves) {
        // SAFETY: `parts` is 16 bytes.
        unsafe { vst1q_u8(parts.as_mut_ptr(), half) };
    }
    parts
}
