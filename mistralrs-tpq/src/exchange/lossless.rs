//! Raw values: the reference, the baseline, and the way out when a partial sum has NaN or infinity.
//!
//! Both forms add in rank order in f32 from zero and round once, so they give the same bits. Values are sent from the
//! input and finished slices received into the output, without a copy.

use std::time::Instant;

use super::accumulate::{add_raw, as_bytes, as_bytes_mut, count_nonfinite, round};
use super::frames::{exchange, no_recvs, peers};
use super::scratch::{received_from, recv_ops, Scratch};
use super::{Call, ExchangeError, ExchangeStats, RankSet};
use crate::codec::{Values, ValuesMut};
use crate::transport::RecvOp;
use crate::wire::{FrameKind, FRAME_HEADER_LEN};

/// Every rank sends everything to every other and adds all of it: one round trip.
pub(super) fn one_shot(
    call: &Call<'_>,
    scratch: &mut Scratch,
    input: Values<'_>,
    output: &mut ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let (rank, world_size) = (call.transport.rank(), call.transport.world_size());
    let own = as_bytes(input);
    scratch.prepare(world_size, input.len(), 0, (world_size - 1) * own.len());
    let Scratch {
        sum, received, headers, ..
    } = scratch;
    let bad = scan(input, stats);
    let (mut ops, count) = recv_ops(peers(rank, world_size), headers, received, |_| own.len());
    let nonfinite = exchange(call, FrameKind::Lossless, bad, |_| own, &mut ops[..count], stats)?;

    let start = Instant::now();
    sum.fill(0.0);
    for from in 0..world_size {
        let bytes = if from == rank {
            own
        } else {
            received_from(&ops[..count], from)
        };
        add_raw(bytes, call.dtype, sum);
    }
    round(sum, output, 0);
    stats.decode += start.elapsed();
    Ok(nonfinite)
}

/// Reduce-scatter, then all-gather: each rank adds one slice of the elements and sends the sum to the others.
pub(super) fn two_shot(
    call: &Call<'_>,
    scratch: &mut Scratch,
    input: Values<'_>,
    output: &mut ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let (rank, world_size) = (call.transport.rank(), call.transport.world_size());
    let size = call.dtype.size();
    let bounds = |owner: usize| slice_of(input.len(), owner, world_size);
    let (start_mine, end_mine) = bounds(rank);
    let slice_len = (end_mine - start_mine) * size;
    let bytes = as_bytes(input);
    let slice_for = |owner: usize| {
        let (start, end) = bounds(owner);
        &bytes[start * size..end * size]
    };
    scratch.prepare(
        world_size,
        end_mine - start_mine,
        slice_len,
        (world_size - 1) * slice_len,
    );
    let Scratch {
        sum,
        own,
        received,
        headers,
        ..
    } = scratch;
    let bad = scan(input, stats);
    let (mut ops, count) = recv_ops(peers(rank, world_size), headers, received, |_| slice_len);
    let recvs = &mut ops[..count];
    let nonfinite = exchange(call, FrameKind::LosslessScatter, bad, slice_for, recvs, stats)?;

    let start = Instant::now();
    sum.fill(0.0);
    for from in 0..world_size {
        let slice = if from == rank {
            slice_for(rank)
        } else {
            received_from(&ops[..count], from)
        };
        add_raw(slice, call.dtype, sum);
    }
    round(sum, output, start_mine);
    stats.decode += start.elapsed();

    let mut rest = as_bytes_mut(output);
    own.copy_from_slice(&rest[start_mine * size..end_mine * size]);
    let mut ops = no_recvs();
    let mut header_room = headers.chunks_exact_mut(FRAME_HEADER_LEN);
    let mut count = 0;
    for owner in 0..world_size {
        let (start, end) = bounds(owner);
        let (payload, tail) = rest.split_at_mut((end - start) * size);
        rest = tail;
        if let (true, Some(header)) = (owner != rank, header_room.next()) {
            ops[count] = RecvOp {
                from: owner,
                header,
                payload,
            };
            count += 1;
        }
    }
    exchange(call, FrameKind::LosslessGather, bad, |_| own, &mut ops[..count], stats)?;
    Ok(nonfinite)
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
