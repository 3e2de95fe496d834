//! Encoding a frame while what is already encoded goes out.

use std::time::Instant;

use super::slices::Slices;
use super::{Call, ExchangeError, ExchangeStats, RankSet};
use crate::codec::{Codec, EncodeStats, Values};
use crate::transport::MAX_RANKS;
use crate::wire::FRAME_TRAILER_LEN;

/// Payloads from here on are offered to the transport piece by piece. A smaller one is encoded in less time than the
/// extra system calls take.
const STREAM_BYTES: usize = 128 << 10;

/// Bytes of a message of `len` bytes that leave before it is the next peer's turn: all, or 64 KiB of a long message.
///
/// A receiver adds up in rank order, so with whole messages it gets on only with the last of them: four ranks and 1.1 MB at 1 Gbit/s
/// took 1.26 to 1.33 times the wire's time, in turns 1.12 to 1.17. But TCP shares a link unevenly between several connections:
/// eight ranks and 137 kB at 100 Mbit/s took 1.01 to 1.13 times the wire's time, in turns 1.17 to 1.37.
pub(super) const fn turn_len(len: usize) -> usize {
    const LONG: usize = 512 << 10;
    if len < LONG {
        usize::MAX
    } else {
        64 << 10
    }
}

/// Encodes slice `index` of this rank's input and its trailer into `frame`, and calls `offer` with the bytes that are
/// final, now and then. Returns this rank when the slice has NaN or infinity.
pub(super) fn encode_slice(
    call: &Call<'_>,
    slices: &Slices<'_>,
    index: usize,
    input: Values<'_>,
    frame: &mut [u8],
    stats: &mut ExchangeStats,
    offer: impl FnMut(&[u8], &mut ExchangeStats) -> Result<bool, ExchangeError>,
) -> Result<RankSet, ExchangeError> {
    let rank = call.transport.rank();
    let row_len = slices.codec(index).payload_len(1, call.dtype);
    let encode = |rows, payload: &mut [u8]| slices.encode(index, rows, rank, input, payload);
    let seen = stream(slices.rows(index), row_len, frame, stats, encode, offer)?;
    let marks = marked(rank, seen, stats);
    seal(frame, marks);
    Ok(marks)
}

/// As [`encode_slice`], of the slices of all `owners` into `frames[owner]`. They are offered as the transport sends them: long
/// ones in turns, see [`turn_len`], the others one after the other, each once all of the one before went out. Returns this
/// rank when any slice has NaN or infinity.
pub(super) fn encode_slices(
    call: &Call<'_>,
    slices: &Slices<'_>,
    owners: impl Iterator<Item = usize> + Clone,
    input: Values<'_>,
    frames: &mut [&mut [u8]],
    stats: &mut ExchangeStats,
    mut offer: impl FnMut(usize, &[u8], &mut ExchangeStats) -> Result<bool, ExchangeError>,
) -> Result<RankSet, ExchangeError> {
    let rank = call.transport.rank();
    let mut pieces = [Pieces::default(); MAX_RANKS];
    for owner in owners.clone() {
        let row_len = slices.codec(owner).payload_len(1, call.dtype);
        pieces[owner] = Pieces::new(slices.rows(owner), row_len, turn_len(frames[owner].len()));
    }
    let in_turns = |frame: &[u8]| turn_len(frame.len()) < frame.len();
    let mut whole = owners.clone().peekable();
    let mut all = RankSet::default();
    let mut open = true;
    while open {
        open = false;
        for owner in owners.clone() {
            let (piece, frame) = (&mut pieces[owner], &mut *frames[owner]);
            let encode = |rows, payload: &mut [u8]| slices.encode(owner, rows, rank, input, payload);
            if piece.sealed {
                continue;
            }
            piece.encode(frame, stats, encode);
            if piece.row >= piece.rows {
                let marks = marked(rank, piece.seen, stats);
                all = all.with(marks);
                seal(frame, marks);
                piece.sealed = true;
            }
            open |= !piece.sealed;
            if in_turns(frame) {
                offer(owner, piece.ready(frame), stats)?;
            }
            while let Some(&next) = whole.peek() {
                let frame = &*frames[next];
                let gone = in_turns(frame) || pieces[next].sealed && offer(next, frame, stats)?;
                if !gone {
                    break;
                }
                whole.next();
            }
        }
    }
    Ok(all)
}

