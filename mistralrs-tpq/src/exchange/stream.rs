//! Encoding a frame while what is already encoded goes out.

use std::time::Instant;

use super::slices::Slices;
use super::{Call, ExchangeError, ExchangeStats, RankSet};
use crate::codec::{Codec, EncodeStats, Values};
use crate::wire::FRAME_TRAILER_LEN;

/// Payloads from here on are offered to the transport piece by piece. A smaller one is encoded in less time than the
/// extra system calls take.
const STREAM_BYTES: usize = 128 << 10;

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

/// As [`encode_slice`], of the slices of all `owners` into `frames[owner]`. They are offered in their order, each once all of the
/// one before went out. Returns this rank when any slice has NaN or infinity.
pub(super) fn encode_slices(
    call: &Call<'_>,
    slices: &Slices<'_>,
    owners: impl Iterator<Item = usize> + Clone,
    input: Values<'_>,
    frames: &mut [&mut [u8]],
    stats: &mut ExchangeStats,
    mut offer: impl FnMut(usize, &[u8], &mut ExchangeStats) -> Result<bool, ExchangeError>,
) -> Result<RankSet, ExchangeError> {
    let mut waiting = owners.clone().enumerate().peekable();
    let mut marks = RankSet::default();
    for (encoded, owner) in owners.enumerate() {
        let is_next = waiting.peek().is_some_and(|&(place, _)| place == encoded);
        let piece = |ready: &[u8], stats: &mut ExchangeStats| Ok(is_next && offer(owner, ready, stats)?);
        marks = marks.with(encode_slice(call, slices, owner, input, frames[owner], stats, piece)?);
        while let Some(&(place, next)) = waiting.peek() {
            if place > encoded || !offer(next, &*frames[next], stats)? {
                break;
            }
            waiting.next();
        }
    }
    Ok(marks)
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
    let step = piece_len.checked_div(row_len).unwrap_or(rows).max(1);
    let mut seen = EncodeStats::default();
    for row in (0..rows).step_by(step) {
        let start = Instant::now();
        let end = (row + step).min(rows);
        seen += encode((row, end), &mut frame[row * row_len..end * row_len]);
        stats.encode += start.elapsed();
        if in_pieces {
            offer(&frame[..end * row_len], stats)?;
        }
    }
    Ok(seen)
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
