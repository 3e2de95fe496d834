//! One round of frames: a header and payload to every peer, one of each from every peer, each header checked before
//! its payload is waited for.

use std::time::Instant;

use super::{Call, ExchangeError, ExchangeStats, HeaderField, RankSet, Site};
use crate::codec::Dtype;
use crate::transport::{Arrival, RecvOp, Rejected, SendOp, MAX_RANKS};
use crate::wire::{FrameHeader, FrameKind, FLAG_NONFINITE, FRAME_HEADER_LEN};

/// Headers on their way in, by rank.
pub(super) type Headers = [[u8; FRAME_HEADER_LEN]; MAX_RANKS];

/// What every header of this stage must say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub(super) site: &'a Site,
    pub(super) kind: FrameKind,
    pub(super) codec: u8,
    pub(super) dtype: Dtype,
    pub(super) sequence: u64,
    pub(super) tokens: u32,
}

impl Expected<'_> {
    /// The header this rank sends in this stage.
    pub(super) fn header(&self, rank: usize, nonfinite: bool, payload_len: usize) -> [u8; FRAME_HEADER_LEN] {
        FrameHeader {
            kind: self.kind,
            codec: self.codec,
            dtype: self.dtype as u8,
            flags: if nonfinite { FLAG_NONFINITE } else { 0 },
            rank: rank as u16,
            sequence: self.sequence,
            site: self.site.id,
            tokens: self.tokens,
            payload_len: payload_len as u32,
            part: 0,
        }
        .encode()
    }

    /// Compares the header of `from`; true when its input had NaN or infinity.
    fn check(&self, from: usize, bytes: &[u8], payload_len: usize) -> Result<bool, ExchangeError> {
        let header = FrameHeader::parse(bytes).map_err(|source| ExchangeError::PeerMisbehaved {
            rank: from,
            site: self.site.clone(),
            source,
        })?;
        let fields = [
            (HeaderField::Rank, from as u64, u64::from(header.rank)),
            (HeaderField::Sequence, self.sequence, header.sequence),
            (HeaderField::Site, u64::from(self.site.id), u64::from(header.site)),
            (HeaderField::Codec, u64::from(self.codec), u64::from(header.codec)),
            (HeaderField::Dtype, self.dtype as u64, u64::from(header.dtype)),
            (HeaderField::Tokens, u64::from(self.tokens), u64::from(header.tokens)),
            (HeaderField::Kind, self.kind as u64, header.kind as u64),
            (
                HeaderField::PayloadLen,
                payload_len as u64,
                u64::from(header.payload_len),
            ),
            (HeaderField::Part, 0, u64::from(header.part)),
        ];
        match fields.into_iter().find(|(_, expected, got)| expected != got) {
            Some((field, expected, got)) => Err(ExchangeError::Mismatch {
                rank: from,
                site: self.site.clone(),
                field,
                expected,
                got,
            }),
            None => Ok(header.is_nonfinite()),
        }
    }
}

/// Sends `payload(peer)` to every peer and fills `recvs`; returns the peers whose input had NaN or infinity.
///
/// `recvs[i]` is from the i-th peer in rank order; `stats` gets the bytes and the time.
pub(super) fn exchange<'a>(
    call: &Call<'_>,
    kind: FrameKind,
    nonfinite: bool,
    payload: impl Fn(usize) -> &'a [u8],
    recvs: &mut [RecvOp<'_>],
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let start = Instant::now();
    let expected = call.expected(kind);
    let (rank, world_size) = (call.transport.rank(), call.transport.world_size());
    let headers: Headers = std::array::from_fn(|peer| {
        if peer < world_size && peer != rank {
            expected.header(rank, nonfinite, payload(peer).len())
        } else {
            [0; FRAME_HEADER_LEN]
        }
    });
    let mut sends = [SendOp {
        to: 0,
        parts: [&[], &[]],
    }; MAX_RANKS];
    for (send, peer) in sends.iter_mut().zip(peers(rank, world_size)) {
        *send = SendOp {
            to: peer,
            parts: [&headers[peer], payload(peer)],
        };
    }
    let mut lens = [0_usize; MAX_RANKS];
    recvs.iter().for_each(|op| lens[op.from] = op.payload.len());
    let mut found = RankSet::default();
    let mut refused = None;
    let result = call
        .transport
        .transfer(&sends[..world_size - 1], recvs, call.timeout, &mut |arrival| {
            let Arrival::Header { from, header } = arrival else {
                return Ok(());
            };
            match expected.check(from, header, lens[from]) {
                Ok(nonfinite) => {
                    if nonfinite {
                        found.insert(from);
                    }
                    Ok(())
                }
                Err(error) => {
                    let reason = error.to_string();
                    refused = Some(error);
                    Err(Rejected(reason))
                }
            }
        });
    if let Some(error) = refused {
        return Err(error);
    }
    result.map_err(|source| ExchangeError::Transport {
        site: call.site.clone(),
        source,
    })?;
    for peer in peers(rank, world_size) {
        stats.bytes_sent += (FRAME_HEADER_LEN + payload(peer).len()) as u64;
        stats.bytes_received += (FRAME_HEADER_LEN + lens[peer]) as u64;
    }
    stats.wire += start.elapsed();
    if nonfinite {
        found.insert(rank);
    }
    Ok(found)
}

/// All ranks but this one, in rank order.
pub(super) fn peers(rank: usize, world_size: usize) -> impl Iterator<Item = usize> {
    (0..world_size).filter(move |&peer| peer != rank)
}

/// One empty operation per rank, to be filled in.
pub(super) fn no_recvs<'a>() -> [RecvOp<'a>; MAX_RANKS] {
    std::array::from_fn(|_| RecvOp {
        from: 0,
        header: &mut [],
        payload: &mut [],
    })
}
