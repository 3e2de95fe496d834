//! `paper`: rounding, clipping, outliers, tables.

use half::bf16;
use mistralrs_tpq::codec::{Codec, CodecError, Dtype, EncodeStats, Level, PaperTables, PaperTablesError};

use crate::support::*;

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
    for level in Level::all() {
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
        for level in Level::all() {
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
