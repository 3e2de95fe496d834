//! Reduce-scatter, then all-gather: rank r adds up slice r of all partial sums, in rank order, and sends the sum to the
//! others, encoded once more. It uses what it sent, so all ranks end with the same bits.

use super::frames::{peers, peers_from, Outbox};
use super::in_order::{Delivery, InOrder, Term};
use super::scratch::Scratch;
use super::slices::Slices;
use super::stage::{add_up, Gather};
use super::stream::{encode_slices, encode_sum};
use super::{ExchangeError, RankSet, Run};
use crate::transport::MAX_RANKS;
use crate::wire::{FrameKind, FRAME_TRAILER_LEN};

pub(super) fn run(run: &mut Run<'_, '_>) -> Result<RankSet, ExchangeError> {
    let call = run.call;
    let slices = Slices::new(call.codec, call.tokens as usize, call.transport.world_size());
    let marks = scatter(run, &slices)?;
    gather(run, &slices, marks)
}

/// Leaves the sum of this rank's slice in `scratch.sum`. Returns the ranks whose part of it had NaN or infinity, and this
/// rank if any of its input had.
fn scatter(run: &mut Run<'_, '_>, slices: &Slices<'_>) -> Result<RankSet, ExchangeError> {
    let (call, stats) = (&run.call, &mut *run.stats);
    let (rank, world_size) = call.place();
    let body_len = slices.payload_len(rank, call.dtype);
    let frame_len = |owner: usize| slices.payload_len(owner, call.dtype) + FRAME_TRAILER_LEN;
    run.scratch
        .prepare(slices.elements(rank), (0..world_size).map(frame_len).sum());
    let Scratch { sum, own, room } = &mut *run.scratch;

    let expected = call.expected(FrameKind::TwoShotScatter, call.codec.tag());
    let mut outbox = Outbox::new(call);
    let mut frames: [&mut [u8]; MAX_RANKS] = std::array::from_fn(|_| &mut [][..]);
    let mut rest = &mut own[..];
    let owners = peers_from(rank, world_size).chain([rank]);
    for owner in owners.clone() {
        let (frame, tail) = std::mem::take(&mut rest).split_at_mut(frame_len(owner));
        rest = tail;
        outbox.address(owner, expected, frame.len());
        frames[owner] = frame;
    }
    let marks = encode_slices(
        call,
        slices,
        owners,
        run.input,
        &mut frames,
        stats,
        |owner, ready, stats| match owner == rank {
            true => Ok(true),
            false => outbox.offer(owner, ready, stats),
        },
    )?;
    let frames = frames.map(|frame| &*frame);

    let terms = Term::of_all(slices.codec(rank), rank, &frames[rank][..body_len]);
    let (rows, width) = (slices.rows(rank), slices.width(rank));
    let mut adding = InOrder::new(&terms[..world_size], rows, width, call.dtype, sum);
    let sends = outbox.rests(|peer| frames[peer]);
    let found = add_up(
        call,
        &sends[..world_size - 1],
        expected,
        &mut adding,
        room,
        stats,
        |_| {},
    )?;
    Ok(found.with(marks))
}

/// Sends the sum of this rank's slice, and puts all slices into `output`.
fn gather(run: &mut Run<'_, '_>, slices: &Slices<'_>, marks: RankSet) -> Result<RankSet, ExchangeError> {
    let (call, stats) = (&run.call, &mut *run.stats);
    let (rank, world_size) = call.place();
    let gather = Gather {
        call,
        slices,
        kind: FrameKind::TwoShotGather,
        part: call.part,
    };
    run.scratch.prepare(slices.elements(rank), gather.frame_len(rank));
    let Scratch { sum, own, room } = &mut *run.scratch;

    let mut outbox = Outbox::new(call);
    for peer in peers(rank, world_size) {
        outbox.address(peer, gather.expected(rank), own.len());
    }
    encode_sum(call, &gather.codec(rank), sum, own, marks, stats, |ready, stats| {
        outbox.offer((rank + 1) % world_size, ready, stats)
    })?;
    let own = &own[..];
    let sends = outbox.rests(|_| own);
    let mut delivery = Delivery::new(slices, call.dtype, run.output);
    // Its own slice first, while the others' are on their way.
    gather.place_own(rank, own, &mut delivery, stats)?;
    let incoming = peers(rank, world_size).map(|peer| (peer, peer));
    let found = gather.deliver(&sends[..world_size - 1], incoming, &mut delivery, room, stats)?;
    Ok(found.with(marks))
}
