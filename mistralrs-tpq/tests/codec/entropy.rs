//! `rd` with entropy coding: pinned bytes, exact sizes, refusals, and how close it comes to the bound.

use mistralrs_tpq::calibrate::{entropy_tables, rd_tables, GainHistogram};
use mistralrs_tpq::codec::{Codec, CodecError, Dtype, EntropyTables, EntropyTablesError, Rd, RdEntropy};
use proptest::prelude::*;

use crate::support::*;

fn normal_rows(rows: usize, scales: &[f64], seed: u32) -> Vec<f32> {
    let mut noise = Noise(seed);
    let mut normal = move || {
        let uniform = (0..12).map(|_| f64::from(noise.next()) / f64::from(u32::MAX));
        uniform.sum::<f64>() - 6.0
    };
    let one = |i: usize| (scales[i % scales.len()] * normal()) as f32;
    (0..rows * scales.len()).map(one).collect()
}

fn codec(scales: &[f64], bits: f64) -> RdEntropy {
    let mean: f64 = scales.iter().map(|scale| scale * scale).sum::<f64>() / scales.len() as f64;
    let rms = scales.iter().map(|scale| scale / mean.sqrt()).collect();
    RdEntropy::new(EntropyTables::new(&normal_shape(), &[rms], bits).unwrap())
}

fn error(codec: &dyn Codec, values: &[f32]) -> f64 {
    let (decoded, _) = round_trip(codec, values);
    let squares = values.iter().zip(&decoded).map(|(x, d)| f64::from(x - d).powi(2));
    squares.sum::<f64>() / values.len() as f64
}

#[test]
fn a_row_has_the_pinned_bytes() {
    let codec = codec(&[1.0, 2.0, 0.5, 8.0, 0.0, 1.0, 1.0, 1.0], 8.0);
    let values = [0.5, -1.0, 0.25, 9.0, 0.0, -2.0, 1.5, 1e6];
    let (payload, stats) = encode(&codec, 0, &Tensor::new(Dtype::F32, &values));
    assert_eq!(payload.len(), 8);
    assert_eq!((stats.clipped, stats.nonfinite), (0, 0));
    assert_eq!(hex(&payload), "3d5806eec281568b");
}

/// Shannon's bound for independent normal features by reverse water-filling: b bits a value leave the geometric mean of the
/// variances times 2^(-2b). A fixed number of bits a value loses 0.8 dB more to levels, and cannot split a bit.
#[test]
fn normal_features_are_within_two_decibels_of_the_rate_distortion_bound() {
    let scales: Vec<f64> = (0..512).map(|i| 10f64.powf(f64::from(i) / 512.0 - 0.5)).collect();
    let values = normal_rows(64, &scales, 7);
    let log2: f64 = scales.iter().map(|scale| 2.0 * scale.log2()).sum::<f64>() / scales.len() as f64;
    for bits in [2.5, 3.5, 4.1875, 6.0] {
        let bound = (log2 - 2.0 * bits).exp2();
        let over = 10.0 * (error(&codec(&scales, bits), &values) / bound).log10();
        // 1.53 dB from the even step, 0.2 dB for 16 bits of gain in 512 values, and the models.
        assert!((0.0..2.0).contains(&over), "{bits} bits: {over} dB over the bound");
    }
}

#[test]
fn entropy_coding_leaves_less_error_than_fixed_bits_at_the_same_size() {
    let scales: Vec<f64> = (0..256).map(|i| 10f64.powf(f64::from(i) / 256.0 - 0.5)).collect();
    let mut histogram = GainHistogram::new(256);
    normal_rows(512, &scales, 1)
        .chunks(256)
        .for_each(|row| histogram.observe_row(row));
    let (curves, shape) = (histogram.curves(), GainHistogram::shape(&[histogram]));
    let held_out = normal_rows(64, &scales, 2);
    for bits in [3.0, 4.1875] {
        let fixed = Rd::new(rd_tables(&curves, 256, bits).unwrap());
        let coded = RdEntropy::new(entropy_tables(&curves, &shape, 256, bits).unwrap());
        assert!(coded.payload_len(1, Dtype::F32) <= fixed.payload_len(1, Dtype::F32) + 1);
        let [fixed, coded] = [error(&fixed, &held_out), error(&coded, &held_out)];
        assert!(coded < 0.75 * fixed, "{bits} bits: {coded}, fixed {fixed}");
    }
}

#[test]
fn most_damaged_rows_are_refused() {
    let codec = codec(&[1.0; 64], 4.0);
    let values = normal_rows(1, &[1.0; 64], 3);
    let (payload, _) = encode(&codec, 0, &Tensor::new(Dtype::F32, &values));
    let refused = (0..payload.len()).filter(|at| {
        let mut damaged = payload.clone();
        damaged[*at] ^= 0x10;
        let result = codec.decode_accumulate(0, &damaged, Dtype::F32, &mut [0.0; 64]);
        match result {
            Ok(()) => false,
            Err(error) => error == CodecError::Stream { rank: 0, token: 0 },
        }
    });
    // It is no checksum: of the states that a wrong row may end in, one in eight looks like the end of a right one.
    assert!(refused.count() * 4 >= payload.len() * 3);
    let result = codec.decode_accumulate(1, &payload, Dtype::F32, &mut [0.0; 64]);
    assert_eq!(result, Err(CodecError::UnknownRank { rank: 1, ranks: 1 }));
}

#[test]
fn tables_that_make_no_sense_are_refused() {
    let tables = |shape: &[f32], rms: &[Vec<f64>]| EntropyTables::new(shape, rms, 4.0).unwrap_err();
    let shape = normal_shape();
    assert_eq!(tables(&shape, &[]), EntropyTablesError::NoRanks);
    assert_eq!(tables(&[1.0], &[vec![1.0]]), EntropyTablesError::Shape);
    assert!(matches!(
        tables(&shape, &[vec![1.0], vec![]]),
        EntropyTablesError::FeatureCount { rank: 1, .. }
    ));
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(tables(&shape, &[vec![bad]]), EntropyTablesError::Rms { .. }));
    }
}

proptest! {
    /// Calibration is a promise about typical rows only: any row must fit, a lone loud value included.
    #[test]
    fn any_row_fits_under_any_budget(
        values in prop::collection::vec(any_value(), 1..80),
        rms in prop::collection::vec(prop_oneof![Just(0.0), 1e-6f64..1e3], 80),
        bits in 0.5f64..16.0,
    ) {
        let features = values.len();
        let tables = EntropyTables::new(&normal_shape(), &[rms[..features].to_vec()], bits).unwrap();
        let codec = RdEntropy::new(tables);
        let input = Tensor::new(Dtype::F32, &values);
        let (payload, _) = encode(&codec, 0, &input);
        prop_assert!(payload.len() <= (bits * features as f64 / 8.0) as usize + 3 + features);
        let mut sum = vec![0.0; features];
        prop_assert_eq!(codec.decode_accumulate(0, &payload, Dtype::F32, &mut sum), Ok(()));
        let mut bound = vec![0.0; features];
        codec.error_bound(0, &input.to_f32(), &mut bound);
        for ((x, d), bound) in values.iter().zip(&sum).zip(&bound) {
            prop_assert!(!x.is_finite() || (f64::from(*x) - f64::from(*d)).abs() <= f64::from(*bound), "{} {} {}", x, d, bound);
        }
    }
}
