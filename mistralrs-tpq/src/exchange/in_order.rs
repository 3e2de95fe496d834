//! Sums of payloads, decoded while they arrive, and still in a fixed order for each element.

use super::accumulate::round;
use super::slices::Slices;
use crate::codec::{Codec, CodecError, Dtype, Dynamic, ValuesMut};
use crate::transport::MAX_RANKS;

/// Elements that make a decode worth while: row by row would cost a call for each of a thousand network reads.
const READY_ELEMENTS: usize = 32 << 10;

/// f32 a sum works on at a time, half of a first-level cache: clearing and rounding blocks of 128 KiB, which a
/// second-level cache holds, took a quarter of the time of an exchange of eight ranks on two cores.
pub(crate) const BLOCK_ELEMENTS: usize = 4 << 10;

/// One term of a sum: `rank`'s payload. Rows of a payload have one length each, so any rows can be decoded alone.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    pub(super) rank: usize,
    pub(super) codec: &'a dyn Codec,
    /// The payload, when it is this rank's own and so there from the start.
    pub(super) own: Option<&'a [u8]>,
}

impl<'a> Term<'a> {
    pub(super) const fn received(codec: &'a dyn Codec, rank: usize) -> Self {
        Self { rank, codec, own: None }
    }

    pub(super) const fn own(codec: &'a dyn Codec, rank: usize, payload: &'a [u8]) -> Self {
        let own = Some(payload);
        Self { rank, codec, own }
    }

    /// The payloads of all ranks, `own` of `rank` among them.
    pub(super) fn of_all(codec: &'a dyn Codec, rank: usize, own: &'a [u8]) -> [Self; MAX_RANKS] {
        std::array::from_fn(|from| match from == rank {
            true => Self::own(codec, rank, own),
            false => Self::received(codec, from),
        })
    }
}

/// Which rank's payload does not decode.
pub(super) type BadPayload = (usize, CodecError);

/// Adds up `terms`, each row in their order, starting from zero.
pub(super) struct InOrder<'a> {
    terms: &'a [Term<'a>],
    rows: usize,
    width: usize,
    dtype: Dtype,
    /// `[rows, width]`. Not cleared before: the first term is written, not added.
    sum: &'a mut [f32],
    done: [usize; MAX_RANKS],
    rounded: usize,
}

