//! Buffers that outlive an exchange, so that the next one of the same shape allocates nothing.

use super::frames::no_recvs;
use crate::transport::{RecvOp, MAX_RANKS};
use crate::wire::FRAME_HEADER_LEN;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// f32 sums.
    pub(super) sum: Vec<f32>,
    /// f32 values of a few rows.
    pub(super) block: Vec<f32>,
    /// This rank's payloads.
    pub(super) own: Vec<u8>,
    /// The peers' payloads, one after the other in the order of their operations.
    pub(super) received: Vec<u8>,
    pub(super) headers: Vec<u8>,
}

impl Scratch {
    /// Buffers of these lengths, with whatever they held: clearing the sums of a prefill takes as long as decoding it.
    pub(super) fn prepare(&mut self, world_size: usize, elements: usize, own_len: usize, received_len: usize) {
        self.sum.resize(elements, 0.0);
        self.own.resize(own_len, 0);
        self.received.resize(received_len, 0);
        self.headers.resize(world_size * FRAME_HEADER_LEN, 0);
    }
}

/// Operations that receive `len(peer)` bytes from each of `peers` into `received`, and how many there are.
pub(super) fn recv_ops<'a>(
    peers: impl Iterator<Item = usize>,
    headers: &'a mut [u8],
    received: &'a mut [u8],
    len: impl Fn(usize) -> usize,
) -> ([RecvOp<'a>; MAX_RANKS], usize) {
    let mut ops = no_recvs();
    let mut count = 0;
    let mut rest = received;
    let headers = headers.chunks_exact_mut(FRAME_HEADER_LEN);
    for ((op, peer), header) in ops.iter_mut().zip(peers).zip(headers) {
        let (payload, tail) = std::mem::take(&mut rest).split_at_mut(len(peer));
        rest = tail;
        *op = RecvOp {
            from: peer,
            header,
            payload,
        };
        count += 1;
    }
    (ops, count)
}

/// What came from `peer`; empty when nothing was asked of it.
pub(super) fn received_from<'a>(ops: &'a [RecvOp<'_>], peer: usize) -> &'a [u8] {
    ops.iter().find(|op| op.from == peer).map_or(&[], |op| &*op.payload)
}
