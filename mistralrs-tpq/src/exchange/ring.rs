//! Quantized ring: reduce-scatter, then all-gather, each in N-1 steps to the right neighbour.
//!
//! In step s of the first half rank r sends the sum so far of slice (r - s) mod N and receives that of slice (r - 1 - s)
//! mod N, to which it adds its own part exactly. A sum on its way is encoded again at each hop, so its error grows with N:
//! the other algorithms quantize once or twice. The second half passes finished payloads on unchanged.

use std::time::Instant;

use super::frames::{transfer, OnPayload, Outbox};
use super::in_order::{Delivery, InOrder, Term};
use super::scratch::{recv_ops, Scratch};
use super::slices::Slices;
use super::stream::{encode_slice, encode_sum, seal};
use super::sum_codec::GatherBits;
use super::{Call, ExchangeError, ExchangeStats, RankSet};
use crate::codec::{Codec, Values, ValuesMut};
use crate::wire::{FrameKind, FRAME_TRAILER_LEN};

/// Codes of sums on their way round. With 8 bits, a ring would send as much as a two-shot exchange with `gather_bits: 8`
/// and be slower at every size.
pub(super) const HOP_BITS: GatherBits = GatherBits::Four;

/// The codec of what is sent of `slice` in `step` of the first half: a partial sum, then sums.
fn hop<R>(slices: &Slices<'_>, slice: usize, step: usize, with: impl FnOnce(&dyn Codec) -> R) -> R {
    if step == 0 {
        with(slices.codec(slice))
    } else {
        with(&*HOP_BITS.codec(slices.width(slice)))
    }
}

pub(super) fn scatter_len(slices: &Slices<'_>, call_dtype: crate::codec::Dtype, slice: usize, step: usize) -> usize {
    hop(slices, slice, step, |codec| {
        codec.payload_len(slices.rows(slice), call_dtype)
    })
}

/// The slice that `rank` sends in `step` of the first half.
pub(super) const fn scatter_slice(rank: usize, step: usize, world_size: usize) -> usize {
    back(rank, step, world_size)
}

/// As [`scatter_slice`], of the second half: in step 0 the one that the rank has finished.
pub(super) const fn gather_slice(rank: usize, step: usize, world_size: usize) -> usize {
    back(rank + 1, step, world_size)
}

/// `steps` before rank `rank`, round the ring.
const fn back(rank: usize, steps: usize, world_size: usize) -> usize {
    (rank + 2 * world_size - steps % world_size) % world_size
}

pub(super) fn run(
    call: &Call<'_>,
    scratch: &mut Scratch,
    input: Values<'_>,
    output: &mut ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let world_size = call.transport.world_size();
    let slices = Slices::new(call.codec, call.tokens as usize, world_size);
    let mut marks = RankSet::default();
    for step in 0..world_size - 1 {
        marks = scatter_step(call, &slices, step, marks, scratch, input, stats)?;
    }
    // By now all ranks know of all, so that all stop here or none.
    if !marks.is_empty() {
        return Ok(marks);
    }
    for step in 0..world_size - 1 {
        gather_step(call, &slices, step, scratch, output, stats)?;
    }
    Ok(marks)
}

