//! All-gather of payloads (arXiv 2411.07942, section 3): every rank sends its encoded partial sum to every other, and
//! adds all N of them, its own included.

use std::time::Instant;

use super::accumulate::round;
use super::frames::exchange;
use super::scratch::{received_from, recv_ops, Scratch};
use super::{Call, ExchangeError, ExchangeStats, RankSet};
use crate::codec::{Values, ValuesMut};
use crate::wire::FrameKind;

pub(super) fn run(
    call: &Call<'_>,
    scratch: &mut Scratch,
    input: Values<'_>,
    output: &mut ValuesMut<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let (rank, world_size) = (call.transport.rank(), call.transport.world_size());
    let payload_len = call.codec.payload_len(call.tokens as usize, call.dtype);
    scratch.prepare(world_size, input.len(), payload_len, payload_len);
    let Scratch {
        sum,
        own,
        received,
        headers,
    } = scratch;

    let start = Instant::now();
    let seen = call.codec.encode(rank, input, own);
    stats.clipped += seen.clipped;
    stats.nonfinite += seen.nonfinite;
    stats.encode += start.elapsed();

    let mut ops = recv_ops(rank, world_size, headers, received, payload_len);
    let recvs = &mut ops[..world_size - 1];
    let nonfinite = exchange(call, FrameKind::OneShot, seen.nonfinite > 0, |_| own, recvs, stats)?;
    if !nonfinite.is_empty() {
        // The caller fails or repeats the exchange; either way this sum is of no use.
        return Ok(nonfinite);
    }

    let start = Instant::now();
    for from in 0..world_size {
        let payload = if from == rank {
            &own[..]
        } else {
            received_from(received, rank, from, payload_len)
        };
        call.codec
            .decode_accumulate(from, payload, call.dtype, sum)
            .map_err(|source| {
                call.abort(
                    from,
                    ExchangeError::Payload {
                        rank: from,
                        site: call.site.clone(),
                        source,
                    },
                )
            })?;
    }
    round(sum, output, 0);
    stats.decode += start.elapsed();
    Ok(nonfinite)
}
