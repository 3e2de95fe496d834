//! A token's sum is the same alone and in any batch, with `batch_invariant`.

use mistralrs_tpq::codec::{Codec, Dtype};
use mistralrs_tpq::exchange::{Algorithm, Communicator, ExchangeConfig};

use super::group::{group, on_all, Kind};
use super::{codecs, config, inputs, reduce, to_f32, Owned, WORLD_SIZES};

/// Not a multiple of 32, and a whole group for each of eight ranks.
const FEATURES: usize = 300;
const TOKENS: usize = 90;
/// Fewer tokens than ranks, and more.
const BATCHES: [usize; 5] = [1, 1, 3, 15, 70];

/// The sums of all tokens on every rank, exchanged in `batches`, one after the other.
fn sums(
    world_size: usize,
    exchange: ExchangeConfig,
    codec: usize,
    features: usize,
    batches: &[usize],
) -> Vec<Vec<u32>> {
    let all = inputs(world_size, Dtype::F32, batches.iter().sum::<usize>() * features);
    on_all(group(Kind::Memory, world_size), |rank, transport| {
        let communicator = Communicator::new(transport, exchange);
        let codec: &dyn Codec = &*codecs(features, world_size)[codec];
        let mut rest = &to_f32(all[rank].values())[..];
        let mut bits = Vec::new();
        for tokens in batches {
            let (batch, tail) = rest.split_at(tokens * features);
            rest = tail;
            let (output, _) = reduce(&communicator, 0, codec, &Owned::F32(batch.to_vec())).unwrap();
            bits.extend(output.bits());
        }
        bits
    })
}

#[test]
fn a_tokens_sum_has_the_same_bits_in_every_batch() {
    for world_size in WORLD_SIZES {
        for codec in 0..codecs(FEATURES, world_size).len() {
            for algorithm in [
                Algorithm::Auto,
                Algorithm::OneShot,
                Algorithm::TwoShot,
                Algorithm::Doubling,
                Algorithm::Lossless,
            ] {
                let invariant = ExchangeConfig {
                    batch_invariant: true,
                    ..config(algorithm)
                };
                let together = sums(world_size, invariant, codec, FEATURES, &[TOKENS]);
                let apart = sums(world_size, invariant, codec, FEATURES, &BATCHES);
                assert!(
                    together == apart,
                    "{world_size} ranks, codec {codec}, {}",
                    algorithm.name()
                );
            }
        }
    }
}

#[test]
fn a_long_exchange_in_parts_has_the_bits_of_short_exchanges() {
    // 48 KiB for each of three peers are 63 rows of these.
    const WIDE: usize = 4096;
    for world_size in [3, 4] {
        for algorithm in [Algorithm::OneShot, Algorithm::TwoShot, Algorithm::Lossless] {
            for codec in [0, 1] {
                let together = sums(world_size, config(algorithm), codec, WIDE, &[211]);
                let apart = sums(world_size, config(algorithm), codec, WIDE, &[60, 60, 60, 31]);
                assert!(
                    together == apart,
                    "{world_size} ranks, codec {codec}, {}",
                    algorithm.name()
                );
            }
        }
    }
}

/// So the first test would see it.
#[test]
fn auto_without_batch_invariance_rounds_a_token_differently_in_a_large_batch() {
    const WIDE: usize = 4096;
    for (batch_invariant, alike) in [(false, false), (true, true)] {
        let exchange = ExchangeConfig {
            batch_invariant,
            ..config(Algorithm::Auto)
        };
        let together = sums(4, exchange, 1, WIDE, &[TOKENS]);
        assert_eq!(together == sums(4, exchange, 1, WIDE, &BATCHES), alike);
    }
}
