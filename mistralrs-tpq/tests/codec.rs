//! The codecs against their promises: the same bits on every instruction set, golden bytes, error bounds, exact sizes,
//! and no panic on a peer's bytes.

use half::{bf16, f16};
use mistralrs_tpq::codec::{
    Codec, CodecError, CodecKind, Dtype, Dynamic, EncodeStats, Level, NoCodec, Paper, PaperTables, PaperTablesError,
    Values,
};
use proptest::prelude::*;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

// ---- bit equality ----

proptest! {
    #[test]
    fn simd_gives_the_bits_of_the_specification(site in any_site(), seed in any::<u32>()) {
        for dtype in DTYPES {
            let input = Tensor::new(dtype, &site.values);
            for (scalar, best) in site.codecs(Level::scalar()).iter().zip(site.codecs(Level::best())) {
                for rank in 0..site.ranges.len() {
                    assert_same_bits(scalar.as_ref(), best.as_ref(), rank, &input, seed);
                }
            }
        }
    }

    #[test]
    fn decoding_random_bytes_never_panics_and_adds_finite_values(site in any_site(), seed in any::<u32>()) {
        for dtype in DTYPES {
            for (scalar, best) in site.codecs(Level::scalar()).iter().zip(site.codecs(Level::best())) {
                let mut noise = Noise(seed);
                let payload: Vec<u8> = (0..scalar.payload_len(site.tokens(), dtype)).map(|_| noise.next() as u8).collect();
                let mut sums = [vec![0.0f32; site.values.len()], vec![0.0f32; site.values.len()]];
                let results = [
                    scalar.decode_accumulate(0, &payload, dtype, &mut sums[0]),
                    best.decode_accumulate(0, &payload, dtype, &mut sums[1]),
                ];
                prop_assert_eq!(&results[0], &results[1]);
                match &results[0] {
                    Ok(()) if scalar.name() != "none" => {
                        prop_assert!(sums[0].iter().all(|x| x.is_finite()));
                        prop_assert_eq!(bits(&sums[0]), bits(&sums[1]));
                    }
                    Ok(()) => {}
                    Err(error) => prop_assert!(matches!(error, CodecError::Content { rank: 0, .. }), "{}", error),
                }
            }
        }
    }

    #[test]
    fn all_ranks_end_with_the_same_bits(world in prop::sample::select(vec![2usize, 3, 4, 5, 8]), site in finite_site(8)) {
        for codecs in site.codecs(Level::scalar()).into_iter().zip(site.codecs(Level::best())) {
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
                for (scalar, best) in site.codecs(Level::scalar()).iter().zip(site.codecs(Level::best())) {
                    assert_same_bits(scalar.as_ref(), best.as_ref(), 1, &input, 9);
                }
            }
        }
    }
}

