//! Buffers that outlive an exchange, so that the next one of the same shape allocates nothing.

use std::ops::{Deref, DerefMut};

use super::frames::no_recvs;
use crate::transport::{RecvOp, MAX_RANKS};
use crate::wire::FRAME_HEADER_LEN;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// f32 sums.
    pub(super) sum: Buffer<f32>,
    /// This rank's payloads.
    pub(super) own: Buffer<u8>,
    pub(super) room: Room,
}

/// Where the peers' frames go.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Payloads, one after the other in the order of their operations.
    pub(super) received: Buffer<u8>,
    headers: Vec<u8>,
}

impl Scratch {
    /// Buffers of these lengths, with whatever they held: clearing the sums of a prefill takes as long as decoding it.
    pub(super) fn prepare(&mut self, elements: usize, own_len: usize) {
        self.sum.fit(elements);
        self.own.fit(own_len);
    }
}

/// As many elements as asked for last, with room for exactly the longest message seen: a vector that grows by itself takes up to
/// twice as much, and has its old and its new room at once, and one that shrinks for a short message is cleared for the next.
#[derive(Debug, Default)]
pub(super) struct Buffer<T> {
    all: Vec<T>,
    len: usize,
}

impl<T: Clone + Default> Buffer<T> {
    /// What they hold is what an earlier message left, or nothing when this is the longest.
    pub(super) fn fit(&mut self, len: usize) {
        if self.all.len() < len {
            self.all = Vec::new();
            self.all = vec![T::default(); len];
        }
        self.len = len;
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.all[..self.len]
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.all[..self.len]
    }
}

/// Operations that receive a payload of some length from each of `frames`, given as (rank, bytes), and how many.
pub(super) fn recv_ops(
    frames: impl Iterator<Item = (usize, usize)> + Clone,
    room: &mut Room,
) -> ([RecvOp<'_>; MAX_RANKS], usize) {
    room.received.fit(frames.clone().map(|(_, len)| len).sum());
    room.headers.resize(frames.clone().count() * FRAME_HEADER_LEN, 0);
    let mut ops = no_recvs();
    let mut count = 0;
    let mut rest = &mut room.received[..];
    let headers = room.headers.chunks_exact_mut(FRAME_HEADER_LEN);
    for ((op, (from, len)), header) in ops.iter_mut().zip(frames).zip(headers) {
        let (payload, tail) = std::mem::take(&mut rest).split_at_mut(len);
        rest = tail;
        *op = RecvOp { from, header, payload };
        count += 1;
    }
    (ops, count)
}

/// Operations that receive into `payloads` themselves, in place.
pub(super) fn recv_ops_into<'a>(
    payloads: impl Iterator<Item = (usize, &'a mut [u8])>,
    room: &'a mut Room,
) -> ([RecvOp<'a>; MAX_RANKS], usize) {
    room.headers.resize(MAX_RANKS * FRAME_HEADER_LEN, 0);
    let mut ops = no_recvs();
    let mut count = 0;
    let headers = room.headers.chunks_exact_mut(FRAME_HEADER_LEN);
    for ((op, (from, payload)), header) in ops.iter_mut().zip(payloads).zip(headers) {
        *op = RecvOp { from, header, payload };
        count += 1;
    }
    (ops, count)
}

/// What came from `peer`; empty when nothing was asked of it.
pub(super) fn received_from<'a>(ops: &'a [RecvOp<'_>], peer: usize) -> &'a [u8] {
    ops.iter().find(|op| op.from == peer).map_or(&[], |op| &*op.payload)
}
