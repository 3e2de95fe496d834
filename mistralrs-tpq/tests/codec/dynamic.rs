//! `dynamic`: extremes, groups, scales.

use half::bf16;
use mistralrs_tpq::codec::{Codec, CodecError, Dtype, Dynamic, EncodeStats, Level};

use crate::support::*;

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