impl<'a> InOrder<'a> {
    pub(super) fn new(terms: &'a [Term<'a>], rows: usize, width: usize, dtype: Dtype, sum: &'a mut [f32]) -> Self {
        Self {
            terms,
            // Rows without elements have nothing to decode, and no length to find them by.
            rows: if width == 0 { 0 } else { rows },
            width,
            dtype,
            sum,
            done: [0; MAX_RANKS],
            rounded: 0,
        }
    }

    /// Who sends a term, and how many bytes it has.
    pub(super) fn incoming(&self) -> impl Iterator<Item = (usize, usize)> + Clone + 'a {
        let (rows, dtype) = (self.rows, self.dtype);
        let received = self.terms.iter().filter(|term| term.own.is_none());
        received.map(move |term| (term.rank, term.codec.payload_len(rows, dtype)))
    }

    /// Decodes what it can of the first bytes of `from`'s payload.
    pub(super) fn arrived(&mut self, from: usize, bytes: &[u8], complete: bool) -> Result<(), BadPayload> {
        let Some(at) = self.terms.iter().position(|term| term.rank == from) else {
            return Ok(());
        };
        let available = self.available(at, bytes);
        if !complete && (available - self.done[at].min(available)) * self.width < READY_ELEMENTS {
            return Ok(());
        }
        loop {
            // The own term only as far as this one gets: ahead of it, the sum would leave the cache in between.
            let ahead = (self.done[at] + self.block_rows()).min(available);
            let own = self.step_own(ahead)?;
            if !self.step(at, bytes, available)? && !own {
                return Ok(());
            }
        }
    }

    /// Decodes the rest, block by block: all terms of a block while it is in the cache.
    pub(super) fn finish<'b>(&mut self, payload: impl Fn(usize) -> &'b [u8]) -> Result<(), BadPayload> {
        let mut end = 0;
        while end < self.rows {
            end = (end + self.block_rows()).min(self.rows);
            for at in 0..self.terms.len() {
                let term = self.terms[at];
                while self.step(at, term.own.unwrap_or_else(|| payload(term.rank)), end)? {}
            }
        }
        Ok(())
    }

    /// Rounds rows that all terms are in, and that it has not rounded before, to `output`, while they are in the cache.
    pub(super) fn round_to(&mut self, output: &mut ValuesMut<'_>) {
        let done = self.terms.len().checked_sub(1).map_or(0, |last| self.done[last]);
        let (start, end) = (self.rounded * self.width, done * self.width);
        if end > start {
            round(&self.sum[start..end], output, start);
            self.rounded = done;
        }
    }

    fn step_own(&mut self, available: usize) -> Result<bool, BadPayload> {
        let own = self.terms.iter().position(|term| term.own.is_some());
        match own.and_then(|at| Some((at, self.terms[at].own?))) {
            Some((at, payload)) => self.step(at, payload, available),
            None => Ok(false),
        }
    }

    /// Adds at most a block of term `at`, no further than row `available` nor than the term before; false when that is
    /// nothing.
    fn step(&mut self, at: usize, payload: &[u8], available: usize) -> Result<bool, BadPayload> {
        let start = self.done[at];
        let before = at.checked_sub(1).map_or(self.rows, |before| self.done[before]);
        let end = available.min(before).min(start + self.block_rows());
        if end <= start {
            return Ok(false);
        }
        let Term { rank, codec, .. } = self.terms[at];
        let sum = &mut self.sum[start * self.width..end * self.width];
        let (from, to) = (codec.payload_len(start, self.dtype), codec.payload_len(end, self.dtype));
        let decoded = match at {
            0 => codec.decode_first(rank, &payload[from..to], self.dtype, sum),
            _ => codec.decode_accumulate(rank, &payload[from..to], self.dtype, sum),
        };
        decoded.map_err(|error| (rank, error.after_rows(start)))?;
        self.done[at] = end;
        Ok(true)
    }

    fn available(&self, at: usize, bytes: &[u8]) -> usize {
        let row = self.terms[at].codec.payload_len(1, self.dtype);
        bytes.len().checked_div(row).unwrap_or(self.rows).min(self.rows)
    }

    /// Rows in a block, at least one.
    fn block_rows(&self) -> usize {
        BLOCK_ELEMENTS.checked_div(self.width).unwrap_or(0).max(1)
    }
}

/// Puts finished slices into the output, decoded while they arrive.
pub(super) struct Delivery<'a, 'o> {
    pub(super) slices: &'a Slices<'a>,
    pub(super) dtype: Dtype,
    pub(super) output: &'a mut ValuesMut<'o>,
    pub(super) done: [usize; MAX_RANKS],
}

impl<'a, 'o> Delivery<'a, 'o> {
    pub(super) fn new(slices: &'a Slices<'a>, dtype: Dtype, output: &'a mut ValuesMut<'o>) -> Self {
        Self {
            slices,
            dtype,
            output,
            done: [0; MAX_RANKS],
        }
    }

    /// Decodes what has come of slice `index`, which `owner` encoded.
    pub(super) fn arrived(
        &mut self,
        index: usize,
        owner: usize,
        codec: &Dynamic,
        bytes: &[u8],
        complete: bool,
    ) -> Result<(), BadPayload> {
        let width = self.slices.width(index);
        let rows = if width == 0 { 0 } else { self.slices.rows(index) };
        let row_len = codec.payload_len(1, self.dtype);
        let available = bytes.len().checked_div(row_len).unwrap_or(rows).min(rows);
        if !complete && available.saturating_sub(self.done[index]) * width < READY_ELEMENTS {
            return Ok(());
        }
        let start = self.done[index];
        if start < available {
            let payload = &bytes[start * row_len..available * row_len];
            self.slices
                .place(index, (start, available), codec, owner, payload, self.output)
                .map_err(|error| (owner, error.after_rows(start)))?;
            self.done[index] = available;
        }
        Ok(())
    }
}
