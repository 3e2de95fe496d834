//! How long an all-reduce takes, from what the link costs: the same reckoning as `exchange.algorithm: auto`, for groups that nobody has at hand.
//!
//! ```text
//! time = steps * latency + messages * message + bytes / rate + (encoded + decoded values) / coding rate
//! ```
//! Not in it: links that share a switch's backplane, ranks that start late, and how transfer and coding overlap (they do; so this is on
//! the slow side where coding counts).

use serde::Serialize;

use crate::codec::Codec;
use crate::exchange::{predict_bytes_sent, Chosen, GatherBits, LinkTable, Shape};

/// What a message costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    pub link: LinkTable,
    /// Values a rank encodes or decodes in a second; infinite: coding is free.
    pub coded_per_s: f64,
}

/// One all-reduce of `tokens` rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Predicted {
    pub ranks: usize,
    pub tokens: usize,
    pub codec: String,
    pub algorithm: &'static str,
    pub microseconds: f64,
    /// Of the rank that sends most.
    pub bytes: u64,
}

/// Of the rank that sends most.
pub fn predict(costs: &Costs, chosen: Chosen, shape: Shape, codec: &dyn Codec, gather_bits: GatherBits) -> Predicted {
    let bytes = |rank: usize| predict_bytes_sent(chosen, shape, rank, codec, gather_bits);
    // Slices differ by a row or a few features: the first, the last and some between say who sends most.
    let every = shape.world_size.div_ceil(16);
    let ranks = (0..shape.world_size).step_by(every).chain([shape.world_size - 1]);
    let bytes = ranks.map(bytes).max().unwrap_or(0);
    let (steps, messages) = chosen.steps(shape.world_size);
    let coded = coded_messages(chosen, shape.world_size) * (shape.tokens * shape.features) as f64;
    Predicted {
        ranks: shape.world_size,
        tokens: shape.tokens,
        codec: codec.name().to_owned(),
        algorithm: chosen.name(),
        microseconds: costs.link.cost_ns(steps, messages, bytes) as f64 / 1e3 + coded / costs.coded_per_s * 1e6,
        bytes,
    }
}

/// Whole messages that a rank encodes and decodes.
fn coded_messages(chosen: Chosen, ranks: usize) -> f64 {
    let n = ranks as f64;
    match chosen {
        Chosen::OneShot => 1.0 + n,
        // All slices once, N copies of its own, its sum, and everybody's sums.
        Chosen::TwoShot => 1.0 + 1.0 + 1.0 / n + 1.0,
        Chosen::Ring => 2.0 * (n - 1.0) / n + 1.0 / n + 1.0,
        Chosen::Doubling => 3.0 * n.log2().floor(),
        Chosen::Copy | Chosen::LosslessOneShot | Chosen::LosslessTwoShot => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Dtype, Dynamic};

    fn times(ranks: usize, tokens: usize, coded_per_s: f64) -> Vec<f64> {
        let costs = Costs {
            link: LinkTable::default(),
            coded_per_s,
        };
        let shape = Shape {
            world_size: ranks,
            tokens,
            features: 4096,
            dtype: Dtype::Bf16,
        };
        let codec = Dynamic::new(4096);
        let algorithms = [Chosen::OneShot, Chosen::TwoShot, Chosen::Ring, Chosen::Doubling];
        let time = |chosen| predict(&costs, chosen, shape, &codec, GatherBits::Eight).microseconds;
        algorithms.into_iter().map(time).collect()
    }

    #[test]
    fn a_thousand_ranks_finish_a_small_message_by_doubling_and_a_large_one_in_two_shots() {
        let [one, two, ring, doubling] = times(1024, 1, f64::INFINITY)[..] else {
            panic!()
        };
        assert!(doubling < two && doubling < one && doubling < ring);
        let [one, two, ring, doubling] = times(1024, 8192, f64::INFINITY)[..] else {
            panic!()
        };
        assert!(two < one && two < doubling && two < ring);
    }

    #[test]
    fn two_ranks_at_one_gigabit_take_latency_message_and_wire() {
        // 512 x 4096 values at 4.5 bits and 48 bytes of frame: 9.4 ms on the wire.
        let one = times(2, 512, f64::INFINITY)[0];
        let wire = (512.0 * 4096.0 * 4.5 / 8.0 + 40.0) / 125.0;
        assert!((one - (55.0 + wire)).abs() < 5.0, "{one} {wire}");
        // And three messages of coding at 1e9 values a second.
        assert!((times(2, 512, 1e9)[0] - one - 3.0 * 2097.152).abs() < 1.0);
    }
}
