//! Reduce-scatter, then all-gather: rank r adds up slice r of all partial sums, in rank order, and sends the sum to the
//! others, encoded once more. It uses what it sent, so all ranks end with the same bits.

use std::time::Instant;

use super::frames::{no_sends, peers, peers_from, transfer, Outbox};
use super::in_order::{Delivery, InOrder, Term};
use super::scratch::{received_from, recv_ops, Scratch};
use super::slices::Slices;
use super::stream::{encode_slice, encode_sum};
use super::{Call, ExchangeError, ExchangeStats, RankSet};
use crate::codec::{Values, ValuesMut};
use crate::transport::MAX_RANKS;
use crate::wire::{FrameKind, FRAME_TRAILER_LEN};

pub(super) fn run(
    call: &Call<'_>,
    scratch: &mut Scratch,
    input: Values<'_>,
    output: &mut ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let slices = Slices::new(call.codec, call.tokens as usize, call.transport.world_size());
    let marks = scatter(call, &slices, scratch, input, stats)?;
    gather(call, &slices, marks, scratch, output, stats)
}

/// Leaves the sum of this rank's slice in `scratch.sum`. Returns the ranks whose part of it had NaN or infinity, and this
/// rank if any of its input had.
fn scatter(
    call: &Call<'_>,
    slices: &Slices<'_>,
    scratch: &mut Scratch,
    input: Values<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let (rank, world_size) = (call.transport.rank(), call.transport.world_size());
    let body_len = slices.payload_len(rank, call.dtype);
    let frame_len = |owner: usize| slices.payload_len(owner, call.dtype) + FRAME_TRAILER_LEN;
    scratch.prepare(
        world_size,
        slices.elements(rank),
        (0..world_size).map(frame_len).sum(),
        (world_size - 1) * frame_len(rank),
    );
    let Scratch {
        sum,
        own,
        received,
        headers,
        ..
    } = scratch;

    let expected = call.expected(FrameKind::TwoShotScatter, call.codec.tag());
    let mut outbox = Outbox::new();
    let mut frames: [&[u8]; MAX_RANKS] = [&[]; MAX_RANKS];
    let mut rest = &mut own[..];
    let mut marks = RankSet::default();
    for owner in peers_from(rank, world_size).chain([rank]) {
        let (frame, tail) = std::mem::take(&mut rest).split_at_mut(frame_len(owner));
        rest = tail;
        outbox.address(owner, expected.header(rank, false, frame.len()));
        let seen = encode_slice(call, slices, owner, input, frame, stats, |ready, stats| {
            if owner == rank {
                return Ok(());
            }
            outbox.offer(call, owner, ready, stats)
        })?;
        marks = marks.with(seen);
        frames[owner] = frame;
    }

    let terms: [Term<'_>; MAX_RANKS] = std::array::from_fn(|from| Term {
        rank: from,
        codec: slices.codec(rank),
        own: (from == rank).then(|| &frames[rank][..body_len]),
    });
    let (rows, width) = (slices.rows(rank), slices.width(rank));
    let mut adding = InOrder::new(&terms[..world_size], rows, width, call.dtype, sum);
    let (mut ops, count) = recv_ops(peers(rank, world_size), headers, received, |_| frame_len(rank));
    let mut sends = no_sends();
    for (send, peer) in sends.iter_mut().zip(peers(rank, world_size)) {
        *send = outbox.rest(peer, frames[peer]);
    }
    let mut on_payload = |from: usize, bytes: &[u8], complete: bool| {
        adding
            .arrived(from, bytes, complete)
            .map_err(|bad| call.bad_payload(bad))
    };
    let sends = &sends[..world_size - 1];
    let found = transfer(call, sends, &mut ops[..count], |_| expected, &mut on_payload, stats)?;

    let start = Instant::now();
    let rest = adding.finish(|from| &received_from(&ops[..count], from)[..body_len]);
    rest.map_err(|bad| call.give_up(bad))?;
    stats.decode += start.elapsed();
    Ok(found.with(marks))
}

/// Sends the sum of this rank's slice, and puts all slices into `output`.
fn gather(
    call: &Call<'_>,
    slices: &Slices<'_>,
    marks: RankSet,
    scratch: &mut Scratch,
    output: &mut ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let (rank, world_size) = (call.transport.rank(), call.transport.world_size());
    let codec = |owner: usize| call.gather_bits.codec(slices.width(owner));
    let body_len = |owner: usize| codec(owner).payload_len(slices.rows(owner), call.dtype);
    let frame_len = |owner: usize| body_len(owner) + FRAME_TRAILER_LEN;
    scratch.prepare(
        world_size,
        slices.elements(rank),
        frame_len(rank),
        peers(rank, world_size).map(frame_len).sum(),
    );
    let Scratch {
        sum,
        block,
        own,
        received,
        headers,
    } = scratch;

    let expected = |owner: usize| call.expected(FrameKind::TwoShotGather, codec(owner).tag());
    let mut outbox = Outbox::new();
    for peer in peers(rank, world_size) {
        outbox.address(peer, expected(rank).header(rank, false, own.len()));
    }
    encode_sum(call, &*codec(rank), sum, own, marks, stats, |ready, stats| {
        peers_from(rank, world_size).try_for_each(|peer| outbox.offer(call, peer, ready, stats))
    })?;
    let own = &own[..];
    let mut sends = no_sends();
    for (send, peer) in sends.iter_mut().zip(peers_from(rank, world_size)) {
        *send = outbox.rest(peer, own);
    }
    let start = Instant::now();
    let mut delivery = Delivery::new(slices, call.dtype, block, output);
    let (mut ops, count) = recv_ops(peers(rank, world_size), headers, received, frame_len);
    let mut on_payload = |from: usize, bytes: &[u8], complete: bool| {
        delivery
            .arrived(from, from, &*codec(from), bytes, complete)
            .map_err(|bad| call.bad_payload(bad))
    };
    // Its own slice first, while the others' are on their way.
    on_payload(rank, &own[..body_len(rank)], true)?;
    stats.decode += start.elapsed();
    let sends = &sends[..world_size - 1];
    let found = transfer(call, sends, &mut ops[..count], expected, &mut on_payload, stats)?;
    Ok(found.with(marks))
}
