//! `dynamic`: extremes, groups, scales.

use half::{bf16, f16};
use mistralrs_tpq::codec::{Codec, CodecError, Dtype, Dynamic, EncodeStats, Level, ValuesMut};
use proptest::prelude::*;

use crate::support::*;

#[test]
fn dynamic_reaches_its_extreme_and_stays_finite_up_to_f32_max() {
    for level in Level::all() {
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

proptest! {
    #[test]
    fn a_sum_decoded_to_its_dtype_is_the_decoded_sum_rounded_once(site in any_site()) {
        let (features, len) = (site.features(), site.values.len());
        let input = Tensor::new(Dtype::F32, &site.values);
        for codec in [Dynamic::new(features), Dynamic::wide(features)] {
            let payload = encode(&codec, 0, &input).0;
            let mut sum = vec![0.0; len];
            codec.clone().with_level(Level::scalar()).decode_first(0, &payload, Dtype::F32, &mut sum).unwrap();
            for level in Level::all() {
                let codec = codec.clone().with_level(level);
                let (mut floats, mut brains, mut halves) = (vec![f32::NAN; len], vec![bf16::NAN; len], vec![f16::NAN; len]);
                codec.decode_rounded(0, &payload, ValuesMut::F32(&mut floats)).unwrap();
                codec.decode_rounded(0, &payload, ValuesMut::Bf16(&mut brains)).unwrap();
                codec.decode_rounded(0, &payload, ValuesMut::F16(&mut halves)).unwrap();
                prop_assert_eq!(bits(&floats), bits(&sum));
                for (x, (brain, half)) in sum.iter().zip(brains.iter().zip(&halves)) {
                    prop_assert_eq!(brain.to_bits(), bf16::from_f32(*x).to_bits());
                    prop_assert_eq!(half.to_bits(), f16::from_f32(*x).to_bits());
                }
            }
        }
    }
}

#[test]
fn a_bad_scale_is_refused_whatever_is_decoded_to() {
    for (codec, level) in [(Dynamic::new(70), Level::scalar()), (Dynamic::wide(70), Level::best())] {
        let codec = codec.with_level(level);
        let mut payload = vec![0; codec.payload_len(2, Dtype::Bf16)];
        // The last scale of the second row.
        let end = payload.len();
        payload[end - 2..].copy_from_slice(&bf16::INFINITY.to_le_bytes());
        let mut values = vec![bf16::ZERO; 140];
        let refused = codec.decode_rounded(3, &payload, ValuesMut::Bf16(&mut values));
        let (feature, bits) = (64, bf16::INFINITY.to_bits());
        assert_eq!(
            refused,
            Err(CodecError::Content {
                rank: 3,
                token: 1,
                feature,
                bits
            })
        );
        let refused = codec.decode_rounded(3, &payload[1..], ValuesMut::Bf16(&mut values));
        assert!(matches!(refused, Err(CodecError::PayloadLength { rank: 3, .. })));
    }
}