#[test]
fn simd_counts_many_clipped_values_in_a_long_row() {
    let features = 1 << 16;
    for level in [Level::scalar(), Level::best()] {
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

// ---- golden bytes ----

#[test]
fn payloads_and_sums_match_the_golden_files() {
    let files = [
        include_str!("golden/codec/none.txt"),
        include_str!("golden/codec/paper.txt"),
        include_str!("golden/codec/dynamic.txt"),
    ];
    let cases: usize = files.iter().map(|text| check_golden(text)).sum();
    assert_eq!(cases, 7);
}

fn check_golden(text: &str) -> usize {
    let (mut name, mut outliers, mut ranges) = ("", vec![], vec![]);
    let (mut values, mut before, mut stats, mut payload) = (vec![], vec![], EncodeStats::default(), "");
    let mut cases = 0;
    for line in text.lines() {
        let (key, rest) = line.split_once(' ').unwrap();
        match key {
            "codec" => name = rest,
            "outliers" => outliers = rest.split(' ').map(|o| o.parse().unwrap()).collect(),
            "ranges" => ranges = f32_bits(rest),
            "values" => values = f32_bits(rest),
            "before" => before = f32_bits(rest),
            "payload" => payload = rest,
            "stats" => {
                let (clipped, nonfinite) = rest.split_once(' ').unwrap();
                stats = EncodeStats {
                    clipped: clipped.parse().unwrap(),
                    nonfinite: nonfinite.parse().unwrap(),
                };
            }
            "after" => {
                for level in [Level::scalar(), Level::best()] {
                    let codec: Box<dyn Codec> = match name {
                        "none" => Box::new(NoCodec::new(values.len())),
                        "paper" => Box::new(paper(vec![ranges.clone()], outliers.clone()).with_level(level)),
                        _ => Box::new(Dynamic::new(values.len()).with_level(level)),
                    };
                    let (got, got_stats) = encode(codec.as_ref(), 0, &Tensor::new(Dtype::F32, &values));
                    assert_eq!(hex(&got), payload, "{name}, {}", level.name());
                    assert_eq!(got_stats, stats, "{name}, {}", level.name());
                    let mut sum = before[..values.len()].to_vec();
                    codec.decode_accumulate(0, &got, Dtype::F32, &mut sum).unwrap();
                    assert_eq!(bits(&sum), bits(&f32_bits(rest)), "{name}, {}", level.name());
                }
                cases += 1;
            }
            other => panic!("unknown line {other}"),
        }
    }
    cases
}

// ---- sizes ----

#[test]
fn paper_takes_exactly_4_1875_bits_when_64_divides_the_features() {
    for features in [64, 128, 2048, 4096, 5120, 8192, 28672] {
        let outliers = (0..features as u32 / 64).collect();
        let codec = paper(vec![vec![1.0; features]], outliers);
        for tokens in [0, 1, 17] {
            let bits = codec.payload_len(tokens, Dtype::Bf16) * 8;
            assert_eq!(bits as f64, 4.1875 * (tokens * features) as f64);
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

// ---- paper ----

#[test]
fn paper_rounds_ties_to_even_and_clips_beyond_half_a_step() {
    // Step 1, so values are positions.
    let cases: [(f32, f32, u64); 10] = [
        (0.5, 0.0, 0),
        (1.5, 2.0, 0),
        (2.5, 2.0, 0),
        (-2.5, -2.0, 0),
        (-3.5, -4.0, 0),
        (7.4, 7.0, 0),
        (7.5, 7.0, 0),
        (7.5f32.next_up(), 7.0, 1),
        (-7.6, -7.0, 1),
        (f32::MAX, 7.0, 1),
    ];
    for level in [Level::scalar(), Level::best()] {
        for (x, expected, clipped) in cases {
            let codec = paper(vec![vec![7.0; 32]], vec![]).with_level(level);
            let (decoded, stats) = round_trip(&codec, &[x; 32]);
            assert_eq!(decoded, [expected; 32], "{x}");
            assert_eq!(
                stats,
                EncodeStats {
                    clipped: 32 * clipped,
                    nonfinite: 0
                },
                "{x}"
            );
        }
    }
}

#[test]
fn paper_sends_nan_as_zero_and_saturates_infinity() {
    for outliers in [vec![], (0..40).collect::<Vec<u32>>()] {
        let top = if outliers.is_empty() { 7.0 } else { bf16::MAX.to_f32() };
        let codec = paper(vec![vec![7.0; 40]], outliers);
        for (x, expected) in [(f32::NAN, 0.0), (f32::INFINITY, top), (f32::NEG_INFINITY, -top)] {
            let (decoded, stats) = round_trip(&codec, &[x; 40]);
            assert_eq!(decoded, [expected; 40]);
            assert_eq!(
                stats,
                EncodeStats {
                    clipped: 0,
                    nonfinite: 40
                }
            );
        }
    }
}

#[test]
fn a_range_of_zero_sends_zero_and_counts_what_it_lost() {
    for range in [0.0, -0.0, 1e-40, f32::MIN_POSITIVE] {
        let codec = paper(vec![vec![range; 50]], vec![3]);
        let values = [2.0, 0.0, -0.0, 5.0, f32::INFINITY].repeat(10);
        let (decoded, stats) = round_trip(&codec, &values);
        let mut expected = vec![0.0; 50];
        expected[3] = 5.0;
        assert_eq!(decoded, expected);
        assert_eq!(
            stats,
            EncodeStats {
                clipped: 19,
                nonfinite: 10
            }
        );
    }
}

#[test]
fn outliers_travel_as_bf16_rounded_to_even_and_saturated() {
    let max = bf16::MAX.to_f32();
    let cases: [(f32, f32, u64); 6] = [
        (1.0 + 1.0 / 256.0, 1.0, 0),
        (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0, 0),
        (70000.0, 70144.0, 0),
        (f32::from_bits(0x7f7f_7fff), max, 0),
        (f32::from_bits(0x7f7f_8000), max, 1),
        (-f32::MAX, -max, 1),
    ];
    for (x, expected, clipped) in cases {
        let (decoded, stats) = round_trip(&paper(vec![vec![0.0]], vec![0]), &[x]);
        assert_eq!((decoded[0], stats.clipped), (expected, clipped), "{x}");
    }
}

#[test]
fn every_placement_of_outliers_returns_each_feature_to_its_place() {
    let features = 70u32;
    let spread: Vec<u32> = (0..features).step_by(7).collect();
    let placements = [
        vec![],
        (0..10).collect(),
        (60..70).collect(),
        spread,
        (5..65).collect(),
        (0..features).collect(),
    ];
    // The range of each feature is its own and each value is on a level, so a misplaced code gives another value.
    let ranges: Vec<f32> = (0..features).map(|i| 7.0 * (i + 1) as f32).collect();
    let values: Vec<f32> = (0..features)
        .map(|i| ((i % 15) as f32 - 7.0) * (i + 1) as f32)
        .collect();
    for outliers in placements {
        for level in [Level::scalar(), Level::best()] {
            let codec = paper(vec![ranges.clone()], outliers.clone()).with_level(level);
            let (decoded, stats) = round_trip(&codec, &[&values[..], &values[..]].concat());
            let expected: Vec<f32> = values
                .iter()
                .enumerate()
                .map(|(i, &x)| {
                    if outliers.contains(&(i as u32)) {
                        bf16::from_f32(x).to_f32()
                    } else {
                        x
                    }
                })
                .collect();
            assert_eq!(decoded, [&expected[..], &expected[..]].concat(), "{outliers:?}");
            assert_eq!(stats, EncodeStats::default());
        }
    }
}

#[test]
fn paper_error_is_half_a_step_inside_the_range() {
    let codec = paper(vec![vec![7.0; 64]], vec![]);
    let values: Vec<f32> = (0..64).map(|i| i as f32 / 9.0).collect();
    let mut bound = vec![0.0; 64];
    codec.error_bound(0, &values, &mut bound);
    assert!(bound.iter().all(|&b| (0.5..0.50001).contains(&b)));
    codec.error_bound(0, &[100.0; 64], &mut bound);
    assert!(bound.iter().all(|&b| (93.0..93.001).contains(&b)));
}

#[test]
fn an_outlier_that_is_not_finite_is_refused() {
    let codec = paper(vec![vec![1.0; 4]], vec![2]);
    for bits in [0x7f80u16, 0xff80, 0x7fc0] {
        let mut payload = vec![0x88, 0x88, 0, 0, 0x88, 0x88];
        payload.extend(bits.to_le_bytes());
        let result = codec.decode_accumulate(0, &payload, Dtype::F32, &mut [0.0; 8]);
        assert_eq!(
            result,
            Err(CodecError::Content {
                rank: 0,
                token: 1,
                feature: 2,
                bits
            })
        );
    }
}

#[test]
fn a_rank_without_tables_is_an_error_to_decode() {
    let codec = paper(vec![vec![1.0; 4]; 2], vec![]);
    let result = codec.decode_accumulate(2, &[0; 2], Dtype::F32, &mut [0.0; 4]);
    assert_eq!(result, Err(CodecError::UnknownRank { rank: 2, ranks: 2 }));
}

#[test]
fn tables_that_cannot_be_used_are_refused_by_name() {
    use PaperTablesError as E;
    let ok = || vec![vec![1.0; 4]; 2];
    let with = |range: f32| vec![vec![1.0; 4], vec![1.0, 1.0, range, 1.0]];
    let cases = [
        (vec![], vec![], E::NoRanks),
        (
            vec![vec![1.0; 4], vec![1.0; 3]],
            vec![],
            E::FeatureCount {
                rank: 1,
                expected: 4,
                got: 3,
            },
        ),
        (
            with(-1.0),
            vec![],
            E::Range {
                rank: 1,
                feature: 2,
                got: -1.0,
            },
        ),
        (
            with(f32::INFINITY),
            vec![],
            E::Range {
                rank: 1,
                feature: 2,
                got: f32::INFINITY,
            },
        ),
        (
            with(f32::MAX),
            vec![],
            E::Range {
                rank: 1,
                feature: 2,
                got: f32::MAX,
            },
        ),
        (ok(), vec![0, 1, 2, 3, 4], E::TooManyOutliers { features: 4, got: 5 }),
        (
            ok(),
            vec![1, 4],
            E::OutlierOutOfRange {
                position: 1,
                features: 4,
                got: 4,
            },
        ),
        (
            ok(),
            vec![2, 1],
            E::OutliersUnsorted {
                position: 1,
                previous: 2,
                got: 1,
            },
        ),
        (
            ok(),
            vec![2, 2],
            E::OutliersUnsorted {
                position: 1,
                previous: 2,
                got: 2,
            },
        ),
    ];
    for (ranges, outliers, error) in cases {
        assert_eq!(PaperTables::new(ranges, outliers), Err(error));
    }
    let nan = PaperTables::new(with(f32::NAN), vec![]);
    assert!(matches!(nan, Err(E::Range { rank: 1, feature: 2, got }) if got.is_nan()));
}

// ---- dynamic ----

#[test]
fn dynamic_reaches_its_extreme_and_stays_finite_up_to_f32_max() {
    for level in [Level::scalar(), Level::best()] {
        for extreme in [1.0f32, -3.0, 1e-30, -1e30, bf16::MAX.to_f32(), f32::MAX, -f32::MAX] {
            let mut values = vec![extreme / 100.0; 45];
            (values[5], values[40]) = (extreme, extreme);
            let (decoded, stats) = round_trip(&Dynamic::new(45).with_level(level), &values);
            for i in [5, 40] {
                assert!(
                    (decoded[i] - extreme).abs() <= extreme.abs() / 256.0,
                    "{extreme}: {}",
                    decoded[i]
                );
            }
            assert_eq!(stats, EncodeStats::default());
        }
    }
}

#[test]
fn dynamic_groups_do_not_see_each_other() {
    let mut values = vec![0.0; 96];
    values[..32].fill(1.0);
    (values[33], values[34]) = (f32::NAN, f32::NEG_INFINITY);
    let (decoded, stats) = round_trip(&Dynamic::new(96), &values);
    assert_eq!(decoded[..32], [1.0; 32]);
    assert_eq!((decoded[33], decoded[34]), (0.0, bf16::MIN.to_f32()));
    assert_eq!(decoded[64..], [0.0; 32]);
    assert_eq!(
        stats,
        EncodeStats {
            clipped: 0,
            nonfinite: 2
        }
    );
}

#[test]
fn a_scale_with_infinite_levels_is_refused() {
    let codec = Dynamic::new(33);
    for (group, bits) in [(0, 0x7e00u16), (0, 0xff80), (1, 0x7fc0), (1, 0x7f7f)] {
        let mut payload = vec![0; 21];
        payload[17 + 2 * group..][..2].copy_from_slice(&bits.to_le_bytes());
        let result = codec.decode_accumulate(3, &payload, Dtype::F32, &mut [0.0; 33]);
        let feature = 32 * group;
        assert_eq!(
            result,
            Err(CodecError::Content {
                rank: 3,
                token: 0,
                feature,
                bits
            })
        );
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
    assert_eq!(CodecKind::ALL.map(CodecKind::tag), [0, 1, 2]);
}

// ---- helpers ----

/// One reduce site: some rows, and a calibration for them.
#[derive(Debug, Clone)]
struct Site {
    values: Vec<f32>,
    ranges: Vec<Vec<f32>>,
    outliers: Vec<u32>,
}

impl Site {
    fn features(&self) -> usize {
        self.ranges[0].len()
    }

    fn tokens(&self) -> usize {
        self.values.len() / self.features()
    }

    fn paper(&self, level: Level) -> Paper {
        paper(self.ranges.clone(), self.outliers.clone()).with_level(level)
    }

    /// In the order of `CodecKind::ALL`.
    fn codecs(&self, level: Level) -> [Box<dyn Codec>; 3] {
        [
            Box::new(NoCodec::new(self.features())),
            Box::new(self.paper(level)),
            Box::new(Dynamic::new(self.features()).with_level(level)),
        ]
    }

    /// Three rows with a special value here and there.
    fn patterned(features: usize, ranks: usize, outliers: usize, seed: u32) -> Self {
        const SPECIAL: [f32; 8] = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            1e-40,
            -0.0,
            0.0,
        ];
        let mut noise = Noise(seed);
        let mut value = || match noise.next() % 61 {
            0 => SPECIAL[noise.next() as usize % 8],
            _ => noise.next() as i32 as f32 / (1 << 28) as f32,
        };
        let values = (0..2 * features).map(|_| value()).collect();
        let ranges = (0..ranks)
            .map(|_| (0..features).map(|i| (i % 9) as f32).collect())
            .collect();
        let outliers = (0..outliers).map(|i| (i * features / outliers) as u32).collect();
        Self {
            values,
            ranges,
            outliers,
        }
    }
}

/// Any bit pattern, with a good share of everyday magnitudes.
fn any_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -10.0f32..10.0,
        2 => any::<u32>().prop_map(f32::from_bits),
        1 => prop::sample::select(vec![
            0.0, -0.0, 7.5, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, -1e-39,
        ]),
    ]
}

fn any_range() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => 0.0f32..12.0,
        1 => prop::sample::select(vec![0.0, 1e-45, 1e-39, f32::MIN_POSITIVE, 8.3e-38, 1e-30, 1e30, f32::from_bits(0x7f00_0000)]),
    ]
}

fn site(ranks: usize, max_tokens: usize, value: impl Strategy<Value = f32> + Clone) -> impl Strategy<Value = Site> {
    (1usize..=200, 1..=max_tokens).prop_flat_map(move |(features, tokens)| {
        let all: Vec<u32> = (0..features as u32).collect();
        (
            prop::collection::vec(value.clone(), features * tokens),
            prop::collection::vec(prop::collection::vec(any_range(), features), ranks),
            prop_oneof![
                prop::sample::subsequence(all.clone(), 0..=features),
                prop::sample::subsequence(all, features / 64)
            ],
        )
            .prop_map(|(values, ranges, outliers)| Site {
                values,
                ranges,
                outliers,
            })
    })
}

fn any_site() -> impl Strategy<Value = Site> {
    site(2, 3, any_value().boxed())
}

fn finite_site(ranks: usize) -> impl Strategy<Value = Site> {
    site(
        ranks,
        2,
        any_value().prop_map(|x| if x.is_finite() { x } else { 1.0 }).boxed(),
    )
}

fn paper(ranges: Vec<Vec<f32>>, outliers: Vec<u32>) -> Paper {
    Paper::new(PaperTables::new(ranges, outliers).unwrap())
}

/// Owned elements of one dtype.
enum Tensor {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Tensor {
    fn new(dtype: Dtype, values: &[f32]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(values.to_vec()),
            Dtype::Bf16 => Self::Bf16(values.iter().copied().map(bf16::from_f32).collect()),
            Dtype::F16 => Self::F16(values.iter().copied().map(f16::from_f32).collect()),
        }
    }

    fn values(&self) -> Values<'_> {
        match self {
            Self::F32(v) => Values::F32(v),
            Self::Bf16(v) => Values::Bf16(v),
            Self::F16(v) => Values::F16(v),
        }
    }

    fn le_bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::Bf16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// Encodes twice, over different garbage: equal results show that every byte is written and nothing else decides them.
fn encode(codec: &dyn Codec, rank: usize, input: &Tensor) -> (Vec<u8>, EncodeStats) {
    let values = input.values();
    let tokens = values.len().checked_div(codec.features()).unwrap_or(0);
    let mut payloads = [0x00, 0xff].map(|garbage| vec![garbage; codec.payload_len(tokens, values.dtype())]);
    let stats = [
        codec.encode(rank, values, &mut payloads[0]),
        codec.encode(rank, values, &mut payloads[1]),
    ];
    assert_eq!(stats[0], stats[1]);
    let [first, second] = payloads;
    assert_eq!(first, second);
    (first, stats[0])
}

fn round_trip(codec: &dyn Codec, values: &[f32]) -> (Vec<f32>, EncodeStats) {
    let (payload, stats) = encode(codec, 0, &Tensor::new(Dtype::F32, values));
    let mut sum = vec![0.0; values.len()];
    codec.decode_accumulate(0, &payload, Dtype::F32, &mut sum).unwrap();
    (sum, stats)
}

fn assert_same_bits(scalar: &dyn Codec, best: &dyn Codec, rank: usize, input: &Tensor, seed: u32) {
    let dtype = input.values().dtype();
    let (payload, stats) = encode(scalar, rank, input);
    assert_eq!(
        (&payload, stats),
        (&encode(best, rank, input).0, encode(best, rank, input).1),
        "{} {dtype:?}",
        best.name()
    );
    let mut noise = Noise(seed);
    let before: Vec<f32> = (0..input.values().len())
        .map(|i| {
            if i % 5 == 0 {
                -0.0
            } else {
                noise.next() as i32 as f32 / 65536.0
            }
        })
        .collect();
    let (mut one, mut two) = (before.clone(), before);
    scalar.decode_accumulate(rank, &payload, dtype, &mut one).unwrap();
    best.decode_accumulate(rank, &payload, dtype, &mut two).unwrap();
    assert_eq!(bits(&one), bits(&two), "{} {dtype:?}", best.name());
}

/// A small linear congruential generator; its low bits are weak, so it gives the high ones.
struct Noise(u32);

impl Noise {
    fn next(&mut self) -> u32 {
        let mut out = 0;
        for _ in 0..2 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            out = out << 16 | self.0 >> 16;
        }
        out
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn f32_bits(words: &str) -> Vec<f32> {
    words
        .split(' ')
        .map(|word| f32::from_bits(u32::from_str_radix(word, 16).unwrap()))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
