//! The codecs against their promises: the same bits on every instruction set, golden bytes, error bounds, exact sizes,
//! and no panic on a peer's bytes.

#[path = "codec/dynamic.rs"]
mod dynamic;
#[path = "codec/entropy.rs"]
mod entropy;
#[path = "codec/golden.rs"]
mod golden;
#[path = "codec/paper.rs"]
mod paper_codec;
#[path = "codec/rd.rs"]
mod rd_codec;
#[path = "codec/support.rs"]
mod support;

use mistralrs_tpq::codec::{Codec, CodecError, CodecKind, Dtype, Dynamic, EncodeStats, Level, NoCodec, Values};
use proptest::prelude::*;

use support::*;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

// ---- bit equality ----

proptest! {
    #[test]
    fn simd_gives_the_bits_of_the_specification(site in any_site(), seed in any::<u32>()) {
        for dtype in DTYPES {
            let input = Tensor::new(dtype, &site.values);
            for (scalar, other) in on_other_levels(&site) {
                for rank in 0..site.ranges.len() {
                    assert_same_bits(scalar.as_ref(), other.as_ref(), rank, &input, seed);
                }
            }
        }
    }

    #[test]
    fn decoding_random_bytes_never_panics_and_adds_finite_values(site in any_site(), seed in any::<u32>()) {
        for dtype in DTYPES {
            for (scalar, other) in on_other_levels(&site) {
                let mut noise = Noise(seed);
                let payload: Vec<u8> = (0..scalar.payload_len(site.tokens(), dtype)).map(|_| noise.next() as u8).collect();
                let mut sums = [vec![0.0f32; site.values.len()], vec![0.0f32; site.values.len()]];
                let results = [
                    scalar.decode_accumulate(0, &payload, dtype, &mut sums[0]),
                    other.decode_accumulate(0, &payload, dtype, &mut sums[1]),
                ];
                prop_assert_eq!(&results[0], &results[1]);
                match &results[0] {
                    Ok(()) if scalar.name() != "none" => {
                        prop_assert!(sums[0].iter().all(|x| x.is_finite()));
                        prop_assert_eq!(bits(&sums[0]), bits(&sums[1]));
                    }
                    Ok(()) => {}
                    Err(error) => prop_assert!(matches!(error, CodecError::Content { rank: 0, .. } | CodecError::Stream { rank: 0, .. }), "{}", error),
                }
            }
        }
    }

    #[test]
    fn all_ranks_end_with_the_same_bits(world in prop::sample::select(vec![2usize, 3, 4, 5, 8]), site in finite_site(8)) {
        for codecs in on_other_levels(&site) {
            let codecs = [codecs.0, codecs.1];
            let input = |rank: usize| {
                let rotated: Vec<f32> = (0..site.values.len()).map(|i| site.values[(i + 7 * rank) % site.values.len()]).collect();
                Tensor::new(Dtype::F32, &rotated)
            };
            // Ranks of both kinds, each encoding once and decoding all, its own part included.
            let payloads: Vec<_> = (0..world).map(|rank| encode(codecs[rank % 2].as_ref(), rank, &input(rank)).0).collect();
            let sums: Vec<_> = (0..world).map(|receiver| {
                let mut sum = vec![0.0; site.values.len()];
                for (rank, payload) in payloads.iter().enumerate() {
                    codecs[receiver % 2].decode_accumulate(rank, payload, Dtype::F32, &mut sum).unwrap();
                }
                bits(&sum)
            }).collect();
            prop_assert!(sums.iter().all(|sum| *sum == sums[0]));
        }
    }

    #[test]
    fn round_trip_error_stays_within_the_bound(site in any_site()) {
        for codec in site.codecs(Level::best()) {
            let (payload, _) = encode(codec.as_ref(), 0, &Tensor::new(Dtype::F32, &site.values));
            let mut decoded = vec![0.0; site.values.len()];
            codec.decode_accumulate(0, &payload, Dtype::F32, &mut decoded).unwrap();
            let mut bound = vec![0.0; site.features()];
            for (row, decoded) in site.values.chunks(site.features()).zip(decoded.chunks(site.features())) {
                codec.error_bound(0, row, &mut bound);
                for ((&x, &d), &bound) in row.iter().zip(decoded).zip(&bound) {
                    if x.is_finite() {
                        let error = (f64::from(x) - f64::from(d)).abs();
                        prop_assert!(error <= f64::from(bound), "{}: {x} -> {d}, bound {bound}", codec.name());
                        prop_assert!(d.is_finite());
                    } else if codec.name() != "none" {
                        prop_assert!(d.is_finite() && bound.is_infinite());
                    }
                }
            }
        }
    }

    #[test]
    fn paper_is_symmetric_about_zero(site in finite_site(1)) {
        let codec = site.paper(Level::best());
        let negated: Vec<f32> = site.values.iter().map(|x| -x).collect();
        let decode = |values: &[f32]| {
            let (payload, stats) = encode(&codec, 0, &Tensor::new(Dtype::F32, values));
            let mut sum = vec![0.0; values.len()];
            codec.decode_accumulate(0, &payload, Dtype::F32, &mut sum).unwrap();
            (sum, stats)
        };
        let (plus, minus) = (decode(&site.values), decode(&negated));
        prop_assert_eq!(plus.1, minus.1);
        prop_assert!(plus.0.iter().zip(&minus.0).all(|(a, b)| *a == -*b));
    }
}

