//! Recursive doubling: in step k partners at distance 2^k exchange the sums of 2^k ranks each, so log2 N steps do where a
//! one-shot exchange sends N-1 messages. Both partners add the *encoded* sums, the lower rank's first, and end with the
//! same bits; by induction all ranks do.
//!
//! Ranks beyond the largest power of two P hand their partial sum to rank r - P first, and get the result at the end.

use std::time::Instant;

use super::accumulate::{as_bytes_mut, round};
use super::frames::{transfer, Expected, OnPayload, Outbox};
use super::in_order::{InOrder, Term};
use super::scratch::{recv_ops, Scratch};
use super::slices::Slices;
use super::stream::{encode_slice, encode_sum, seal};
use super::sum_codec::SumCodec;
use super::{Call, ExchangeError, ExchangeStats, RankSet};
use crate::codec::{Codec, Values, ValuesMut};
use crate::transport::{RecvOp, SendOp};
use crate::wire::{FrameKind, FRAME_HEADER_LEN, FRAME_TRAILER_LEN};

/// The largest power of two up to `world_size`.
pub(super) const fn core_size(world_size: usize) -> usize {
    1 << world_size.ilog2()
}

/// Whether what `rank` sends in `step` is a partial sum as the engine made it, and not a sum of several.
pub(super) const fn sends_partial(rank: usize, step: u32, world_size: usize) -> bool {
    step == 0 && rank + core_size(world_size) >= world_size
}

pub(super) fn run(
    call: &Call<'_>,
    scratch: &mut Scratch,
    input: Values<'_>,
    output: &mut ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let (rank, world_size) = (call.transport.rank(), call.transport.world_size());
    let core = core_size(world_size);
    scratch.headers.resize(FRAME_HEADER_LEN, 0);
    scratch.sum.resize(input.len(), 0.0);
    let whole = Slices::whole(call.codec, call.tokens as usize);
    if rank >= core {
        let marks = send_partial(call, &whole, rank - core, scratch, input, stats)?;
        return Ok(receive_result(call, rank - core, scratch, output, stats)?.with(marks));
    }
    let extra = (rank + core < world_size).then_some(rank + core);
    let mut marks = RankSet::default();
    if super::accumulate::count_nonfinite(input) > 0 {
        marks.insert(rank);
    }
    if let Some(extra) = extra {
        marks = marks.with(receive_partial(call, extra, scratch, stats)?);
        whole.add(0, input, &mut scratch.sum);
        stats.nonfinite += super::accumulate::count_nonfinite(input);
    }
    for step in 0..core.ilog2() {
        marks = step_with_partner(call, &whole, step, marks, scratch, input, stats)?;
    }
    let start = Instant::now();
    round(&scratch.sum, output, 0);
    stats.decode += start.elapsed();
    if let Some(extra) = extra {
        send_result(call, extra, marks, scratch, output, stats)?;
    }
    Ok(marks)
}

/// The codec of a message, chosen by what is in it.
enum MessageCodec<'a> {
    Partial(&'a dyn Codec),
    Sum(SumCodec),
}

impl<'a> MessageCodec<'a> {
    fn of(call: &Call<'a>, rank: usize, step: u32) -> Self {
        if sends_partial(rank, step, call.transport.world_size()) {
            Self::Partial(call.codec)
        } else {
            Self::Sum(call.gather_bits.codec(call.codec.features()))
        }
    }

    fn get(&self) -> &dyn Codec {
        match self {
            Self::Partial(codec) => *codec,
            Self::Sum(codec) => &**codec,
        }
    }
}

/// Replaces the sum of this rank's half by the sum of both halves.
fn step_with_partner(
    call: &Call<'_>,
    whole: &Slices<'_>,
    step: u32,
    marks: RankSet,
    scratch: &mut Scratch,
    input: Values<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let rank = call.transport.rank();
    let partner = rank ^ (1 << step);
    let (mine, theirs) = (
        MessageCodec::of(call, rank, step),
        MessageCodec::of(call, partner, step),
    );
    let tokens = call.tokens as usize;
    let body_len = mine.get().payload_len(tokens, call.dtype);
    let their_len = theirs.get().payload_len(tokens, call.dtype);
    let Scratch {
        sum,
        own,
        received,
        headers,
        ..
    } = scratch;
    own.resize(body_len + FRAME_TRAILER_LEN, 0);
    received.resize(their_len + FRAME_TRAILER_LEN, 0);

    let stage = |codec: &dyn Codec| Expected {
        part: step,
        ..call.expected(FrameKind::Doubling, codec.tag())
    };
    let mut outbox = Outbox::new();
    outbox.address(partner, stage(mine.get()).header(rank, false, own.len()));
    let offer = |ready: &[u8], stats: &mut ExchangeStats| outbox.offer(call, partner, ready, stats);
    match &mine {
        MessageCodec::Partial(_) => {
            encode_slice(call, whole, 0, input, own, stats, offer)?;
            seal(own, marks);
        }
        MessageCodec::Sum(codec) => encode_sum(call, &**codec, sum, own, marks, stats, offer)?,
    }

    let own = &own[..];
    let own_term = Term {
        rank,
        codec: mine.get(),
        own: Some(&own[..body_len]),
    };
    let their_term = Term {
        rank: partner,
        codec: theirs.get(),
        own: None,
    };
    let terms = if rank < partner {
        [own_term, their_term]
    } else {
        [their_term, own_term]
    };
    let mut adding = InOrder::new(&terms, tokens, call.codec.features(), call.dtype, sum);
    let (mut ops, count) = recv_ops([partner].into_iter(), headers, received, |_| {
        their_len + FRAME_TRAILER_LEN
    });
    let on_payload: &mut OnPayload<'_> = &mut |from, bytes, complete| {
        adding
            .arrived(from, bytes, complete)
            .map_err(|bad| call.bad_payload(bad))
    };
    let sends = [outbox.rest(partner, own)];
    let expected = stage(theirs.get());
    let found = transfer(call, &sends, &mut ops[..count], |_| expected, on_payload, stats)?;
    let start = Instant::now();
    let rest = adding.finish(|_| &ops[0].payload[..their_len]);
    rest.map_err(|bad| call.give_up(bad))?;
    stats.decode += start.elapsed();
    Ok(marks.with(found))
}

