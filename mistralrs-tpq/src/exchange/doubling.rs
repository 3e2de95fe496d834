//! Recursive doubling: in step k partners at distance 2^k exchange the sums of 2^k ranks each, so log2 N steps do where a
//! one-shot exchange sends N-1 messages. Both partners add the *encoded* sums, the lower rank's first, and end with the
//! same bits; by induction all ranks do.
//!
//! Ranks beyond the largest power of two P hand their partial sum to rank r - P first, and get the result at the end.

use std::time::Instant;

use super::accumulate::{as_bytes_mut, count_nonfinite, round};
use super::frames::{transfer, Expected, Outbox};
use super::in_order::{InOrder, Term};
use super::scratch::{recv_ops, Scratch};
use super::slices::Slices;
use super::stage::add_up;
use super::stream::{encode_slice, encode_sum, seal};
use super::sum_codec::MessageCodec;
use super::{Call, ExchangeError, ExchangeStats, RankSet, Run};
use crate::codec::Codec;
use crate::wire::{FrameKind, FRAME_TRAILER_LEN};

/// The largest power of two up to `world_size`.
pub(super) const fn core_size(world_size: usize) -> usize {
    1 << world_size.ilog2()
}

/// Whether what `rank` sends in `step` is a partial sum as the engine made it, and not a sum of several.
pub(super) const fn sends_partial(rank: usize, step: u32, world_size: usize) -> bool {
    step == 0 && rank + core_size(world_size) >= world_size
}

pub(super) fn run(run: &mut Run<'_, '_>) -> Result<RankSet, ExchangeError> {
    let (call, input) = (run.call, run.input);
    let (rank, world_size) = call.place();
    let core = core_size(world_size);
    run.scratch.sum.fit(input.len());
    let whole = Slices::whole(call.codec, call.tokens as usize);
    if rank >= core {
        let marks = send_partial(run, &whole, rank - core)?;
        return Ok(receive_result(run, rank - core)?.with(marks));
    }
    let extra = (rank + core < world_size).then_some(rank + core);
    let mut marks = RankSet::default();
    if count_nonfinite(input) > 0 {
        marks.insert(rank);
    }
    if let Some(extra) = extra {
        marks = marks.with(receive_partial(run, extra)?);
        whole.add(0, input, &mut run.scratch.sum);
        run.stats.nonfinite += count_nonfinite(input);
    }
    for step in 0..core.ilog2() {
        marks = step_with_partner(run, &whole, step, marks)?;
    }
    let start = Instant::now();
    round(&run.scratch.sum, run.output, 0);
    run.stats.decode += start.elapsed();
    if let Some(extra) = extra {
        send_result(run, extra, marks)?;
    }
    Ok(marks)
}

/// The codec of what `rank` sends in `step`.
fn sent_by<'a>(call: &Call<'a>, rank: usize, step: u32) -> MessageCodec<'a> {
    if sends_partial(rank, step, call.transport.world_size()) {
        MessageCodec::Partial(call.codec)
    } else {
        MessageCodec::Sum(call.gather_bits.codec(call.codec.features()))
    }
}

/// Replaces the sum of this rank's half by the sum of both halves.
fn step_with_partner(
    run: &mut Run<'_, '_>,
    whole: &Slices<'_>,
    step: u32,
    marks: RankSet,
) -> Result<RankSet, ExchangeError> {
    let (call, stats) = (&run.call, &mut *run.stats);
    let (rank, tokens) = (call.transport.rank(), call.tokens as usize);
    let partner = rank ^ (1 << step);
    let (mine, theirs) = (sent_by(call, rank, step), sent_by(call, partner, step));
    let body_len = mine.payload_len(tokens, call.dtype);
    let Scratch { sum, own, room } = &mut *run.scratch;
    own.fit(body_len + FRAME_TRAILER_LEN);

    let stage = |codec: &dyn Codec| Expected {
        part: step,
        ..call.expected(FrameKind::Doubling, codec.tag())
    };
    let mut outbox = Outbox::new(call);
    outbox.address(partner, stage(&*mine), own.len());
    let offer = |ready: &[u8], stats: &mut ExchangeStats| outbox.offer(partner, ready, stats);
    match &mine {
        MessageCodec::Partial(_) => {
            encode_slice(call, whole, 0, run.input, own, stats, offer)?;
            seal(own, marks);
        }
        MessageCodec::Sum(codec) => encode_sum(call, codec, sum, own, marks, stats, offer)?,
    }

    let own = &own[..];
    let mut terms = [
        Term::own(&*mine, rank, &own[..body_len]),
        Term::received(&*theirs, partner),
    ];
    terms.sort_by_key(|term| term.rank);
    let mut adding = InOrder::new(&terms, tokens, call.codec.features(), call.dtype, sum);
    let sends = [outbox.rest(partner, own)];
    let found = add_up(call, &sends, stage(&*theirs), &mut adding, room, stats, |_| {})?;
    Ok(marks.with(found))
}