#[test]
fn simd_gives_the_bits_of_the_specification_at_every_length() {
    for features in 0..=200 {
        for outliers in [0, 1, features / 64, features / 3, features] {
            let outliers = outliers.min(features);
            let site = Site::patterned(features, 2, outliers, features as u32);
            for dtype in DTYPES {
                let input = Tensor::new(dtype, &site.values);
                for (scalar, other) in on_other_levels(&site) {
                    assert_same_bits(scalar.as_ref(), other.as_ref(), 1, &input, 9);
                }
            }
        }
    }
}

#[test]
fn vector_code_runs_where_the_processor_has_it() {
    assert_eq!(Level::scalar().name(), "scalar");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vbmi2") {
        assert_eq!(Level::best().name(), "avx512");
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        assert_eq!(Level::best().name(), "avx2");
    }
    // Every processor of the target that Rust builds for has it.
    #[cfg(target_arch = "aarch64")]
    assert_eq!(Level::best().name(), "neon");
}

#[test]
fn simd_counts_many_clipped_values_in_a_long_row() {
    let features = 1 << 16;
    for level in Level::all() {
        let codec = paper(vec![vec![7.0; features]], vec![]).with_level(level);
        let (_, stats) = encode(&codec, 0, &Tensor::new(Dtype::F32, &vec![1e30; features]));
        assert_eq!(
            stats,
            EncodeStats {
                clipped: features as u64,
                nonfinite: 0
            }
        );
    }
}

// ---- sizes ----

#[test]
fn paper_takes_exactly_4_1875_bits_when_128_divides_the_features() {
    for features in [64, 128, 192, 2048, 2880, 4096, 5120, 8192, 28672] {
        let outliers = (0..features as u32 / 64).collect();
        let codec = paper(vec![vec![1.0; features]], outliers);
        // An odd number of outliers leaves an odd number of codes: half a byte at the end of the plane.
        let padding = if features.is_multiple_of(128) { 0.0 } else { 4.0 };
        for tokens in [0, 1, 17] {
            let bits = codec.payload_len(tokens, Dtype::Bf16) * 8;
            assert_eq!(bits as f64, tokens as f64 * (4.1875 * features as f64 + padding));
        }
    }
}

