//! NEON lanes: two vectors of four.

#![allow(unsafe_code)]

use std::arch::aarch64::*;
use std::array::from_fn;
use std::ops::Range;

use super::tiles::{add, slices, tiles, Ahead};
use super::{chunk_of, Weight, LANES};

/// Proof that the processor has NEON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neon(());

impl Neon {
    pub fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

tiles!(Neon, "neon");

type Lanes = [float32x4_t; 2];

#[inline]
#[target_feature(enable = "neon")]
fn zero() -> Lanes {
    [vdupq_n_f32(0.0); 2]
}

/// # Safety
/// `from` points to eight elements.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load<T: Weight>(from: *const T) -> Lanes {
    // SAFETY: eight elements.
    let values: [f32; LANES] = from_fn(|i| unsafe { *from.add(i) }.to_f32());
    // SAFETY: 16 bytes each.
    unsafe { [vld1q_f32(values.as_ptr()), vld1q_f32(values[4..].as_ptr())] }
}

#[inline]
#[target_feature(enable = "neon")]
fn multiply_add(x: Lanes, weights: Lanes, sums: Lanes) -> Lanes {
    [
        vfmaq_f32(sums[0], x[0], weights[0]),
        vfmaq_f32(sums[1], x[1], weights[1]),
    ]
}

/// Of each its sum: neighbours, pairs of them, then both halves.
#[inline]
#[target_feature(enable = "neon")]
fn sums_of_four([a, b, c, d]: [Lanes; 4]) -> [f32; 4] {
    let half = |i: usize| vpaddq_f32(vpaddq_f32(a[i], b[i]), vpaddq_f32(c[i], d[i]));
    let mut four = [0.0; 4];
    // SAFETY: 16 bytes.
    unsafe { vst1q_f32(four.as_mut_ptr(), vaddq_f32(half(0), half(1))) };
    four
}

/// Rust has no stable name for the instruction.
#[inline(always)]
fn fetch<T>(_from: *const T) {}