fn send_partial(
    call: &Call<'_>,
    whole: &Slices<'_>,
    to: usize,
    scratch: &mut Scratch,
    input: Values<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let own = &mut scratch.own;
    own.resize(whole.payload_len(0, call.dtype) + FRAME_TRAILER_LEN, 0);
    let expected = call.expected(FrameKind::DoublingFold, call.codec.tag());
    let mut outbox = Outbox::new();
    outbox.address(to, expected.header(call.transport.rank(), false, own.len()));
    let marks = encode_slice(call, whole, 0, input, own, stats, |ready, stats| {
        outbox.offer(call, to, ready, stats)
    })?;
    let sends = [outbox.rest(to, own)];
    transfer(call, &sends, &mut [], |_| expected, &mut |_, _, _| Ok(()), stats)?;
    Ok(marks)
}

/// Leaves the decoded partial sum of `from` in `scratch.sum`.
fn receive_partial(
    call: &Call<'_>,
    from: usize,
    scratch: &mut Scratch,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let body_len = call.codec.payload_len(call.tokens as usize, call.dtype);
    let Scratch {
        sum, received, headers, ..
    } = scratch;
    received.resize(body_len + FRAME_TRAILER_LEN, 0);
    let terms = [Term {
        rank: from,
        codec: call.codec,
        own: None,
    }];
    let features = call.codec.features();
    let mut adding = InOrder::new(&terms, call.tokens as usize, features, call.dtype, sum);
    let (mut ops, count) = recv_ops([from].into_iter(), headers, received, |_| body_len + FRAME_TRAILER_LEN);
    let on_payload: &mut OnPayload<'_> = &mut |from, bytes, complete| {
        adding
            .arrived(from, bytes, complete)
            .map_err(|bad| call.bad_payload(bad))
    };
    let expected = call.expected(FrameKind::DoublingFold, call.codec.tag());
    let found = transfer(call, &[], &mut ops[..count], |_| expected, on_payload, stats)?;
    let rest = adding.finish(|_| &ops[0].payload[..body_len]);
    rest.map_err(|bad| call.give_up(bad))?;
    Ok(found)
}

/// Raw, since one more encoding of the result would have to happen on all ranks, for the few that are beyond a power of
/// two.
fn send_result(
    call: &Call<'_>,
    to: usize,
    marks: RankSet,
    scratch: &mut Scratch,
    output: &mut ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<(), ExchangeError> {
    let own = &mut scratch.own;
    let bytes = as_bytes_mut(output);
    own.resize(bytes.len() + FRAME_TRAILER_LEN, 0);
    own[..bytes.len()].copy_from_slice(bytes);
    seal(own, marks);
    let expected = call.expected(FrameKind::DoublingResult, call.codec.tag());
    let mut outbox = Outbox::new();
    outbox.address(to, expected.header(call.transport.rank(), false, own.len()));
    let sends: [SendOp<'_>; 1] = [outbox.rest(to, own)];
    transfer(call, &sends, &mut [], |_| expected, &mut |_, _, _| Ok(()), stats).map(|_| ())
}

fn receive_result(
    call: &Call<'_>,
    from: usize,
    scratch: &mut Scratch,
    output: &mut ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let bytes = as_bytes_mut(output);
    let Scratch { received, headers, .. } = scratch;
    received.resize(bytes.len() + FRAME_TRAILER_LEN, 0);
    let mut ops = [RecvOp {
        from,
        header: &mut headers[..FRAME_HEADER_LEN],
        payload: received,
    }];
    let expected = call.expected(FrameKind::DoublingResult, call.codec.tag());
    let found = transfer(call, &[], &mut ops, |_| expected, &mut |_, _, _| Ok(()), stats)?;
    bytes.copy_from_slice(&ops[0].payload[..bytes.len()]);
    Ok(found)
}
