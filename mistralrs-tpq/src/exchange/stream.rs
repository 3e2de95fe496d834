//! Encoding a slice while what is already encoded goes out.

use std::time::Instant;

use super::slices::Slices;
use super::{Call, ExchangeError, ExchangeStats, RankSet};
use crate::codec::{Codec, Values};
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
    mut offer: impl FnMut(&[u8], &mut ExchangeStats) -> Result<(), ExchangeError>,
) -> Result<RankSet, ExchangeError> {
    let rank = call.transport.rank();
    let rows = slices.rows(index);
    let body_len = frame.len() - FRAME_TRAILER_LEN;
    let row_len = slices.codec(index).payload_len(1, call.dtype).max(1);
    let step = if body_len < STREAM_BYTES {
        rows
    } else {
        (STREAM_BYTES / row_len).max(1)
    };
    let mut marks = RankSet::default();
    let mut row = 0;
    while row < rows {
        let start = Instant::now();
        let end = (row + step).min(rows);
        let (from, to) = (
            slices.codec(index).payload_len(row, call.dtype),
            slices.codec(index).payload_len(end, call.dtype),
        );
        let seen = slices.encode(index, (row, end), rank, input, &mut frame[from..to]);
        stats.clipped += seen.clipped;
        stats.nonfinite += seen.nonfinite;
        if seen.nonfinite > 0 {
            marks.insert(rank);
        }
        stats.encode += start.elapsed();
        row = end;
        if body_len >= STREAM_BYTES {
            offer(&frame[..to], stats)?;
        }
    }
    seal(frame, marks);
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
    mut offer: impl FnMut(&[u8], &mut ExchangeStats) -> Result<(), ExchangeError>,
) -> Result<(), ExchangeError> {
    let width = codec.features();
    let body_len = frame.len() - FRAME_TRAILER_LEN;
    let row_len = codec.payload_len(1, call.dtype).max(1);
    let rows = sum.len().checked_div(width).unwrap_or(0);
    let step = if body_len < STREAM_BYTES {
        rows
    } else {
        (STREAM_BYTES / row_len).max(1)
    };
    let mut row = 0;
    while row < rows {
        let start = Instant::now();
        let end = (row + step).min(rows);
        let values = Values::F32(&sum[row * width..end * width]);
        let seen = codec.encode(call.transport.rank(), values, &mut frame[row * row_len..end * row_len]);
        // A sum beyond the range of f32 saturates, alike on all ranks; no rank's input was at fault.
        stats.clipped += seen.nonfinite;
        stats.encode += start.elapsed();
        row = end;
        if body_len >= STREAM_BYTES {
            offer(&frame[..end * row_len], stats)?;
        }
    }
    seal(frame, marks);
    Ok(())
}

/// Writes the trailer of a frame.
pub(super) fn seal(frame: &mut [u8], marks: RankSet) {
    if let Some(trailer) = frame.last_chunk_mut::<FRAME_TRAILER_LEN>() {
        *trailer = marks.0.to_le_bytes();
    }
}
