//! A partial sum cut into one slice for each rank: by tokens, or by features when there are fewer tokens than ranks and
//! the codec can be cut.

use super::accumulate::add_values;
use crate::codec::{split_bounds, Codec, CodecError, Dtype, Dynamic, EncodeStats, Split, Values, ValuesMut};

/// `[tokens, features]` in `ways` slices. A slice is `[rows, width]`, compact wherever it is on its own.
#[derive(Debug)]
pub(super) struct Slices<'a> {
    codec: &'a dyn Codec,
    split: Option<Split>,
    tokens: usize,
    ways: usize,
}

impl<'a> Slices<'a> {
    pub(super) fn new(codec: &'a dyn Codec, tokens: usize, ways: usize) -> Self {
        // Whole rows are cheaper to handle; below that, three ranks of four would have nothing to add for one token.
        let split = if tokens < ways { codec.split(ways) } else { None };
        let split = split.filter(|split| split.len() == ways);
        Self {
            codec,
            split,
            tokens,
            ways,
        }
    }

    /// The whole as its only slice.
    pub(super) const fn whole(codec: &'a dyn Codec, tokens: usize) -> Self {
        Self {
            codec,
            split: None,
            tokens,
            ways: 1,
        }
    }

    /// The codec of rows of slice `index`.
    pub(super) fn codec(&self, index: usize) -> &dyn Codec {
        self.split.as_ref().map_or(self.codec, |split| &*split[index])
    }

    pub(super) fn rows(&self, index: usize) -> usize {
        let (start, end) = self.row_bounds(index);
        end - start
    }

    pub(super) fn width(&self, index: usize) -> usize {
        let (start, end) = self.column_bounds(index);
        end - start
    }

    pub(super) fn elements(&self, index: usize) -> usize {
        self.rows(index) * self.width(index)
    }

    /// Bytes of slice `index` in the codec, without the trailer.
    pub(super) fn payload_len(&self, index: usize, dtype: Dtype) -> usize {
        self.codec(index).payload_len(self.rows(index), dtype)
    }

    fn row_bounds(&self, index: usize) -> (usize, usize) {
        if self.split.is_some() {
            return (0, self.tokens);
        }
        let at = |index: usize| (self.tokens as u128 * index as u128 / self.ways as u128) as usize;
        (at(index), at(index + 1))
    }

    fn column_bounds(&self, index: usize) -> (usize, usize) {
        match self.split {
            Some(_) => split_bounds(self.codec.features(), self.ways, index),
            None => (0, self.codec.features()),
        }
    }

    /// Calls `visit` with the place in the whole of each run of elements of rows `start..end` of slice `index`, and their
    /// place in the compact rows. Slices of whole rows are one run.
    fn runs(&self, index: usize, start: usize, end: usize, mut visit: impl FnMut(usize, usize, usize)) {
        let features = self.codec.features();
        let (first_row, _) = self.row_bounds(index);
        let (first_column, last_column) = self.column_bounds(index);
        let width = last_column - first_column;
        if width == features {
            return visit((first_row + start) * features, 0, (end - start) * features);
        }
        for row in start..end {
            visit(
                (first_row + row) * features + first_column,
                (row - start) * width,
                width,
            );
        }
    }

    /// Encodes rows `start..end` of slice `index` of `input` as `rank`'s.
    pub(super) fn encode(
        &self,
        index: usize,
        (start, end): (usize, usize),
        rank: usize,
        input: Values<'_>,
        payload: &mut [u8],
    ) -> EncodeStats {
        let codec = self.codec(index);
        let width = self.width(index);
        let mut stats = EncodeStats::default();
        if width == 0 {
            return stats;
        }
        let mut rest = payload;
        self.runs(index, start, end, |at, _, len| {
            let here = codec.payload_len(len / width, input.dtype());
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(here);
            rest = tail;
            stats += codec.encode(rank, input.slice(at, at + len), head);
        });
        stats
    }

    /// Adds slice `index` of `input` to `sum`, exactly.
    pub(super) fn add(&self, index: usize, input: Values<'_>, sum: &mut [f32]) {
        self.runs(index, 0, self.rows(index), |at, compact, len| {
            add_values(input.slice(at, at + len), &mut sum[compact..compact + len]);
        });
    }

    /// Decodes rows `start..end` of slice `index`, encoded by `owner`, and rounds them to their place in `output`. Tokens in
    /// an error count from `start`.
    pub(super) fn place(
        &self,
        index: usize,
        (start, end): (usize, usize),
        codec: &Dynamic,
        owner: usize,
        payload: &[u8],
        output: &mut ValuesMut<'_>,
    ) -> Result<(), CodecError> {
        let (width, dtype) = (self.width(index).max(1), output.as_values().dtype());
        let mut outcome = Ok(());
        self.runs(index, start, end, |at, compact, len| {
            let (from, to) = (compact / width, (compact + len) / width);
            let rows = &payload[codec.payload_len(from, dtype)..codec.payload_len(to, dtype)];
            if outcome.is_ok() {
                let decoded = codec.decode_rounded(owner, rows, output.slice(at, at + len));
                outcome = decoded.map_err(|error| error.after_rows(from));
            }
        });
        outcome
    }
}
