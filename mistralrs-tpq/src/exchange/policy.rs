//! Which algorithm an exchange uses. A pure function of what all ranks know, so that they always agree.

use super::doubling::{core_size, sends_partial};
use super::lossless::slice_of;
use super::parts::Parts;
use super::ring;
use super::slices::Slices;
use super::sum_codec::GatherBits;
use super::ExchangeConfig;
use crate::codec::{Codec, Dtype};
use crate::wire::{FRAME_HEADER_LEN, FRAME_TRAILER_LEN};

/// What the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Algorithm {
    /// The least predicted time, by shape, codec and [`LinkTable`].
    #[default]
    Auto,
    /// All-gather of payloads, whatever the size.
    OneShot,
    /// Reduce-scatter, then all-gather of the sums, encoded again.
    TwoShot,
    /// Reduce-scatter and all-gather from neighbour to neighbour.
    Ring,
    /// Recursive doubling.
    Doubling,
    /// Raw values, whatever the codec; one-shot or two-shot by size.
    Lossless,
}

impl Algorithm {
    pub const ALL: [Self; 6] = [
        Self::Auto,
        Self::OneShot,
        Self::TwoShot,
        Self::Ring,
        Self::Doubling,
        Self::Lossless,
    ];

    /// As in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::OneShot => "one_shot",
            Self::TwoShot => "two_shot",
            Self::Ring => "ring",
            Self::Doubling => "doubling",
            Self::Lossless => "lossless",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// What an exchange runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Chosen {
    /// One rank: the sum is the input.
    Copy,
    OneShot,
    TwoShot,
    Ring,
    Doubling,
    LosslessOneShot,
    LosslessTwoShot,
}

impl Chosen {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::OneShot => "one_shot",
            Self::TwoShot => "two_shot",
            Self::Ring => "ring",
            Self::Doubling => "doubling",
            Self::LosslessOneShot => "lossless_one_shot",
            Self::LosslessTwoShot => "lossless_two_shot",
        }
    }

    /// Messages that have to follow each other, and messages that one rank sends. A long exchange, which runs in parts, has
    /// them for each part; next to its bytes they are few.
    pub const fn steps(self, world_size: usize) -> (usize, usize) {
        let peers = world_size - 1;
        match self {
            Self::Copy => (0, 0),
            Self::OneShot | Self::LosslessOneShot => (1, peers),
            Self::TwoShot | Self::LosslessTwoShot => (2, 2 * peers),
            Self::Ring => (2 * peers, 2 * peers),
            Self::Doubling => {
                let steps = core_size(world_size).ilog2() as usize;
                match core_size(world_size) == world_size {
                    true => (steps, steps),
                    false => (steps + 2, steps + 1),
                }
            }
        }
    }
}

/// The shared facts of one exchange: `tokens` rows of `features` elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub world_size: usize,
    pub tokens: usize,
    pub features: usize,
    pub dtype: Dtype,
}

impl Shape {
    /// Bytes of the message, raw.
    pub const fn bytes(&self) -> usize {
        self.tokens * self.features * self.dtype.size()
    }
}

/// What a link costs, for [`Algorithm::Auto`]. `tpq bench exchange --write-table` measures it; all ranks need the same.
///
/// Whole numbers, so that no rank rounds differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkTable {
    /// From the start of a send to its arrival at an idle peer, for a short message. Nanoseconds.
    pub latency_ns: u64,
    /// What each further message of the same step costs its sender. Nanoseconds.
    pub message_ns: u64,
    /// What a rank sends, all peers together. Kilobytes (1000 bytes) a second.
    pub kbyte_per_s: u64,
}

impl Default for LinkTable {
    /// 1 Gbit/s Ethernet: where nothing was measured, the links for which this crate is made.
    fn default() -> Self {
        Self {
            latency_ns: 50_000,
            message_ns: 5_000,
            kbyte_per_s: 125_000,
        }
    }
}

