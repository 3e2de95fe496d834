//! Bytes pinned by `tests/golden/codec`, which a script writes from the documented formats.

use mistralrs_tpq::codec::{Codec, Dtype, Dynamic, EncodeStats, Level, NoCodec};

use crate::support::*;

#[test]
fn payloads_and_sums_match_the_golden_files() {
    let files = [
        include_str!("../golden/codec/none.txt"),
        include_str!("../golden/codec/paper.txt"),
        include_str!("../golden/codec/dynamic.txt"),
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
                for level in Level::all() {
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
