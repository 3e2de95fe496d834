//! What each algorithm and `auto` leave on the ranks, and what they send for it.

use std::sync::Arc;

use half::bf16;
use mistralrs_tpq::codec::{Codec, Dtype, Dynamic, Paper, PaperTables};
use mistralrs_tpq::exchange::{predict_bytes_sent, Algorithm, Chosen, Communicator, ExchangeConfig, GatherBits, Shape};

use crate::coarse::{coarse, to_f32};
use crate::group::{group, on_all, Kind};
use crate::{config, inputs, reduce, reference, Owned, SHAPES, WORLD_SIZES};

/// Each quantized algorithm, and `auto`.
pub const ALGORITHMS: [Algorithm; 5] = [
    Algorithm::OneShot,
    Algorithm::TwoShot,
    Algorithm::Ring,
    Algorithm::Doubling,
    Algorithm::Auto,
];

fn chosen(algorithm: Algorithm, world_size: usize) -> Chosen {
    match algorithm {
        Algorithm::OneShot => Chosen::OneShot,
        Algorithm::TwoShot => Chosen::TwoShot,
        Algorithm::Ring => Chosen::Ring,
        Algorithm::Doubling => Chosen::Doubling,
        _ if world_size == 2 => Chosen::LosslessOneShot,
        _ => Chosen::LosslessTwoShot,
    }
}

/// Codecs of the crate, cut by features or not, and one that only knows whole rows.
pub fn codecs(features: usize, world_size: usize) -> Vec<Box<dyn Codec>> {
    let ranges = (0..world_size)
        .map(|rank| (0..features).map(|i| 10.0 + ((i + rank) % 7) as f32).collect())
        .collect();
    let outliers = (0..features as u32).filter(|feature| feature % 64 == 13).collect();
    let tables = PaperTables::new(ranges, outliers).unwrap();
    vec![
        Box::new(Paper::new(tables)),
        Box::new(Dynamic::new(features)),
        Box::new(coarse(features)),
    ]
}

pub fn every_algorithm_leaves_the_same_bits_on_all_ranks_near_the_sum_and_predicts_its_bytes(kind: Kind) {
    for world_size in WORLD_SIZES {
        for algorithm in &ALGORITHMS[..4] {
            let results = on_all(group(kind, world_size), |rank, transport| {
                let mut bits = Vec::new();
                let gather_bits = [GatherBits::Four, GatherBits::Eight][world_size % 2];
                let communicator = Communicator::new(
                    transport,
                    ExchangeConfig {
                        gather_bits,
                        ..config(*algorithm)
                    },
                );
                for (tokens, features) in SHAPES {
                    for (i, codec) in codecs(features, world_size).iter().enumerate() {
                        let dtype = [Dtype::Bf16, Dtype::F32, Dtype::F16][i];
                        let all = inputs(world_size, dtype, tokens * features);
                        let (output, stats) = reduce(&communicator, i as u32, &**codec, &all[rank]).unwrap();
                        let shape = Shape {
                            world_size,
                            tokens,
                            features,
                            dtype,
                        };
                        let chosen = chosen(*algorithm, world_size);
                        let predicted = predict_bytes_sent(chosen, shape, rank, &**codec, gather_bits);
                        assert_eq!(stats.bytes_sent, predicted, "{algorithm:?} {shape:?} rank {rank}");
                        assert_near(&output, &all, &format!("{algorithm:?} {shape:?} {}", codec.name()));
                        bits.push(output.bits());
                    }
                }
                bits
            });
            for (rank, result) in results.iter().enumerate() {
                assert!(
                    *result == results[0],
                    "{algorithm:?}: rank {rank} of {world_size} differs from rank 0"
                );
            }
        }
    }
}

/// Each quantization of values up to 18 N errs by at most a whole step of the coarsest codec, N * 18 / 7, plus what was
/// beyond a calibrated range of 10 at least; there are at most N of them.
fn assert_near(output: &Owned, all: &[Owned], what: &str) {
    let ranks = all.len() as f32;
    let bound = ranks * (8.0 + 18.0 / 7.0) + (ranks - 1.0) * ranks * 18.0 / 7.0;
    let mut sums = vec![0.0_f32; all[0].values().len()];
    for part in all {
        sums.iter_mut()
            .zip(to_f32(part.values()))
            .for_each(|(sum, x)| *sum += x);
    }
    let got = to_f32(output.values());
    let (mut signal, mut error) = (0.0_f64, 0.0_f64);
    for (sum, got) in sums.iter().zip(&got) {
        assert!((sum - got).abs() <= bound, "{what}: {got} for {sum}, bound {bound}");
        signal += f64::from(*sum).powi(2);
        error += f64::from(sum - got).powi(2);
    }
    // A slice at the wrong place has as much error as signal.
    assert!(
        sums.len() < 100 || error * 5.0 < signal,
        "{what}: error energy {error} of {signal}"
    );
}