impl LinkTable {
    /// Predicted time in ns: every step waits for a latency, messages and bytes go out one after another.
    pub fn cost_ns(&self, steps: usize, messages: usize, bytes: u64) -> u128 {
        let wire = u128::from(bytes) * 1_000_000 / u128::from(self.kbyte_per_s.max(1));
        steps as u128 * u128::from(self.latency_ns) + messages as u128 * u128::from(self.message_ns) + wire
    }
}

/// Raw messages up to this go one-shot even for many ranks. One more round trip costs about 30 us on loopback and
/// 100 us on a switch, in which a 10 Gb/s link moves 40 to 120 KiB.
const SMALL_BYTES: usize = 64 << 10;

/// In order of preference when two cost the same: fewer quantizations first.
const CANDIDATES: [Chosen; 4] = [Chosen::OneShot, Chosen::TwoShot, Chosen::Doubling, Chosen::Ring];

pub(super) fn choose(config: &ExchangeConfig, shape: Shape, codec: &dyn Codec) -> Chosen {
    choose_of(&CANDIDATES, config, shape, codec)
}

/// As [`choose`], where [`Algorithm::Auto`] has but these: GPUs have kernels for some algorithms only.
pub(super) fn choose_of(candidates: &[Chosen], config: &ExchangeConfig, shape: Shape, codec: &dyn Codec) -> Chosen {
    if shape.world_size == 1 {
        return Chosen::Copy;
    }
    // `none` encodes to the input's own bytes: the lossless path sends the same without the copies.
    let raw = codec.name() == "none" && config.algorithm == Algorithm::Auto;
    if raw || (shape.bytes() as u64) < config.min_bytes || config.gate.is_closed(standing_for(config, shape)) {
        return lossless(shape);
    }
    match config.algorithm {
        Algorithm::OneShot => Chosen::OneShot,
        Algorithm::TwoShot => Chosen::TwoShot,
        Algorithm::Ring => Chosen::Ring,
        Algorithm::Doubling => Chosen::Doubling,
        Algorithm::Lossless => lossless(shape),
        Algorithm::Auto => cheapest(candidates, config, shape, codec),
    }
}

pub(super) fn lossless(shape: Shape) -> Chosen {
    match shape.world_size {
        1 => Chosen::Copy,
        // Two ranks send the same bytes either way, and one-shot needs one round trip instead of two.
        2 => Chosen::LosslessOneShot,
        _ if shape.bytes() <= SMALL_BYTES => Chosen::LosslessOneShot,
        _ => Chosen::LosslessTwoShot,
    }
}

/// With `batch_invariant`, the message that stands for all of a site's. A busy server's decode step is about as large; a choice
/// that suits it costs a single sequence's decode step at most one more latency, and a prefill nothing.
const TYPICAL_TOKENS: usize = 64;

/// The message by which is decided how `shape` is exchanged.
const fn standing_for(config: &ExchangeConfig, shape: Shape) -> Shape {
    match config.batch_invariant {
        true => Shape {
            tokens: TYPICAL_TOKENS,
            ..shape
        },
        false => shape,
    }
}

/// Whether a token's sum has the same bits in every batch. `ring` adds in an order that depends on the token's place. `two_shot`
/// encodes groups of 32 features, which are the same in slices by rows and by features where each rank has a whole group.
const fn is_batch_invariant(chosen: Chosen, shape: Shape) -> bool {
    match chosen {
        Chosen::Ring => false,
        Chosen::TwoShot => shape.features / 32 >= shape.world_size,
        _ => true,
    }
}

