//! `rd`: pinned bytes, refusals, and what gain and classes promise.

use mistralrs_tpq::calibrate::{rd_tables, LayerStatistics, RangeObserver, Selection};
use mistralrs_tpq::codec::{Codec, CodecError, Dtype, Level, Rd, RdRank, RdTables, RdTablesError, CLASSES};
use proptest::prelude::*;

use crate::support::*;
use crate::DTYPES;

fn rd(bits: &[u8], steps: &[f32]) -> Rd {
    let (bits, steps) = (bits.to_vec(), steps.to_vec());
    Rd::new(RdTables::new(&[RdRank { bits, steps }]).unwrap())
}

/// Bytes from a script that follows the documented row: gain, words, bytes, nibbles, crumbs, single bits.
#[test]
fn a_row_of_every_class_has_the_documented_bytes() {
    let bits = [0, 1, 2, 3, 4, 5, 6, 8, 16, 4, 3, 2, 1];
    let steps = [
        1.0,
        1.0,
        1.0,
        0.5,
        0.75,
        0.6,
        0.125,
        1.0 / 64.0,
        1.0,
        2.0,
        0.25,
        0.5,
        2.0,
    ];
    let values = [1.0, 1.0, -1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 1.0, -1.0];
    let codec = rd(&bits, &steps);
    let (payload, stats) = encode(&codec, 0, &Tensor::new(Dtype::F32, &values));
    assert_eq!(hex(&payload), "803f80bfc0a81cfc0115");
    assert_eq!((stats.clipped, stats.nonfinite), (1, 0), "the last but two is 4 steps");
    let (decoded, _) = round_trip(&codec, &values);
    assert_eq!((decoded[0], decoded[8]), (0.0, -1.0));
    assert_eq!(decoded[1], 0.797_884_6);
    assert_eq!(decoded[7], -64.5 / 64.0);
}

#[test]
fn scaling_a_token_by_a_power_of_two_scales_what_arrives() {
    let site = Site::patterned(90, 1, 0, 5);
    let codec = site.rd();
    let values: Vec<f32> = site.values[..90]
        .iter()
        .map(|x| if x.abs() < 1e3 && x.abs() > 1e-3 { *x } else { 1.0 })
        .collect();
    let (quiet, _) = round_trip(&codec, &values);
    let loud: Vec<f32> = values.iter().map(|x| x * 1024.0).collect();
    let (loud, _) = round_trip(&codec, &loud);
    assert!(quiet.iter().zip(&loud).all(|(quiet, loud)| quiet * 1024.0 == *loud));
}

#[test]
fn an_unsendable_gain_or_word_is_refused() {
    let codec = rd(&[16, 4], &[1.0, 1.0]);
    let (payload, _) = encode(&codec, 0, &Tensor::new(Dtype::F32, &[1.0, 1.0]));
    for (at, word) in [
        (0, 0x7f80u16),
        (0, 0x8000),
        (0, 0xbf80),
        (0, 0x7f00),
        (2, 0x7f80),
        (2, 0x7fc0),
    ] {
        let mut bad = payload.clone();
        bad[at..at + 2].copy_from_slice(&word.to_le_bytes());
        let result = codec.decode_accumulate(0, &bad, Dtype::F32, &mut [0.0; 2]);
        assert!(
            matches!(result, Err(CodecError::Content { bits, .. }) if bits == word),
            "{result:?}"
        );
    }
    let result = codec.decode_accumulate(1, &payload, Dtype::F32, &mut [0.0; 2]);
    assert_eq!(result, Err(CodecError::UnknownRank { rank: 1, ranks: 1 }));
}

#[test]
fn ranks_with_other_classes_share_one_row_length() {
    let ranks = [vec![8, 8, 8], vec![0, 1, 0]].map(|bits| RdRank {
        bits,
        steps: vec![1.0; 3],
    });
    let codec = Rd::new(RdTables::new(&ranks).unwrap());
    assert_eq!(codec.payload_len(2, Dtype::Bf16), 2 * (2 + 3));
    for rank in 0..2 {
        let input = Tensor::new(Dtype::F32, &[1.0, -2.0, 0.5]);
        let (payload, _) = encode(&codec, rank, &input);
        let mut sum = [0.0; 3];
        codec.decode_accumulate(rank, &payload, Dtype::F32, &mut sum).unwrap();
        assert_eq!(sum[0] == 0.0, rank == 1);
    }
}

#[test]
fn tables_that_make_no_sense_are_refused() {
    let tables = |bits: &[u8], steps: &[f32]| {
        let (bits, steps) = (bits.to_vec(), steps.to_vec());
        RdTables::new(&[RdRank { bits, steps }]).unwrap_err()
    };
    assert_eq!(RdTables::new(&[]), Err(RdTablesError::NoRanks));
    assert!(matches!(tables(&[4, 4], &[1.0]), RdTablesError::FeatureCount { .. }));
    assert!(matches!(tables(&[7], &[1.0]), RdTablesError::Bits { got: 7, .. }));
    for step in [0.0, -1.0, f32::NAN, f32::INFINITY, 1025.0, 1e-38] {
        assert!(matches!(tables(&[4], &[step]), RdTablesError::Step { .. }), "{step}");
    }
    assert_eq!(RdTables::row_len(CLASSES), 2 + 2 + 1 + 2 + 1 + 1);
}