pub fn predicted_bytes_are_what_the_transport_counts(kind: Kind) {
    let (tokens, features) = (512, 4096);
    for (algorithm, world_size) in [
        (Algorithm::OneShot, 3),
        (Algorithm::TwoShot, 4),
        (Algorithm::Ring, 3),
        (Algorithm::Doubling, 5),
        (Algorithm::Lossless, 2),
        (Algorithm::Lossless, 3),
        (Algorithm::Lossless, 4),
    ] {
        on_all(group(kind, world_size), |rank, transport| {
            let communicator = Communicator::new(Arc::clone(&transport), config(algorithm));
            let input = Owned::Bf16(vec![bf16::ONE; tokens * features]);
            let (_, stats) = reduce(&communicator, 0, &coarse(features), &input).unwrap();
            let traffic: Vec<_> = (0..world_size).map(|peer| transport.traffic(peer)).collect();
            let counted: u64 = traffic.iter().map(|t| t.sent).sum();
            let received: u64 = traffic.iter().map(|t| t.received).sum();
            let shape = Shape {
                world_size,
                tokens,
                features,
                dtype: Dtype::Bf16,
            };
            let chosen = chosen(algorithm, world_size);
            let predicted = predict_bytes_sent(chosen, shape, rank, &coarse(features), GatherBits::default());
            assert_eq!(stats.bytes_sent, predicted);
            // Heartbeats are the difference.
            assert!(
                counted.abs_diff(predicted) * 100 <= predicted,
                "counted {counted}, predicted {predicted}"
            );
            assert!(received.abs_diff(stats.bytes_received) * 100 <= predicted);
        });
    }
}

pub fn auto_picks_the_same_on_all_ranks_and_two_shot_for_a_prefill_of_four_ranks(kind: Kind) {
    for (world_size, tokens, expected) in [
        (2, 512, Chosen::OneShot),
        (4, 512, Chosen::TwoShot),
        (4, 1, Chosen::OneShot),
    ] {
        on_all(group(kind, world_size), |rank, transport| {
            let communicator = Communicator::new(transport, config(Algorithm::Auto));
            let input = Owned::Bf16(vec![bf16::ONE; tokens * 4096]);
            let codec = Dynamic::new(4096);
            let (_, stats) = reduce(&communicator, 0, &codec, &input).unwrap();
            let shape = Shape {
                world_size,
                tokens,
                features: 4096,
                dtype: Dtype::Bf16,
            };
            let predicted = predict_bytes_sent(expected, shape, rank, &codec, GatherBits::default());
            assert_eq!(stats.bytes_sent, predicted);
        });
    }
}

pub fn messages_below_min_bytes_are_lossless(kind: Kind) {
    let all = inputs(3, Dtype::F32, 64);
    on_all(group(kind, 3), |rank, transport| {
        let gated = ExchangeConfig {
            min_bytes: 257,
            ..config(Algorithm::TwoShot)
        };
        let communicator = Communicator::new(transport, gated);
        let (output, _) = reduce(&communicator, 0, &coarse(64), &all[rank]).unwrap();
        assert_eq!(output.bits(), reference(Dtype::F32, &all, false));
    });
}

#[test]
fn two_shot_bytes_of_every_rank_grow_as_2_times_n_minus_1_by_n() {
    let (tokens, features) = (64, 1024);
    let sent = |world_size: usize| {
        let results = on_all(group(Kind::Memory, world_size), |_, transport| {
            let communicator = Communicator::new(transport, config(Algorithm::TwoShot));
            let input = Owned::Bf16(vec![bf16::ONE; tokens * features]);
            let (_, stats) = reduce(&communicator, 0, &Dynamic::new(features), &input).unwrap();
            stats.bytes_sent as f64
        });
        results.into_iter().fold(0.0, f64::max)
    };
    let of_two = sent(2);
    for ranks in [4, 8, 16] {
        let growth = sent(ranks) / of_two;
        let expected = 2.0 * (ranks as f64 - 1.0) / ranks as f64;
        assert!(
            (growth / expected - 1.0).abs() < 0.1,
            "{ranks} ranks: {growth} of two ranks' bytes, expected {expected}"
        );
    }
}