fn cheapest(candidates: &[Chosen], config: &ExchangeConfig, shape: Shape, codec: &dyn Codec) -> Chosen {
    let shape = standing_for(config, shape);
    let cost = |chosen: Chosen| {
        let busiest = (0..shape.world_size)
            .map(|rank| predict_bytes_sent(chosen, shape, rank, codec, config.gather_bits))
            .max();
        let (steps, messages) = chosen.steps(shape.world_size);
        config.table.cost_ns(steps, messages, busiest.unwrap_or(0))
    };
    let allowed = |chosen: &Chosen| !config.batch_invariant || is_batch_invariant(*chosen, shape);
    // The first of equals.
    let cheapest = candidates
        .iter()
        .copied()
        .filter(allowed)
        .min_by_key(|chosen| cost(*chosen));
    cheapest.unwrap_or(Chosen::OneShot)
}

/// Bytes that `rank` sends in one exchange, headers and trailers included: exactly what
/// [`ExchangeStats::bytes_sent`](super::ExchangeStats::bytes_sent) says afterwards.
pub fn predict_bytes_sent(
    chosen: Chosen,
    shape: Shape,
    rank: usize,
    codec: &dyn Codec,
    gather_bits: GatherBits,
) -> u64 {
    let of_part = |(start, end)| {
        let tokens = end - start;
        predict_part(chosen, Shape { tokens, ..shape }, rank, codec, gather_bits)
    };
    Parts::new(chosen, shape, codec).bounds().map(of_part).sum()
}

fn predict_part(chosen: Chosen, shape: Shape, rank: usize, codec: &dyn Codec, gather_bits: GatherBits) -> u64 {
    const FRAME: usize = FRAME_HEADER_LEN + FRAME_TRAILER_LEN;
    let Shape {
        world_size,
        tokens,
        dtype,
        ..
    } = shape;
    let peers = world_size - 1;
    let size = dtype.size();
    let slices = |ways| Slices::new(codec, tokens, ways);
    let sum_len = |slices: &Slices<'_>, slice: usize| {
        gather_bits
            .codec(slices.width(slice))
            .payload_len(slices.rows(slice), dtype)
    };
    let bytes = match chosen {
        Chosen::Copy => 0,
        Chosen::OneShot => peers * (FRAME + codec.payload_len(tokens, dtype)),
        Chosen::TwoShot => {
            let slices = slices(world_size);
            let others = (0..world_size).filter(|owner| *owner != rank);
            let scatter: usize = others.map(|owner| FRAME + slices.payload_len(owner, dtype)).sum();
            scatter + peers * (FRAME + sum_len(&slices, rank))
        }
        Chosen::Ring => {
            let slices = slices(world_size);
            let step = |step| {
                let (first, second) = (
                    ring::scatter_slice(rank, step, world_size),
                    ring::gather_slice(rank, step, world_size),
                );
                2 * FRAME + ring::scatter_len(&slices, dtype, first, step) + sum_len(&slices, second)
            };
            (0..peers).map(step).sum()
        }
        Chosen::Doubling => doubling_bytes(shape, rank, codec, gather_bits),
        Chosen::LosslessOneShot => peers * (FRAME_HEADER_LEN + shape.bytes()),
        Chosen::LosslessTwoShot => {
            let (start, end) = slice_of(tokens * shape.features, rank, world_size);
            let own = (end - start) * size;
            (shape.bytes() - own) + peers * (2 * FRAME_HEADER_LEN + own)
        }
    };
    bytes as u64
}

fn doubling_bytes(shape: Shape, rank: usize, codec: &dyn Codec, gather_bits: GatherBits) -> usize {
    const FRAME: usize = FRAME_HEADER_LEN + FRAME_TRAILER_LEN;
    let core = core_size(shape.world_size);
    let partial = FRAME + codec.payload_len(shape.tokens, shape.dtype);
    if rank >= core {
        return partial;
    }
    let sum = FRAME + gather_bits.codec(shape.features).payload_len(shape.tokens, shape.dtype);
    let steps = (0..core.ilog2()).map(|step| match sends_partial(rank, step, shape.world_size) {
        true => partial,
        false => sum,
    });
    let has_extra = rank + core < shape.world_size;
    steps.sum::<usize>() + if has_extra { FRAME + shape.bytes() } else { 0 }
}