#[test]
fn payload_sizes_are_exact() {
    assert_eq!(NoCodec::new(7).payload_len(3, Dtype::F32), 84);
    assert_eq!(NoCodec::new(7).payload_len(3, Dtype::F16), 42);
    assert_eq!(Dynamic::new(4096).payload_len(2, Dtype::Bf16), 2 * 4096 * 9 / 16);
    assert_eq!(Dynamic::new(33).payload_len(1, Dtype::Bf16), 17 + 4);
    assert_eq!(Dynamic::new(1).payload_len(5, Dtype::F32), 5 * 3);
    assert_eq!(paper(vec![vec![1.0; 9]], vec![2, 4]).payload_len(1, Dtype::F32), 4 + 4);
    assert_eq!(paper(vec![vec![1.0; 3]], vec![0, 1, 2]).payload_len(1, Dtype::F32), 6);
    assert_eq!(Dynamic::new(4096).payload_len(usize::MAX, Dtype::F32), usize::MAX);
    assert_eq!(NoCodec::new(4096).payload_len(usize::MAX, Dtype::F32), usize::MAX);
}

#[test]
fn a_payload_of_the_wrong_length_is_refused_and_adds_nothing() {
    let site = Site::patterned(65, 2, 3, 4);
    for codec in site.codecs(Level::best()) {
        let expected = codec.payload_len(2, Dtype::Bf16);
        for got in [0, 1, expected - 1, expected + 1] {
            let mut sum = vec![1.0; 130];
            let result = codec.decode_accumulate(1, &vec![0x77; got], Dtype::Bf16, &mut sum);
            assert_eq!(result, Err(CodecError::PayloadLength { rank: 1, expected, got }));
            assert_eq!(sum, vec![1.0; 130]);
        }
        let empty = codec.decode_accumulate(0, &[], Dtype::Bf16, &mut []);
        assert_eq!(empty, Ok(()));
    }
}

#[test]
fn no_features_means_empty_payloads() {
    let site = Site {
        values: vec![],
        ranges: vec![vec![]],
        outliers: vec![],
    };
    for codec in site.codecs(Level::best()) {
        assert_eq!(codec.payload_len(100, Dtype::F32), 0);
        assert_eq!(codec.encode(0, Values::F32(&[]), &mut []), EncodeStats::default());
        assert_eq!(codec.decode_accumulate(0, &[], Dtype::F32, &mut []), Ok(()));
    }
}

// ---- none ----

#[test]
fn none_keeps_every_bit_and_counts_what_is_not_finite() {
    for dtype in DTYPES {
        let input = Tensor::new(dtype, &[1.0, -0.0, f32::NAN, f32::INFINITY, 1e-40, -65000.0]);
        let (payload, stats) = encode(&NoCodec::new(3), 0, &input);
        assert_eq!(payload, input.le_bytes());
        assert_eq!(
            stats,
            EncodeStats {
                clipped: 0,
                nonfinite: 2
            }
        );
    }
}

#[test]
fn none_is_exact_over_many_rows() {
    for dtype in DTYPES {
        let values: Vec<f32> = (0..70_000).map(|i| (i % 2003) as f32 / 8.0 - 100.0).collect();
        let input = Tensor::new(dtype, &values);
        let (payload, stats) = encode(&NoCodec::new(7), 0, &input);
        assert_eq!((payload == input.le_bytes(), stats), (true, EncodeStats::default()));
        let mut sum = vec![0.0; values.len()];
        NoCodec::new(7).decode_accumulate(0, &payload, dtype, &mut sum).unwrap();
        assert_eq!(bits(&sum), bits(&input.to_f32()));

        let infinite = Tensor::new(dtype, &[f32::INFINITY; 70_000]);
        assert_eq!(encode(&NoCodec::new(7), 0, &infinite).1.nonfinite, 70_000);
    }
}

// ---- kinds ----

#[test]
fn kinds_are_found_by_name_and_tag() {
    let site = Site::patterned(8, 1, 1, 0);
    for (kind, codec) in CodecKind::ALL.into_iter().zip(site.codecs(Level::best())) {
        assert_eq!((codec.name(), codec.tag()), (kind.name(), kind.tag()));
        assert_eq!(CodecKind::from_name(kind.name()), Some(kind));
        assert_eq!(CodecKind::from_tag(kind.tag()), Some(kind));
    }
    assert_eq!((CodecKind::from_name("Paper"), CodecKind::from_tag(3)), (None, None));
    assert_eq!(CodecKind::ALL.map(CodecKind::tag), [0, 1, 2, 4, 5]);
}
