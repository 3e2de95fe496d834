//! NEON lanes: 32 values as eight vectors of four.

#![allow(unsafe_code)]

use std::arch::aarch64::*;

use half::bf16;

mod rd;

use super::rows::rows;
use super::{Onto, AT_ONCE, BLOCK, BLOCK_BYTES, MAX_BF16, MAX_FINITE};
use crate::codec::entropy::layout;
use crate::codec::rd::row;
use crate::codec::scalar::{self, BadWord, PaperRow, Width, BIAS};
use crate::codec::values::{Dtype, Element};
use crate::codec::EncodeStats;

/// Proof that the processor has NEON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neon(());

impl Neon {
    pub fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

rows!(Neon, "neon");

type Lanes = [float32x4_t; 8];

#[derive(Default)]
struct Counter(u64);

/// 32 elements as f32, in order.
#[inline]
#[target_feature(enable = "neon")]
fn load<T: Element>(values: &[T; BLOCK]) -> Lanes {
    const { assert!(size_of::<T>() == T::DTYPE.size()) };
    let mut x = splat(0.0);
    for (x, four) in x.iter_mut().zip(values.as_chunks::<4>().0) {
        *x = match T::DTYPE {
            // SAFETY: four elements, of a size that the assertion ties to the dtype: 16 bytes.
            Dtype::F32 => unsafe { vld1q_f32(four.as_ptr().cast()) },
            Dtype::Bf16 => {
                // SAFETY: as above: 8 bytes.
                let bits = unsafe { vld1_u16(four.as_ptr().cast()) };
                vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
            }
            // The conversion of vectors needs a type that Rust has not made stable.
            Dtype::F16 => {
                let floats = four.map(Element::to_f32);
                // SAFETY: 16 bytes.
                unsafe { vld1q_f32(floats.as_ptr()) }
            }
        };
    }
    x
}

#[inline]
#[target_feature(enable = "neon")]
fn store(x: &Lanes, to: &mut [f32; BLOCK]) {
    for (x, to) in x.iter().zip(to.as_chunks_mut::<4>().0) {
        // SAFETY: `to` is 4 f32.
        unsafe { vst1q_f32(to.as_mut_ptr(), *x) };
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn splat(x: f32) -> Lanes {
    [vdupq_n_f32(x); 8]
}

#[inline]
#[target_feature(enable = "neon")]
fn any_magnitude_above(x: &Lanes, limit: u32) -> bool {
    let mut largest = vdupq_n_u32(0);
    for x in x {
        let magnitude = vandq_u32(vreinterpretq_u32_f32(*x), vdupq_n_u32(0x7fff_ffff));
        largest = vmaxq_u32(largest, magnitude);
    }
    vmaxvq_u32(largest) > limit
}

/// Bit patterns of 32 values, each rotated left by one: the largest of each four lanes.
#[inline]
#[target_feature(enable = "neon")]
fn largest_rotated(x: &Lanes) -> [u32; 4] {
    let mut largest = vdupq_n_u32(0);
    for x in x {
        let bits = vreinterpretq_u32_f32(*x);
        largest = vmaxq_u32(largest, vsriq_n_u32::<31>(vshlq_n_u32::<1>(bits), bits));
    }
    // SAFETY: both are 16 bytes without padding, and every bit pattern is a `u32`.
    unsafe { std::mem::transmute(largest) }
}

/// `x / step`, rounded to nearest even.
#[inline]
#[target_feature(enable = "neon")]
fn positions(x: &Lanes, inv_steps: &Lanes) -> [int32x4_t; 8] {
    let mut positions = [vdupq_n_s32(0); 8];
    for ((position, x), inv_step) in positions.iter_mut().zip(x).zip(inv_steps) {
        *position = vcvtnq_s32_f32(vmulq_f32(*x, *inv_step));
    }
    positions
}

/// As [`positions`], those beyond `PAPER_CLIP` counted and moved there.
#[inline]
#[target_feature(enable = "neon")]
fn clipped_positions(x: &Lanes, inv_steps: &Lanes, clipped: &mut Counter) -> [int32x4_t; 8] {
    let (lowest, highest) = (vdupq_n_f32(-scalar::PAPER_CLIP), vdupq_n_f32(scalar::PAPER_CLIP));
    let mut positions = [vdupq_n_s32(0); 8];
    let mut inside_lanes = vdupq_n_u32(0);
    for ((position, x), inv_step) in positions.iter_mut().zip(x).zip(inv_steps) {
        let y = vmulq_f32(*x, *inv_step);
        let inside = vminq_f32(vmaxq_f32(y, lowest), highest);
        inside_lanes = vsubq_u32(inside_lanes, vceqq_f32(inside, y));
        *position = vcvtnq_s32_f32(inside);
    }
    clipped.0 += BLOCK as u64 - u64::from(vaddvq_u32(inside_lanes));
    positions
}

fn total(counter: Counter) -> u64 {
    counter.0
}

/// 32 positions, each within the range of `i16`, clamped to `i8`, in order.
#[inline]
#[target_feature(enable = "neon")]
fn narrowed(positions: &[int32x4_t; 8]) -> [int8x16_t; 2] {
    let eight = |at: usize| vcombine_s16(vqmovn_s32(positions[at]), vqmovn_s32(positions[at + 1]));
    let sixteen = |at: usize| vcombine_s8(vqmovn_s16(eight(at)), vqmovn_s16(eight(at + 2)));
    [sixteen(0), sixteen(4)]
}

/// 32 positions, each within the range of `i8`, clamped and stored as nibbles in order.
#[inline]
#[target_feature(enable = "neon")]
fn pack(positions: &[int32x4_t; 8], lowest: i8, highest: i8) -> [u8; BLOCK_BYTES] {
    let stored = narrowed(positions).map(|codes| {
        let clamped = vminq_s8(vmaxq_s8(codes, vdupq_n_s8(lowest)), vdupq_n_s8(highest));
        vreinterpretq_u8_s8(vaddq_s8(clamped, vdupq_n_s8(BIAS)))
    });
    let (low, high) = (vuzp1q_u8(stored[0], stored[1]), vuzp2q_u8(stored[0], stored[1]));
    let mut bytes = [0; BLOCK_BYTES];
    // SAFETY: `bytes` is 16 bytes.
    unsafe { vst1q_u8(bytes.as_mut_ptr(), vorrq_u8(low, vshlq_n_u8::<4>(high))) };
    bytes
}

/// 32 positions, each within the range of `i16`, clamped to `i8` and stored in order.
#[inline]
#[target_feature(enable = "neon")]
fn narrow(positions: &[int32x4_t; 8]) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for (bytes, codes) in bytes.as_chunks_mut::<16>().0.iter_mut().zip(narrowed(positions)) {
        // SAFETY: `bytes` is 16 bytes.
        unsafe { vst1q_u8(bytes.as_mut_ptr(), vreinterpretq_u8_s8(codes)) };
    }
    bytes
}

/// 32 codes as bytes, in order: nibbles from 16 bytes, whole bytes from 32.
#[inline]
#[target_feature(enable = "neon")]
fn codes<const CODES: usize>(bytes: &[u8; CODES]) -> [int8x16_t; 2] {
    const { assert!(CODES == BLOCK_BYTES || CODES == BLOCK) };
    // SAFETY: `bytes` is at least 16 bytes.
    let first = unsafe { vld1q_u8(bytes.as_ptr()) };
    if CODES == BLOCK {
        // SAFETY: here `bytes` is 32 bytes.
        let second = unsafe { vld1q_u8(bytes.as_ptr().add(16)) };
        return [vreinterpretq_s8_u8(first), vreinterpretq_s8_u8(second)];
    }
    let (low, high) = (vandq_u8(first, vdupq_n_u8(0x0f)), vshrq_n_u8::<4>(first));
    let code = |stored| vsubq_s8(vreinterpretq_s8_u8(stored), vdupq_n_s8(BIAS));
    [code(vzip1q_u8(low, high)), code(vzip2q_u8(low, high))]
}

/// `0 + code j * steps[j]` for 32 codes: a zero is never negative, as in a sum that starts from zero.
#[inline]
#[target_feature(enable = "neon")]
fn products(codes: &[int8x16_t; 2], steps: &Lanes) -> Lanes {
    let mut x = splat(0.0);
    for ((x, codes), step) in x.iter_mut().zip(as_floats(codes)).zip(steps) {
        *x = vaddq_f32(*x, vmulq_f32(codes, *step));
    }
    x
}

/// `sum[j] += code j * steps[j]` for 32 codes; ONTO_ZERO: as if `sum` were zeros.
#[inline]
#[target_feature(enable = "neon")]
fn accumulate<const ONTO_ZERO: bool>(codes: &[int8x16_t; 2], steps: &Lanes, sum: &mut [f32; BLOCK]) {
    if ONTO_ZERO {
        return store(&products(codes, steps), sum);
    }
    let terms = sum.as_chunks_mut::<4>().0.iter_mut().zip(as_floats(codes));
    for ((sum, codes), step) in terms.zip(steps) {
        let sum = sum.as_mut_ptr();
        // SAFETY: `sum` points to 4 f32.
        unsafe { vst1q_f32(sum, vaddq_f32(vld1q_f32(sum), vmulq_f32(codes, *step))) };
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn as_floats(codes: &[int8x16_t; 2]) -> Lanes {
    let halves = [
        vmovl_s8(vget_low_s8(codes[0])),
        vmovl_s8(vget_high_s8(codes[0])),
        vmovl_s8(vget_low_s8(codes[1])),
        vmovl_s8(vget_high_s8(codes[1])),
    ];
    let mut floats = splat(0.0);
    for (floats, eight) in floats.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
        *floats = [
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(eight))),
            vcvtq_f32_s32(vmovl_s16(vget_high_s16(eight))),
        ];
    }
    floats
}

/// Nothing: a prefetch needs an intrinsic that Rust has not made stable.
#[inline]
#[target_feature(enable = "neon")]
fn fetch_ahead<T>(_block: &[T; BLOCK]) {}

/// 32 values to nearest even, in order, as [`scalar::round`].
#[inline]
#[target_feature(enable = "neon")]
fn store_rounded<T: Element>(x: &Lanes, to: &mut [T; BLOCK]) {
    const { assert!(size_of::<T>() == T::DTYPE.size()) };
    for (x, to) in x.iter().zip(to.as_chunks_mut::<4>().0) {
        match T::DTYPE {
            // SAFETY: four elements, of a size that the assertion ties to the dtype: 16 bytes.
            Dtype::F32 => unsafe { vst1q_f32(to.as_mut_ptr().cast(), *x) },
            // SAFETY: as above: 8 bytes.
            Dtype::Bf16 => unsafe { vst1_u16(to.as_mut_ptr().cast(), nearest_bf16(*x)) },
            // As `load`.
            Dtype::F16 => {
                let mut floats = [0.0; 4];
                // SAFETY: 16 bytes.
                unsafe { vst1q_f32(floats.as_mut_ptr(), *x) };
                *to = floats.map(T::from_f32);
            }
        }
    }
}

/// The bits of [`scalar::nearest_bf16`].
#[inline]
#[target_feature(enable = "neon")]
fn nearest_bf16(x: float32x4_t) -> uint16x4_t {
    let bits = vreinterpretq_u32_f32(x);
    let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
    let nearest = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    let nan = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
    vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(x, x), nearest, nan))
}
