//! AVX2 lanes: a vector of eight.

#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use super::tiles::{add, slices, tiles, Ahead};
use super::{chunk_of, Weight, LANES};
use crate::codec::simd::avx2::load_eight as load;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    pub fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        (found && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }
}

tiles!(Avx2, "avx2,fma,f16c");

type Lanes = __m256;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn zero() -> Lanes {
    _mm256_setzero_ps()
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_add(x: Lanes, weights: Lanes, sums: Lanes) -> Lanes {
    _mm256_fmadd_ps(x, weights, sums)
}

/// Of each its sum: neighbours, pairs of them, then both halves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sums_of_four([a, b, c, d]: [Lanes; 4]) -> [f32; 4] {
    let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
    let mut four = [0.0; 4];
    // SAFETY: 16 bytes; the store needs no alignment.
    unsafe { _mm_storeu_ps(four.as_mut_ptr(), sums) };
    four
}

/// Has the line of `from` in the second-level cache soon.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fetch<T>(from: *const T) {
    _mm_prefetch::<_MM_HINT_T1>(from.cast());
}
