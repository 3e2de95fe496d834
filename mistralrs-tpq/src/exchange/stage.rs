//! The two stages that algorithms are made of: adding up what the peers send, and putting finished slices into the output.

use std::time::Instant;

use super::frames::{transfer, Expected};
use super::in_order::{BadPayload, Delivery, InOrder};
use super::scratch::{received_from, recv_ops, Room};
use super::slices::Slices;
use super::{Call, ExchangeError, ExchangeStats, RankSet};
use crate::codec::{Codec, Dynamic};
use crate::transport::{SendOp, MAX_RANKS};
use crate::wire::{FrameKind, FRAME_TRAILER_LEN};

/// Sends `sends`, receives the payloads of all terms of `adding` that are not this rank's own, and adds up all terms.
/// `on_rows` hears of finished rows now and then, and at the end. Returns the ranks marked by the peers.
pub(super) fn add_up(
    call: &Call<'_>,
    sends: &[SendOp<'_>],
    expected: Expected<'_>,
    adding: &mut InOrder<'_>,
    room: &mut Room,
    stats: &mut ExchangeStats,
    mut on_rows: impl FnMut(&mut InOrder<'_>),
) -> Result<RankSet, ExchangeError> {
    let frames = adding.incoming().map(|(from, len)| (from, len + FRAME_TRAILER_LEN));
    let (mut ops, count) = recv_ops(frames, room);
    let mut on_payload = |from: usize, bytes: &[u8], complete: bool| {
        let decoded = adding.arrived(from, bytes, complete);
        decoded.map_err(|bad| call.bad_payload(bad))?;
        on_rows(adding);
        Ok(())
    };
    let found = transfer(call, sends, &mut ops[..count], |_| expected, &mut on_payload, stats)?;

    let start = Instant::now();
    let rest = adding.finish(|from| {
        let frame = received_from(&ops[..count], from);
        &frame[..frame.len() - FRAME_TRAILER_LEN]
    });
    rest.map_err(|bad| call.give_up(bad))?;
    on_rows(adding);
    stats.decode += start.elapsed();
    Ok(found)
}

/// How finished slices travel to all ranks: encoded once more, with `gather_bits`.
pub(super) struct Gather<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) slices: &'a Slices<'a>,
    pub(super) kind: FrameKind,
    pub(super) part: u32,
}

impl Gather<'_> {
    pub(super) fn codec(&self, slice: usize) -> Dynamic {
        self.call.gather_bits.codec(self.slices.width(slice))
    }

    fn body_len(&self, slice: usize) -> usize {
        self.codec(slice).payload_len(self.slices.rows(slice), self.call.dtype)
    }

    pub(super) fn frame_len(&self, slice: usize) -> usize {
        self.body_len(slice) + FRAME_TRAILER_LEN
    }

    pub(super) fn expected(&self, slice: usize) -> Expected<'_> {
        Expected {
            part: self.part,
            ..self.call.expected(self.kind, self.codec(slice).tag())
        }
    }

    /// Puts this rank's own slice into the output, from the frame that it sends.
    pub(super) fn place_own(
        &self,
        slice: usize,
        frame: &[u8],
        delivery: &mut Delivery<'_, '_>,
        stats: &mut ExchangeStats,
    ) -> Result<(), ExchangeError> {
        let start = Instant::now();
        let rank = self.call.transport.rank();
        let placed = self.place(slice, rank, &frame[..self.body_len(slice)], true, delivery);
        placed.map_err(|bad| self.call.give_up(bad))?;
        stats.decode += start.elapsed();
        Ok(())
    }

    /// Sends `sends`, and puts `slice` from `from` into the output, for each pair of `incoming`.
    pub(super) fn deliver(
        &self,
        sends: &[SendOp<'_>],
        incoming: impl Iterator<Item = (usize, usize)> + Clone,
        delivery: &mut Delivery<'_, '_>,
        room: &mut Room,
        stats: &mut ExchangeStats,
    ) -> Result<RankSet, ExchangeError> {
        let mut slice_from = [0; MAX_RANKS];
        for (from, slice) in incoming.clone() {
            slice_from[from] = slice;
        }
        let frames = incoming.map(|(from, slice)| (from, self.frame_len(slice)));
        let (mut ops, count) = recv_ops(frames, room);
        let mut on_payload = |from: usize, bytes: &[u8], complete: bool| {
            let placed = self.place(slice_from[from], from, bytes, complete, delivery);
            placed.map_err(|bad| self.call.bad_payload(bad))
        };
        let expected = |from: usize| self.expected(slice_from[from]);
        transfer(self.call, sends, &mut ops[..count], expected, &mut on_payload, stats)
    }

    fn place(
        &self,
        slice: usize,
        owner: usize,
        bytes: &[u8],
        complete: bool,
        delivery: &mut Delivery<'_, '_>,
    ) -> Result<(), BadPayload> {
        delivery.arrived(slice, owner, &self.codec(slice), bytes, complete)
    }
}
