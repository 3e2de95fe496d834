//! What codecs share whose rows all have one length and stand alone.

use super::scalar::BadWord;
use super::simd::Onto;
use super::values::Element;
use super::{rows_to_decode, rows_to_encode, Codec, CodecError, Dtype, EncodeStats, Values};

/// What no encoder sends.
#[derive(Debug)]
pub(super) enum BadRow {
    Word(BadWord),
    /// An entropy-coded row that does not end as an encoder ends it.
    Stream,
}

impl From<BadWord> for BadRow {
    fn from(word: BadWord) -> Self {
        Self::Word(word)
    }
}

/// A codec as one row of it; [`encode`] and [`decode`] make the rest of it. Rows have [`Rows::row_len`] bytes.
pub(super) trait Rows: Codec + Sized {
    /// The tables of one rank; `()` where ranks do not differ.
    type Table<'a>
    where
        Self: 'a;

    /// # Errors
    /// [`CodecError::UnknownRank`].
    fn table(&self, rank: usize) -> Result<Self::Table<'_>, CodecError>;

    fn row_len(&self) -> usize;

    fn encode_row<T: Element>(&self, table: &Self::Table<'_>, values: &[T], row: &mut [u8]) -> EncodeStats;

    fn decode_row(&self, table: &Self::Table<'_>, row: &[u8], onto: Onto, sum: &mut [f32]) -> Result<(), BadRow>;

    /// # Panics
    /// When there is no such rank: a caller's bug.
    fn own_table(&self, rank: usize) -> Self::Table<'_> {
        self.table(rank)
            .unwrap_or_else(|error| panic!("encoding as rank {rank}: {error}"))
    }
}

/// As [`Codec::encode`].
pub(super) fn encode<C: Rows>(codec: &C, rank: usize, values: Values<'_>, payload: &mut [u8]) -> EncodeStats {
    rows_to_encode(codec, values, payload);
    match values {
        Values::F32(v) => encode_elements(codec, rank, v, payload),
        Values::Bf16(v) => encode_elements(codec, rank, v, payload),
        Values::F16(v) => encode_elements(codec, rank, v, payload),
    }
}

fn encode_elements<C: Rows, T: Element>(codec: &C, rank: usize, values: &[T], payload: &mut [u8]) -> EncodeStats {
    let table = codec.own_table(rank);
    let mut stats = EncodeStats::default();
    if codec.features() == 0 {
        return stats;
    }
    let rows = payload.chunks_exact_mut(codec.row_len());
    for (values, row) in values.chunks_exact(codec.features()).zip(rows) {
        stats += codec.encode_row(&table, values, row);
    }
    stats
}

/// As [`Codec::decode_accumulate`] and [`Codec::decode_first`].
pub(super) fn decode<C: Rows>(
    codec: &C,
    rank: usize,
    payload: &[u8],
    dtype: Dtype,
    onto: Onto,
    sum: &mut [f32],
) -> Result<(), CodecError> {
    let table = codec.table(rank)?;
    decode_each(codec, rank, payload, dtype, sum, |row, sum| {
        codec.decode_row(&table, row, onto, sum)
    })
}

/// Calls `decode_row` with each row of `payload` and its room in `values`.
pub(super) fn decode_each<C: Rows, T>(
    codec: &C,
    rank: usize,
    payload: &[u8],
    dtype: Dtype,
    values: &mut [T],
    decode_row: impl Fn(&[u8], &mut [T]) -> Result<(), BadRow>,
) -> Result<(), CodecError> {
    if rows_to_decode(codec, rank, payload, dtype, values.len())? == 0 {
        return Ok(());
    }
    let rows = payload.chunks_exact(codec.row_len());
    for (token, (row, values)) in rows.zip(values.chunks_exact_mut(codec.features())).enumerate() {
        decode_row(row, values).map_err(|bad| match bad {
            BadRow::Word(BadWord { feature, bits }) => CodecError::Content {
                rank,
                token,
                feature,
                bits,
            },
            BadRow::Stream => CodecError::Stream { rank, token },
        })?;
    }
    Ok(())
}
