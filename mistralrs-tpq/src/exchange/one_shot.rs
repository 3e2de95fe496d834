//! All-gather of payloads (arXiv 2411.07942, section 3): every rank sends its encoded partial sum to every other, and
//! adds all N of them, its own included.

use std::time::Instant;

use super::accumulate::round;
use super::frames::{no_sends, peers, peers_from, transfer, Outbox};
use super::in_order::{InOrder, Term};
use super::scratch::{received_from, recv_ops, Scratch};
use super::slices::Slices;
use super::stream::encode_slice;
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
    let (rank, world_size) = (call.transport.rank(), call.transport.world_size());
    let whole = Slices::whole(call.codec, call.tokens as usize);
    let body_len = whole.payload_len(0, call.dtype);
    let frame_len = body_len + FRAME_TRAILER_LEN;
    scratch.prepare(world_size, input.len(), frame_len, (world_size - 1) * frame_len);
    let Scratch {
        sum,
        own,
        received,
        headers,
        ..
    } = scratch;

    let expected = call.expected(FrameKind::OneShot, call.codec.tag());
    let mut outbox = Outbox::new();
    for peer in peers(rank, world_size) {
        outbox.address(peer, expected.header(rank, false, frame_len));
    }
    let marks = encode_slice(call, &whole, 0, input, own, stats, |ready, stats| {
        peers_from(rank, world_size).try_for_each(|peer| outbox.offer(call, peer, ready, stats))
    })?;

    let own = &own[..];
    let terms: [Term<'_>; MAX_RANKS] = std::array::from_fn(|from| Term {
        rank: from,
        codec: call.codec,
        own: (from == rank).then_some(&own[..body_len]),
    });
    let features = call.codec.features();
    let mut adding = InOrder::new(&terms[..world_size], call.tokens as usize, features, call.dtype, sum);
    let mut rounded = 0;
    let (mut ops, count) = recv_ops(peers(rank, world_size), headers, received, |_| frame_len);
    let mut sends = no_sends();
    for (send, peer) in sends.iter_mut().zip(peers(rank, world_size)) {
        *send = outbox.rest(peer, own);
    }
    let mut on_payload = |from: usize, bytes: &[u8], complete: bool| {
        adding
            .arrived(from, bytes, complete)
            .map_err(|bad| call.bad_payload(bad))?;
        round_rows(&adding, features, &mut rounded, output);
        Ok(())
    };
    let sends = &sends[..world_size - 1];
    let found = transfer(call, sends, &mut ops[..count], |_| expected, &mut on_payload, stats)?;
    let nonfinite = found.with(marks);
    if !nonfinite.is_empty() {
        // The caller fails or repeats the exchange; either way this sum is of no use.
        return Ok(nonfinite);
    }

    let start = Instant::now();
    let rest = adding.finish(|from| &received_from(&ops[..count], from)[..body_len]);
    rest.map_err(|bad| call.give_up(bad))?;
    round_rows(&adding, features, &mut rounded, output);
    stats.decode += start.elapsed();
    Ok(nonfinite)
}

/// Rounds what has been finished since the last call, while it is in the cache.
fn round_rows(adding: &InOrder<'_>, features: usize, rounded: &mut usize, output: &mut ValuesMut<'_>) {
    let (start, end) = (*rounded * features, adding.done() * features);
    if end > start {
        round(&adding.sum()[start..end], output, start);
        *rounded = adding.done();
    }
}
