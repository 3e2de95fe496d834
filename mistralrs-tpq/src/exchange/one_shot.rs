//! All-gather of payloads (arXiv 2411.07942, section 3): every rank sends its encoded partial sum to every other, and
//! adds all N of them, its own included.

use super::frames::{peers, Outbox};
use super::in_order::{InOrder, Term};
use super::scratch::Scratch;
use super::slices::Slices;
use super::stage::add_up;
use super::stream::encode_slice;
use super::{ExchangeError, RankSet, Run};
use crate::wire::{FrameKind, FRAME_TRAILER_LEN};

pub(super) fn run(run: &mut Run<'_, '_>) -> Result<RankSet, ExchangeError> {
    let (call, input) = (&run.call, run.input);
    let (rank, world_size) = call.place();
    let whole = Slices::whole(call.codec, call.tokens as usize);
    let body_len = whole.payload_len(0, call.dtype);
    run.scratch.prepare(input.len(), body_len + FRAME_TRAILER_LEN);
    let Scratch { sum, own, room } = &mut *run.scratch;

    let expected = call.expected(FrameKind::OneShot, call.codec.tag());
    let mut outbox = Outbox::new(call);
    for peer in peers(rank, world_size) {
        outbox.address(peer, expected, own.len());
    }
    let marks = encode_slice(call, &whole, 0, input, own, run.stats, |ready, stats| {
        outbox.offer((rank + 1) % world_size, ready, stats)
    })?;

    let own = &own[..];
    let terms = Term::of_all(call.codec, rank, &own[..body_len]);
    let features = call.codec.features();
    let mut adding = InOrder::new(&terms[..world_size], call.tokens as usize, features, call.dtype, sum);
    let sends = outbox.rests(|_| own);
    let output = &mut *run.output;
    let found = add_up(
        call,
        &sends[..world_size - 1],
        expected,
        &mut adding,
        room,
        run.stats,
        |adding| {
            adding.round_to(output);
        },
    )?;
    Ok(found.with(marks))
}
