//! Frames of one stage: a header and payload to some peers, one of each from some peers, each header checked before its
//! payload is waited for.

use std::time::{Duration, Instant};

use super::{Call, ExchangeError, ExchangeStats, HeaderField, RankSet, Site};
use crate::codec::Dtype;
use crate::transport::{Arrival, RecvOp, Rejected, SendOp, MAX_RANKS, PACE_BYTES};
use crate::wire::{FrameHeader, FrameKind, WireError, FLAG_NONFINITE, FRAME_HEADER_LEN, FRAME_TRAILER_LEN};

/// Headers on their way, by rank.
type Headers = [[u8; FRAME_HEADER_LEN]; MAX_RANKS];

/// What a header of this stage must say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub(super) site: &'a Site,
    pub(super) kind: FrameKind,
    pub(super) codec: u8,
    pub(super) dtype: Dtype,
    pub(super) sequence: u64,
    pub(super) tokens: u32,
    pub(super) part: u32,
}

impl Expected<'_> {
    /// The header this rank sends in this stage.
    fn header(&self, rank: usize, nonfinite: bool, payload_len: usize) -> [u8; FRAME_HEADER_LEN] {
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
            part: self.part,
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
            (HeaderField::Part, u64::from(self.part), u64::from(header.part)),
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

/// Frames of one stage on their way out. What the transport takes early is not sent again.
pub(super) struct Outbox<'c> {
    pub(super) call: &'c Call<'c>,
    headers: Headers,
    sent: [usize; MAX_RANKS],
    addressed: usize,
}

impl<'c> Outbox<'c> {
    pub(super) const fn new(call: &'c Call<'c>) -> Self {
        Self {
            call,
            headers: [[0; FRAME_HEADER_LEN]; MAX_RANKS],
            sent: [0; MAX_RANKS],
            addressed: 0,
        }
    }

    /// Starts a frame to `to`, with the header that `to` expects.
    pub(super) fn address(&mut self, to: usize, expected: Expected<'_>, payload_len: usize) {
        self.address_marked(to, expected, false, payload_len);
    }

    /// As [`Outbox::address`]; the header says whether this rank's input had NaN or infinity.
    fn address_marked(&mut self, to: usize, expected: Expected<'_>, nonfinite: bool, payload_len: usize) {
        self.headers[to] = expected.header(self.call.transport.rank(), nonfinite, payload_len);
        self.sent[to] = 0;
        self.addressed += 1;
    }

    /// Sends what goes out at once of the frame to `to`, of whose payload `ready` is there already. True when that was all.
    pub(super) fn offer(&mut self, to: usize, ready: &[u8], stats: &mut ExchangeStats) -> Result<bool, ExchangeError> {
        let start = Instant::now();
        let ready = match self.addressed {
            1 => ready,
            _ => &ready[..ready.len().min(PACE_BYTES - FRAME_HEADER_LEN)],
        };
        let taken = self.call.transport.offer(&self.rest(to, ready));
        let taken = taken.map_err(|source| self.call.lost(source))?;
        self.sent[to] += taken;
        stats.bytes_sent += taken as u64;
        stats.wire += start.elapsed();
        Ok(self.sent[to] == FRAME_HEADER_LEN + ready.len())
    }

    /// What is left of the frame to `to`.
    pub(super) fn rest<'a>(&'a self, to: usize, payload: &'a [u8]) -> SendOp<'a> {
        let sent = self.sent[to];
        SendOp {
            to,
            parts: [
                &self.headers[to][sent.min(FRAME_HEADER_LEN)..],
                &payload[sent.saturating_sub(FRAME_HEADER_LEN)..],
            ],
            offered: sent,
        }
    }

    /// What is left of the frames to all peers, each rank's from another start: while all are at the same turn, each link
    /// carries one frame in each direction.
    pub(super) fn rests<'a>(&'a self, payload: impl Fn(usize) -> &'a [u8]) -> [SendOp<'a>; MAX_RANKS] {
        let (rank, world_size) = self.call.place();
        let mut sends = [SendOp::new(0, [&[], &[]]); MAX_RANKS];
        for (send, peer) in sends.iter_mut().zip(peers_from(rank, world_size)) {
            *send = self.rest(peer, payload(peer));
        }
        sends
    }
}

/// Told of a payload: sender, its first bytes without the trailer, whether that is all.
pub(super) type OnPayload<'a> = dyn FnMut(usize, &[u8], bool) -> Result<(), ExchangeError> + 'a;