/// Leaves the sum so far of the received slice in `scratch.sum`; returns who had NaN or infinity, as far as known.
fn scatter_step(
    call: &Call<'_>,
    slices: &Slices<'_>,
    step: usize,
    marks: RankSet,
    scratch: &mut Scratch,
    input: Values<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let (rank, world_size) = (call.transport.rank(), call.transport.world_size());
    let (left, right) = (back(rank, 1, world_size), (rank + 1) % world_size);
    let (out, incoming) = (
        scatter_slice(rank, step, world_size),
        scatter_slice(left, step, world_size),
    );
    let out_len = scatter_len(slices, call.dtype, out, step) + FRAME_TRAILER_LEN;
    let body_len = scatter_len(slices, call.dtype, incoming, step);
    let Scratch {
        sum,
        own,
        received,
        headers,
        ..
    } = scratch;
    own.resize(out_len, 0);
    received.resize(body_len + FRAME_TRAILER_LEN, 0);
    headers.resize(crate::wire::FRAME_HEADER_LEN, 0);

    let stage = |codec: u8| super::frames::Expected {
        part: step as u32,
        ..call.expected(FrameKind::RingScatter, codec)
    };
    let mut outbox = Outbox::new();
    let sent = hop(slices, out, step, |codec| codec.tag());
    outbox.address(right, stage(sent).header(rank, false, out_len));
    let mut marks = marks;
    if step == 0 {
        // Of the first slice only; the others are this rank's own input too, and join in with their step.
        let offer = |ready: &[u8], stats: &mut ExchangeStats| outbox.offer(call, right, ready, stats);
        marks = encode_slice(call, slices, out, input, own, stats, offer)?;
        let others = super::accumulate::count_nonfinite(input);
        if others > 0 {
            stats.nonfinite = others;
            marks.insert(rank);
            seal(own, marks);
        }
    } else {
        let offer = |ready: &[u8], stats: &mut ExchangeStats| outbox.offer(call, right, ready, stats);
        encode_sum(call, &*HOP_BITS.codec(slices.width(out)), sum, own, marks, stats, offer)?;
    }

    sum.resize(slices.elements(incoming), 0.0);
    let found = hop(slices, incoming, step, |codec| {
        let terms = [Term {
            rank: left,
            codec,
            own: None,
        }];
        let mut adding = InOrder::new(&terms, slices.rows(incoming), slices.width(incoming), call.dtype, sum);
        let (mut ops, count) = recv_ops([left].into_iter(), headers, received, |_| body_len + FRAME_TRAILER_LEN);
        let sends = [outbox.rest(right, own)];
        let on_payload: &mut OnPayload<'_> = &mut |from, bytes, complete| {
            adding
                .arrived(from, bytes, complete)
                .map_err(|bad| call.bad_payload(bad))
        };
        let expected = stage(codec.tag());
        let found = transfer(call, &sends, &mut ops[..count], |_| expected, on_payload, stats)?;
        let rest = adding.finish(|_| &ops[0].payload[..body_len]);
        rest.map_err(|bad| call.give_up(bad))?;
        Ok(found)
    })?;
    let start = Instant::now();
    slices.add(incoming, input, sum);
    stats.decode += start.elapsed();
    Ok(marks.with(found))
}

/// Step s: sends slice (r + 1 - s), which in step 0 is the one this rank has finished, and receives slice (r - s).
fn gather_step(
    call: &Call<'_>,
    slices: &Slices<'_>,
    step: usize,
    scratch: &mut Scratch,
    output: &mut ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<(), ExchangeError> {
    let (rank, world_size) = (call.transport.rank(), call.transport.world_size());
    let (left, right) = (back(rank, 1, world_size), (rank + 1) % world_size);
    let (out, incoming) = (
        gather_slice(rank, step, world_size),
        gather_slice(left, step, world_size),
    );
    let codec = |slice: usize| call.gather_bits.codec(slices.width(slice));
    let body_len = |slice: usize| codec(slice).payload_len(slices.rows(slice), call.dtype);
    // What came in the last step goes on in this one.
    std::mem::swap(&mut scratch.own, &mut scratch.received);
    let Scratch {
        sum,
        block,
        own,
        received,
        headers,
    } = scratch;
    own.resize(body_len(out) + FRAME_TRAILER_LEN, 0);
    received.resize(body_len(incoming) + FRAME_TRAILER_LEN, 0);

    let stage = |slice: usize| super::frames::Expected {
        part: step as u32,
        ..call.expected(FrameKind::RingGather, codec(slice).tag())
    };
    let mut outbox = Outbox::new();
    outbox.address(right, stage(out).header(rank, false, own.len()));
    let mut delivery = Delivery::new(slices, call.dtype, block, output);
    if step == 0 {
        let offer = |ready: &[u8], stats: &mut ExchangeStats| outbox.offer(call, right, ready, stats);
        encode_sum(call, &*codec(out), sum, own, RankSet::default(), stats, offer)?;
        let start = Instant::now();
        let own_slice = delivery.arrived(out, rank, &*codec(out), &own[..body_len(out)], true);
        own_slice.map_err(|bad| call.give_up(bad))?;
        stats.decode += start.elapsed();
    }
    let (mut ops, count) = recv_ops([left].into_iter(), headers, received, |_| {
        body_len(incoming) + FRAME_TRAILER_LEN
    });
    let sends = [outbox.rest(right, own)];
    let on_payload: &mut OnPayload<'_> = &mut |from, bytes, complete| {
        delivery
            .arrived(incoming, from, &*codec(incoming), bytes, complete)
            .map_err(|bad| call.bad_payload(bad))
    };
    let expected = stage(incoming);
    transfer(call, &sends, &mut ops[..count], |_| expected, on_payload, stats).map(|_| ())
}
