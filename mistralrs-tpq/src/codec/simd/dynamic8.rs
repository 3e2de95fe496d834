//! `dynamic8` for AVX2: the loops of the specification, compiled once more for wider vectors.

#![allow(unsafe_code)]

use super::avx2::Avx2;
use crate::codec::dynamic8::kernel;
use crate::codec::scalar::BadWord;
use crate::codec::values::Element;

impl Avx2 {
    pub fn dynamic8_encode_row<T: Element>(self, values: &[T], row: &mut [u8]) -> u64 {
        // SAFETY: `self` exists only where `new` has found both features.
        unsafe { encode_row(values, row) }
    }

    pub fn dynamic8_decode_row(self, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
        // SAFETY: `self` exists only where `new` has found both features.
        unsafe { decode_row(row, sum) }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn encode_row<T: Element>(values: &[T], row: &mut [u8]) -> u64 {
    kernel::encode_row(values, row)
}

#[target_feature(enable = "avx2,f16c")]
fn decode_row(row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
    kernel::decode_row(row, sum)
}