/// Sends and receives the frames of one stage; returns the ranks known to have NaN or infinity from them.
///
/// An error of `on_payload` ends the transport: the other ranks must not wait for a rank that gave up.
pub(super) fn transfer<'e>(
    call: &Call<'_>,
    sends: &[SendOp<'_>],
    recvs: &mut [RecvOp<'_>],
    expected: impl Fn(usize) -> Expected<'e>,
    on_payload: &mut OnPayload<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let start = Instant::now();
    let mut lens = [0_usize; MAX_RANKS];
    recvs.iter().for_each(|op| lens[op.from] = op.payload.len());
    let mut found = RankSet::default();
    let mut decoding = Duration::ZERO;
    let mut refused = None;
    let mut arrived = |arrival: Arrival<'_>| match arrival {
        Arrival::Header { from, header } => {
            if expected(from).check(from, header, lens[from])? {
                found.insert(from);
            }
            Ok(())
        }
        Arrival::Payload { from, bytes, complete } => {
            let trailer = if expected(from).kind.has_trailer() {
                FRAME_TRAILER_LEN
            } else {
                0
            };
            let body = bytes.len().min(lens[from] - trailer);
            if complete && trailer > 0 {
                found.0 |= marks(call, from, &bytes[body..])?.0;
            }
            let start = Instant::now();
            let result = on_payload(from, &bytes[..body], complete);
            decoding += start.elapsed();
            result
        }
    };
    let result = call.transport.transfer(sends, recvs, call.timeout, &mut |arrival| {
        arrived(arrival).map_err(|error: ExchangeError| {
            let reason = error.to_string();
            refused = Some(error);
            Rejected(reason)
        })
    });
    if let Some(error) = refused {
        return Err(error);
    }
    result.map_err(|source| call.lost(source))?;
    for send in sends {
        stats.bytes_sent += (send.parts[0].len() + send.parts[1].len()) as u64;
    }
    for recv in recvs.iter() {
        stats.bytes_received += (recv.header.len() + recv.payload.len()) as u64;
    }
    stats.decode += decoding;
    stats.wire += start.elapsed().saturating_sub(decoding);
    Ok(found)
}

/// The trailer of a payload: which ranks' inputs had NaN or infinity.
fn marks(call: &Call<'_>, from: usize, trailer: &[u8]) -> Result<RankSet, ExchangeError> {
    let bits = trailer
        .first_chunk()
        .map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
    let world_size = call.transport.world_size();
    if world_size < MAX_RANKS && bits >> world_size != 0 {
        return Err(ExchangeError::PeerMisbehaved {
            rank: from,
            site: call.site.clone(),
            source: WireError::UnknownTag {
                what: "set of ranks",
                got: bits,
            },
        });
    }
    Ok(RankSet(bits))
}

/// As [`transfer`], of raw payloads with every peer: `payload(peer)` to each, `recvs` filled.
#[allow(clippy::too_many_arguments, reason = "those of `transfer`")]
pub(super) fn exchange<'a>(
    call: &Call<'_>,
    kind: FrameKind,
    nonfinite: bool,
    payload: impl Fn(usize) -> &'a [u8],
    recvs: &mut [RecvOp<'_>],
    on_payload: &mut OnPayload<'_>,
    stats: &mut ExchangeStats,
) -> Result<RankSet, ExchangeError> {
    let expected = call.expected(kind, call.codec.tag());
    let (rank, world_size) = call.place();
    let mut outbox = Outbox::new(call);
    for peer in peers(rank, world_size) {
        outbox.address_marked(peer, expected, nonfinite, payload(peer).len());
    }
    let sends = outbox.rests(|peer| payload(peer));
    let mut found = transfer(call, &sends[..world_size - 1], recvs, |_| expected, on_payload, stats)?;
    if nonfinite {
        found.insert(rank);
    }
    Ok(found)
}

/// All ranks but this one, in rank order.
pub(super) fn peers(rank: usize, world_size: usize) -> impl Iterator<Item = usize> + Clone {
    (0..world_size).filter(move |&peer| peer != rank)
}

/// All ranks but this one, each rank from another start: all sending to rank 0 first would leave the others' links idle.
pub(super) fn peers_from(rank: usize, world_size: usize) -> impl Iterator<Item = usize> + Clone {
    (1..world_size).map(move |distance| (rank + distance) % world_size)
}

/// Empty operations to be filled in.
pub(super) fn no_recvs<'a>() -> [RecvOp<'a>; MAX_RANKS] {
    std::array::from_fn(|_| RecvOp {
        from: 0,
        header: &mut [],
        payload: &mut [],
    })
}