fn assert_same_bits_on_all_levels(codec: &Rd, values: &[f32]) {
    let scalar = codec.clone().with_level(Level::scalar());
    for level in Level::all().skip(1) {
        let other = codec.clone().with_level(level);
        for dtype in DTYPES {
            assert_same_bits(&scalar, &other, 0, &Tensor::new(dtype, values), values.len() as u32);
        }
    }
}

#[test]
fn simd_gives_the_bits_of_the_specification_for_every_class_at_every_length() {
    for bits in CLASSES {
        for features in 1..=100 {
            let codec = rd(&vec![bits; features], &vec![0.3; features]);
            let mut noise = Noise(features as u32);
            let values: Vec<f32> = (0..2 * features)
                .map(|_| noise.next() as i32 as f32 / (1 << 29) as f32)
                .collect();
            assert_same_bits_on_all_levels(&codec, &values);
        }
    }
}

proptest! {
    #[test]
    fn simd_gives_the_bits_of_the_specification_for_any_classes(
        features in prop::collection::vec((prop::sample::select(&CLASSES[..]), 1e-3f32..10.0), 1..700),
        seed in any::<u32>(),
        exponent in -40i32..30,
        special in prop::option::weighted(0.3, (any::<prop::sample::Index>(), any_value())),
    ) {
        let (bits, steps): (Vec<u8>, Vec<f32>) = features.into_iter().unzip();
        let codec = rd(&bits, &steps);
        let mut noise = Noise(seed);
        let mut values: Vec<f32> = (0..2 * bits.len())
            .map(|_| noise.next() as i32 as f32 * ((exponent - 31) as f32).exp2())
            .collect();
        if let Some((at, x)) = special {
            *at.get_mut(&mut values) = x;
        }
        assert_same_bits_on_all_levels(&codec, &values);
    }
}

/// Tokens whose loudness varies by a factor of e around a median, features by one of 10: what a partial sum looks like.
fn tokens(count: usize, features: usize, seed: u32) -> Vec<f32> {
    let mut noise = Noise(seed);
    let mut normal = move || {
        (0..12)
            .map(|_| f64::from(noise.next()) / f64::from(u32::MAX))
            .sum::<f64>()
            - 6.0
    };
    let scale =
        |feature: usize| 10f64.powf(0.5 * ((feature * 37 % features) as f64 / features as f64 * 6.0 - 3.0) / 3.0);
    (0..count)
        .flat_map(|_| {
            let loudness = normal().exp();
            (0..features)
                .map(|feature| (loudness * scale(feature) * normal()) as f32)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn relative_error(codec: &dyn Codec, values: &[f32]) -> f64 {
    let (decoded, _) = round_trip(codec, values);
    let rows = values.chunks(codec.features()).zip(decoded.chunks(codec.features()));
    let relative = rows.map(|(row, decoded)| {
        let square = |x: f64| x * x;
        let error: f64 = row.iter().zip(decoded).map(|(x, d)| square(f64::from(x - d))).sum();
        error / row.iter().map(|x| square(f64::from(*x))).sum::<f64>()
    });
    relative.sum::<f64>() / (values.len() / codec.features()) as f64
}

#[test]
fn calibrated_rd_leaves_a_third_of_papers_error_on_tokens_of_other_loudness_at_the_same_bits() {
    const FEATURES: usize = 256;
    let mut observer = RangeObserver::new(FEATURES, 0.99).unwrap();
    for sequence in 0..32 {
        observer.observe(&tokens(32, FEATURES, sequence)).unwrap();
        observer.end_sequence();
    }
    let plan = mistralrs_tpq::config::Plan::parse("version: 1\ncodec: {kind: none}\n", "a.yaml".as_ref()).unwrap();
    let statistics = LayerStatistics::gather("a", &[observer]).unwrap();
    let layer = statistics
        .into_layer(plan.calibration.outliers, Selection::Largest)
        .unwrap();
    let paper = paper(vec![layer.ranges().to_vec()], layer.outliers().to_vec());
    let rd = Rd::new(rd_tables(layer.curves(), FEATURES, 4.1875).unwrap());
    assert!(rd.payload_len(1, Dtype::F32) <= paper.payload_len(1, Dtype::F32));
    let held_out = tokens(256, FEATURES, 1 << 20);
    let [paper, rd] = [relative_error(&paper, &held_out), relative_error(&rd, &held_out)];
    assert!(rd < paper / 3.0, "rd {rd}, paper {paper}");
}
