//! Raw values: the reference, the baseline, and the way out when a partial sum has NaN or infinity.
//!
//! Both forms add in rank order in f32 from zero and round once, so they give the same bits. Values are sent from the
//! input and finished slices received into the output, without a copy.

use std::time::Instant;

use super::accumulate::{add_raw, as_bytes, as_bytes_mut, count_nonfinite, round};
use super::frames::{exchange, peers};
use super::scratch::{received_from, recv_ops, recv_ops_into, Scratch};
use super::{Call, ExchangeError, ExchangeStats, RankSet, Run};
use crate::codec::{Values, ValuesMut};
use crate::transport::RecvOp;
use crate::wire::FrameKind;

/// Every rank sends everything to every other and adds all of it: one round trip.
pub(super) fn one_shot(run: &mut Run<'_, '_>) -> Result<RankSet, ExchangeError> {
    let (call, input, stats) = (&run.call, run.input, &mut *run.stats);
    let (rank, world_size) = call.place();
    let own = as_bytes(input);
    run.scratch.prepare(input.len(), 0);
    let Scratch { sum, room, .. } = &mut *run.scratch;
    let bad = scan(input, stats);
    let (mut ops, count) = recv_ops(peers(rank, world_size).map(|peer| (peer, own.len())), room);
    let nonfinite = exchange(call, FrameKind::Lossless, bad, |_| own, &mut ops[..count], stats)?;
    add_all(call, own, &ops[..count], sum, run.output, 0, stats);
    Ok(nonfinite)
}

/// Reduce-scatter, then all-gather: each rank adds one slice of the elements and sends the sum to the others.
pub(super) fn two_shot(run: &mut Run<'_, '_>) -> Result<RankSet, ExchangeError> {
    let (call, input, stats) = (&run.call, run.input, &mut *run.stats);
    let (rank, world_size) = call.place();
    let size = call.dtype.size();
    let bounds = |owner: usize| slice_of(input.len(), owner, world_size);
    let (start_mine, end_mine) = bounds(rank);
    let slice_len = (end_mine - start_mine) * size;
    let bytes = as_bytes(input);
    let slice_for = |owner: usize| {
        let (start, end) = bounds(owner);
        &bytes[start * size..end * size]
    };
    run.scratch.prepare(end_mine - start_mine, slice_len);
    let Scratch { sum, own, room } = &mut *run.scratch;
    let bad = scan(input, stats);
    let (mut ops, count) = recv_ops(peers(rank, world_size).map(|peer| (peer, slice_len)), room);
    let recvs = &mut ops[..count];
    let nonfinite = exchange(call, FrameKind::LosslessScatter, bad, slice_for, recvs, stats)?;
    add_all(call, slice_for(rank), recvs, sum, run.output, start_mine, stats);

    let rest = as_bytes_mut(run.output);
    own.copy_from_slice(&rest[start_mine * size..end_mine * size]);
    let slices = (0..world_size).scan(rest, |rest, owner| {
        let (start, end) = bounds(owner);
        let (slice, tail) = std::mem::take(rest).split_at_mut((end - start) * size);
        *rest = tail;
        Some((owner, slice))
    });
    let (mut ops, count) = recv_ops_into(slices.filter(|(owner, _)| *owner != rank), room);
    exchange(call, FrameKind::LosslessGather, bad, |_| own, &mut ops[..count], stats)?;
    Ok(nonfinite)
}

/// Adds up what came and `own`, in rank order, and rounds it to elements `start..` of `output`.
fn add_all(
    call: &Call<'_>,
    own: &[u8],
    ops: &[RecvOp<'_>],
    sum: &mut [f32],
    output: &mut ValuesMut<'_>,
    start: usize,
    stats: &mut ExchangeStats,
) {
    let began = Instant::now();
    let (rank, world_size) = call.place();
    sum.fill(0.0);
    for from in 0..world_size {
        let bytes = match from == rank {
            true => own,
            false => received_from(ops, from),
        };
        add_raw(bytes, call.dtype, sum);
    }
    round(sum, output, start);
    stats.decode += began.elapsed();
}

/// The elements that `owner` adds up: as even as can be, empty when there are fewer elements than ranks.
pub(super) fn slice_of(elements: usize, owner: usize, world_size: usize) -> (usize, usize) {
    // In 128 bits the product cannot overflow, whatever the shape.
    let at = |i: usize| (elements as u128 * i as u128 / world_size as u128) as usize;
    (at(owner), at(owner + 1))
}

fn scan(input: Values<'_>, stats: &mut ExchangeStats) -> bool {
    let start = Instant::now();
    let count = count_nonfinite(input);
    stats.nonfinite += count;
    stats.encode += start.elapsed();
    count > 0
}