/// As [`encode_slice`], of sums: whole rows of `codec`.
pub(super) fn encode_sum(
    call: &Call<'_>,
    codec: &dyn Codec,
    sum: &[f32],
    frame: &mut [u8],
    marks: RankSet,
    stats: &mut ExchangeStats,
    offer: impl FnMut(&[u8], &mut ExchangeStats) -> Result<bool, ExchangeError>,
) -> Result<(), ExchangeError> {
    let (rank, width) = (call.transport.rank(), codec.features());
    let rows = sum.len().checked_div(width).unwrap_or(0);
    let encode = |(start, end): (usize, usize), payload: &mut [u8]| {
        codec.encode(rank, Values::F32(&sum[start * width..end * width]), payload)
    };
    let seen = stream(rows, codec.payload_len(1, call.dtype), frame, stats, encode, offer)?;
    // A sum beyond the range of f32 saturates, alike on all ranks; no rank's input was at fault.
    stats.clipped += seen.nonfinite;
    seal(frame, marks);
    Ok(())
}

/// Fills the body of `frame` with `rows` rows of `row_len` bytes each.
fn stream(
    rows: usize,
    row_len: usize,
    frame: &mut [u8],
    stats: &mut ExchangeStats,
    encode: impl Fn((usize, usize), &mut [u8]) -> EncodeStats,
    mut offer: impl FnMut(&[u8], &mut ExchangeStats) -> Result<bool, ExchangeError>,
) -> Result<EncodeStats, ExchangeError> {
    let in_pieces = frame.len() - FRAME_TRAILER_LEN >= STREAM_BYTES;
    let piece_len = if in_pieces { STREAM_BYTES } else { frame.len() };
    let mut pieces = Pieces::new(rows, row_len, piece_len);
    while pieces.row < rows {
        pieces.encode(frame, stats, &encode);
        if in_pieces {
            offer(pieces.ready(frame), stats)?;
        }
    }
    Ok(pieces.seen)
}

/// A payload that is encoded some rows at a time.
#[derive(Debug, Clone, Copy, Default)]
struct Pieces {
    rows: usize,
    row_len: usize,
    /// Rows of a piece, at least one.
    step: usize,
    /// Rows that are encoded.
    row: usize,
    seen: EncodeStats,
    sealed: bool,
}

impl Pieces {
    fn new(rows: usize, row_len: usize, piece_len: usize) -> Self {
        Self {
            rows,
            row_len,
            step: piece_len.checked_div(row_len).unwrap_or(rows).max(1),
            ..Self::default()
        }
    }

    /// Encodes one more piece of `frame`.
    fn encode(
        &mut self,
        frame: &mut [u8],
        stats: &mut ExchangeStats,
        encode: impl Fn((usize, usize), &mut [u8]) -> EncodeStats,
    ) {
        let start = Instant::now();
        let end = (self.row + self.step).min(self.rows);
        let bytes = self.row * self.row_len..end * self.row_len;
        self.seen += encode((self.row, end), &mut frame[bytes]);
        self.row = end;
        stats.encode += start.elapsed();
    }

    /// The bytes of `frame` that are final.
    fn ready<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let ready = if self.sealed {
            frame.len()
        } else {
            self.row * self.row_len
        };
        &frame[..ready]
    }
}

/// Counts what encoding saw; this rank when it saw NaN or infinity.
fn marked(rank: usize, seen: EncodeStats, stats: &mut ExchangeStats) -> RankSet {
    stats.clipped += seen.clipped;
    stats.nonfinite += seen.nonfinite;
    let mut marks = RankSet::default();
    if seen.nonfinite > 0 {
        marks.insert(rank);
    }
    marks
}

/// Writes the trailer of a frame.
pub(super) fn seal(frame: &mut [u8], marks: RankSet) {
    if let Some(trailer) = frame.last_chunk_mut::<FRAME_TRAILER_LEN>() {
        *trailer = marks.0.to_le_bytes();
    }
}
