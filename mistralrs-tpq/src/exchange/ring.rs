//! Quantized ring: reduce-scatter, then all-gather, each in N-1 steps to the right neighbour.
//!
//! In step s of the first half rank r sends the sum so far of slice (r - s) mod N and receives that of slice (r - 1 - s)
//! mod N, to which it adds its own part exactly. A sum on its way is encoded again at each hop, so its error grows with N:
//! the other algorithms quantize once or twice. The second half passes finished payloads on unchanged.

use std::time::Instant;

use super::accumulate::count_nonfinite;
use super::frames::{Expected, Outbox};
use super::in_order::{Delivery, InOrder, Term};
use super::scratch::Scratch;
use super::slices::Slices;
use super::stage::{add_up, Gather};
use super::stream::{encode_slice, encode_sum, seal};
use super::sum_codec::{GatherBits, MessageCodec};
use super::{ExchangeError, ExchangeStats, RankSet, Run};
use crate::codec::{Codec, Dtype};
use crate::wire::{FrameKind, FRAME_TRAILER_LEN};

/// Codes of sums on their way round. With 8 bits, a ring would send as much as a two-shot exchange with `gather_bits: 8`
/// and be slower at every size.
pub(super) const HOP_BITS: GatherBits = GatherBits::Four;

/// The codec of what is sent of `slice` in `step` of the first half: a partial sum, then sums.
fn hop<'a>(slices: &'a Slices<'_>, slice: usize, step: usize) -> MessageCodec<'a> {
    if step == 0 {
        MessageCodec::Partial(slices.codec(slice))
    } else {
        MessageCodec::Sum(HOP_BITS.codec(slices.width(slice)))
    }
}

pub(super) fn scatter_len(slices: &Slices<'_>, dtype: Dtype, slice: usize, step: usize) -> usize {
    hop(slices, slice, step).payload_len(slices.rows(slice), dtype)
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

pub(super) fn run(run: &mut Run<'_, '_>) -> Result<RankSet, ExchangeError> {
    let call = run.call;
    let world_size = call.transport.world_size();
    let slices = Slices::new(call.codec, call.tokens as usize, world_size);
    let mut marks = RankSet::default();
    for step in 0..world_size - 1 {
        marks = scatter_step(run, &slices, step, marks)?;
    }
    // By now all ranks know of all, so that all stop here or none.
    if !marks.is_empty() {
        return Ok(marks);
    }
    for step in 0..world_size - 1 {
        gather_step(run, &slices, step)?;
    }
    Ok(marks)
}

/// Leaves the sum so far of the received slice in `scratch.sum`; returns who had NaN or infinity, as far as known.
fn scatter_step(
    run: &mut Run<'_, '_>,
    slices: &Slices<'_>,
    step: usize,
    mut marks: RankSet,
) -> Result<RankSet, ExchangeError> {
    let (call, stats) = (&run.call, &mut *run.stats);
    let (rank, world_size) = call.place();
    let (left, right) = (back(rank, 1, world_size), (rank + 1) % world_size);
    let out = scatter_slice(rank, step, world_size);
    let incoming = scatter_slice(left, step, world_size);
    let Scratch { sum, own, room } = &mut *run.scratch;
    own.fit(scatter_len(slices, call.dtype, out, step) + FRAME_TRAILER_LEN);

    let stage = |codec: &dyn Codec| Expected {
        part: step as u32,
        ..call.expected(FrameKind::RingScatter, codec.tag())
    };
    let codec = hop(slices, out, step);
    let mut outbox = Outbox::new(call);
    outbox.address(right, stage(&*codec), own.len());
    let offer = |ready: &[u8], stats: &mut ExchangeStats| outbox.offer(right, ready, stats);
    if step == 0 {
        // Of the first slice only; the others are this rank's own input too, and join in with their step.
        marks = encode_slice(call, slices, out, run.input, own, stats, offer)?;
        let others = count_nonfinite(run.input);
        if others > 0 {
            stats.nonfinite = others;
            marks.insert(rank);
            seal(own, marks);
        }
    } else {
        encode_sum(call, &*codec, sum, own, marks, stats, offer)?;
    }

    sum.fit(slices.elements(incoming));
    let codec = hop(slices, incoming, step);
    let terms = [Term::received(&*codec, left)];
    let (rows, width) = (slices.rows(incoming), slices.width(incoming));
    let mut adding = InOrder::new(&terms, rows, width, call.dtype, sum);
    let sends = [outbox.rest(right, own)];
    let found = add_up(call, &sends, stage(&*codec), &mut adding, room, stats, |_| {})?;
    let start = Instant::now();
    slices.add(incoming, run.input, sum);
    stats.decode += start.elapsed();
    Ok(marks.with(found))
}

/// Step s: sends slice (r + 1 - s), which in step 0 is the one this rank has finished, and receives slice (r - s).
fn gather_step(run: &mut Run<'_, '_>, slices: &Slices<'_>, step: usize) -> Result<(), ExchangeError> {
    let (call, stats) = (&run.call, &mut *run.stats);
    let (rank, world_size) = call.place();
    let (left, right) = (back(rank, 1, world_size), (rank + 1) % world_size);
    let out = gather_slice(rank, step, world_size);
    let incoming = gather_slice(left, step, world_size);
    let gather = Gather {
        call,
        slices,
        kind: FrameKind::RingGather,
        part: step as u32,
    };
    let Scratch { sum, own, room } = &mut *run.scratch;
    // What came in the last step goes on in this one.
    std::mem::swap(own, &mut room.received);
    own.fit(gather.frame_len(out));

    let mut outbox = Outbox::new(call);
    outbox.address(right, gather.expected(out), own.len());
    let mut delivery = Delivery::new(slices, call.dtype, run.output);
    if step == 0 {
        let offer = |ready: &[u8], stats: &mut ExchangeStats| outbox.offer(right, ready, stats);
        encode_sum(call, &gather.codec(out), sum, own, RankSet::default(), stats, offer)?;
        gather.place_own(out, own, &mut delivery, stats)?;
    }
    let sends = [outbox.rest(right, own)];
    let incoming = [(left, incoming)].into_iter();
    gather.deliver(&sends, incoming, &mut delivery, room, stats)?;
    Ok(())
}
