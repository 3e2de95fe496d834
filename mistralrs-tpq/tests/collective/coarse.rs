//! A small lossy codec, so that the suite can tell a dequantized own copy from a raw one.

use mistralrs_tpq::codec::{Codec, CodecError, Dtype, EncodeStats, Values};

/// One signed byte a value, step 1/8, range +-15.875; NaN becomes zero.
#[derive(Debug)]
pub struct Coarse {
    pub features: usize,
    pub name: &'static str,
    pub tag: u8,
}

pub fn coarse(features: usize) -> Coarse {
    Coarse {
        features,
        name: "coarse",
        tag: 7,
    }
}

pub fn to_f32(values: Values<'_>) -> Vec<f32> {
    match values {
        Values::F32(v) => v.to_vec(),
        Values::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
        Values::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
    }
}

pub fn quantize(x: f32) -> i8 {
    // `as` saturates and maps NaN to zero.
    (x * 8.0).round() as i8
}

impl Codec for Coarse {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tag(&self) -> u8 {
        self.tag
    }

    fn features(&self) -> usize {
        self.features
    }

    fn payload_len(&self, tokens: usize, _: Dtype) -> usize {
        tokens * self.features
    }

    fn encode(&self, _: usize, values: Values<'_>, payload: &mut [u8]) -> EncodeStats {
        let mut stats = EncodeStats::default();
        let mut put = |at: usize, x: f32| {
            stats.nonfinite += u64::from(!x.is_finite());
            stats.clipped += u64::from(x.abs() > 15.875);
            payload[at] = quantize(x) as u8;
        };
        match values {
            Values::F32(v) => v.iter().enumerate().for_each(|(i, x)| put(i, *x)),
            Values::Bf16(v) => v.iter().enumerate().for_each(|(i, x)| put(i, x.to_f32())),
            Values::F16(v) => v.iter().enumerate().for_each(|(i, x)| put(i, x.to_f32())),
        }
        stats
    }

    fn decode_accumulate(&self, rank: usize, payload: &[u8], _: Dtype, sum: &mut [f32]) -> Result<(), CodecError> {
        if payload.len() != sum.len() {
            return Err(CodecError::PayloadLength {
                rank,
                expected: sum.len(),
                got: payload.len(),
            });
        }
        sum.iter_mut()
            .zip(payload)
            .for_each(|(sum, byte)| *sum += f32::from(*byte as i8) / 8.0);
        Ok(())
    }

    fn error_bound(&self, _: usize, row: &[f32], bound: &mut [f32]) {
        for (x, bound) in row.iter().zip(bound) {
            *bound = (x.abs() - 15.875).max(0.0) + 1.0 / 16.0;
        }
    }
}
