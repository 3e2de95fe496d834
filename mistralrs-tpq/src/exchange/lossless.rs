//! Raw values: the reference, the baseline, and the way out when a partial sum has NaN or infinity.
//!
//! Both forms add in rank order in f32 from zero and round once, so they give the same bits. Values are sent from the
//! input and finished slices received into the output, without a copy.

use std::time::Instant;

use super::accumulate::{as_bytes, as_bytes_mut, count_nonfinite};
use super::frames::exchange;
use super::in_order::{InOrder, Term};
use super::scratch::{received_from, recv_ops, recv_ops_into, Room, Scratch};
use super::{Call, ExchangeError, ExchangeStats, RankSet, Run};
use crate::codec::{NoCodec, Values, ValuesMut};
use crate::wire::FrameKind;

/// Every rank sends everything to every other and adds all of it: one round trip.
pub(super) fn one_shot(run: &mut Run<'_, '_>) -> Result<RankSet, ExchangeError> {
    let (call, input, stats) = (&run.call, run.input, &mut *run.stats);
    let own = as_bytes(input);
    run.scratch.prepare(input.len(), 0);
    let Scratch { sum, room, .. } = &mut *run.scratch;
    let bad = scan(input, stats);
    let output = run.output.reborrow();
    add_up(call, FrameKind::Lossless, bad, |_| own, sum, room, output, stats)
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
    let mine = run.output.slice(start_mine, end_mine);
    let nonfinite = add_up(call, FrameKind::LosslessScatter, bad, slice_for, sum, room, mine, stats)?;

    let rest = as_bytes_mut(run.output);
    own.copy_from_slice(&rest[start_mine * size..end_mine * size]);
    let slices = (0..world_size).scan(rest, |rest, owner| {
        let (start, end) = bounds(owner);
        let (slice, tail) = std::mem::take(rest).split_at_mut((end - start) * size);
        *rest = tail;
        Some((owner, slice))
    });
    let (mut ops, count) = recv_ops_into(slices.filter(|(owner, _)| *owner != rank), room);
    let recvs = &mut ops[..count];
    exchange(
        call,
        FrameKind::LosslessGather,
        bad,
        |_| own,
        recvs,
        &mut |_, _, _| Ok(()),
        stats,
    )?;
    Ok(nonfinite)
}

/// Sends `payload(peer)` to each peer, and adds up `payload` of this rank and as many elements from each peer, in rank order
/// and while they arrive, rounded to `output`.
#[allow(
    clippy::too_many_arguments,
    reason = "the parts of a run, which its caller has borrowed one by one"
)]
fn add_up<'a>(
    call: &Call<'_>,
    kind: FrameKind,
    nonfinite: bool,
    payload: impl Fn(usize) -> &'a [u8],
    sum: &mut [f32],
    room: &mut Room,
    mut output: ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let (rank, world_size) = call.place();
    let raw = NoCodec::new(1);
    let terms = Term::of_all(&raw, rank, payload(rank));
    let elements = sum.len();
    let mut adding = InOrder::new(&terms[..world_size], elements, 1, call.dtype, sum);
    let (mut ops, count) = recv_ops(adding.incoming(), room);
    let recvs = &mut ops[..count];
    let mut on_payload = |from: usize, bytes: &[u8], complete: bool| {
        let added = adding.arrived(from, bytes, complete);
        added.map_err(|bad| call.bad_payload(bad))?;
        adding.round_to(&mut output);
        Ok(())
    };
    let found = exchange(call, kind, nonfinite, payload, recvs, &mut on_payload, stats)?;

    let start = Instant::now();
    let rest = adding.finish(|from| received_from(recvs, from));
    rest.map_err(|bad| call.give_up(bad))?;
    adding.round_to(&mut output);
    stats.decode += start.elapsed();
    Ok(found)
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