fn send_partial(run: &mut Run<'_, '_>, whole: &Slices<'_>, to: usize) -> Result<RankSet, ExchangeError> {
    let (call, own) = (&run.call, &mut run.scratch.own);
    own.fit(whole.payload_len(0, call.dtype) + FRAME_TRAILER_LEN);
    let expected = call.expected(FrameKind::DoublingFold, call.codec.tag());
    let mut outbox = Outbox::new(call);
    outbox.address(to, expected, own.len());
    let marks = encode_slice(call, whole, 0, run.input, own, run.stats, |ready, stats| {
        outbox.offer(to, ready, stats)
    })?;
    send_only(&outbox, to, own, expected, run.stats)?;
    Ok(marks)
}

/// Leaves the decoded partial sum of `from` in `scratch.sum`.
fn receive_partial(run: &mut Run<'_, '_>, from: usize) -> Result<RankSet, ExchangeError> {
    let call = &run.call;
    let Scratch { sum, room, .. } = &mut *run.scratch;
    let terms = [Term::received(call.codec, from)];
    let features = call.codec.features();
    let mut adding = InOrder::new(&terms, call.tokens as usize, features, call.dtype, sum);
    let expected = call.expected(FrameKind::DoublingFold, call.codec.tag());
    add_up(call, &[], expected, &mut adding, room, run.stats, |_| {})
}

/// Raw, since one more encoding of the result would have to happen on all ranks, for the few that are beyond a power of
/// two.
fn send_result(run: &mut Run<'_, '_>, to: usize, marks: RankSet) -> Result<(), ExchangeError> {
    let (call, own) = (&run.call, &mut run.scratch.own);
    let bytes = as_bytes_mut(run.output);
    own.fit(bytes.len() + FRAME_TRAILER_LEN);
    own[..bytes.len()].copy_from_slice(bytes);
    seal(own, marks);
    let expected = call.expected(FrameKind::DoublingResult, call.codec.tag());
    let mut outbox = Outbox::new(call);
    outbox.address(to, expected, own.len());
    send_only(&outbox, to, own, expected, run.stats)
}

fn receive_result(run: &mut Run<'_, '_>, from: usize) -> Result<RankSet, ExchangeError> {
    let call = &run.call;
    let bytes = as_bytes_mut(run.output);
    let frames = [(from, bytes.len() + FRAME_TRAILER_LEN)].into_iter();
    let (mut ops, count) = recv_ops(frames, &mut run.scratch.room);
    let expected = call.expected(FrameKind::DoublingResult, call.codec.tag());
    let found = transfer(
        call,
        &[],
        &mut ops[..count],
        |_| expected,
        &mut |_, _, _| Ok(()),
        run.stats,
    )?;
    bytes.copy_from_slice(&ops[0].payload[..bytes.len()]);
    Ok(found)
}

/// What is left of a frame to the only peer of a stage, which sends nothing back.
fn send_only(
    outbox: &Outbox<'_>,
    to: usize,
    frame: &[u8],
    expected: Expected<'_>,
    stats: &mut ExchangeStats,
) -> Result<(), ExchangeError> {
    let sends = [outbox.rest(to, frame)];
    transfer(outbox.call, &sends, &mut [], |_| expected, &mut |_, _, _| Ok(()), stats)?;
    Ok(())
}
