//! Buffers that outlive an exchange, so that the next one of the same shape allocates nothing.

use super::frames::{no_recvs, peers};
use crate::transport::{RecvOp, MAX_RANKS};
use crate::wire::FRAME_HEADER_LEN;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// f32 sums.
    pub(super) sum: Vec<f32>,
    /// This rank's payload.
    pub(super) own: Vec<u8>,
    /// The peers' payloads, one after the other in rank order.
    pub(super) received: Vec<u8>,
    pub(super) headers: Vec<u8>,
}

impl Scratch {
    /// Buffers for sums of `elements` and payloads of `payload_len` bytes; the sums are zero.
    pub(super) fn prepare(&mut self, world_size: usize, elements: usize, own_len: usize, payload_len: usize) {
        self.sum.clear();
        self.sum.resize(elements, 0.0);
        self.own.resize(own_len, 0);
        self.received.resize((world_size - 1) * payload_len, 0);
        self.headers.resize(world_size * FRAME_HEADER_LEN, 0);
    }
}

/// Operations that receive `payload_len` bytes from every peer into `received`; the first `world_size - 1` count.
pub(super) fn recv_ops<'a>(
    rank: usize,
    world_size: usize,
    headers: &'a mut [u8],
    received: &'a mut [u8],
    payload_len: usize,
) -> [RecvOp<'a>; MAX_RANKS] {
    let mut ops = no_recvs();
    let mut rest = received;
    let headers = headers.chunks_exact_mut(FRAME_HEADER_LEN);
    for ((op, peer), header) in ops.iter_mut().zip(peers(rank, world_size)).zip(headers) {
        let (payload, tail) = std::mem::take(&mut rest).split_at_mut(payload_len);
        rest = tail;
        *op = RecvOp {
            from: peer,
            header,
            payload,
        };
    }
    ops
}

/// Where the payload of `peer` lies in `received`.
pub(super) fn received_from(received: &[u8], rank: usize, peer: usize, payload_len: usize) -> &[u8] {
    let index = if peer < rank { peer } else { peer - 1 };
    &received[index * payload_len..(index + 1) * payload_len]
}
