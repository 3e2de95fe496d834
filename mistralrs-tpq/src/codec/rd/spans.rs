//! One rank's features in the order of a row, 64 at a time: for instructions that sort the bytes of a vector by class in a
//! few cycles (AVX-512), where others load every value from its feature.

use super::cells;
use super::layout::SENT;

/// Features of a span: a byte of each is a vector of 512 bits, a bit of each a word.
pub const SPAN: usize = 64;

/// Tables of 64 features; beyond the last feature of a row they are as for one that is not sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// In units of the gain; one where no code is sent.
    pub steps: [f32; SPAN],
    /// Their reciprocals; zero where no code is sent.
    pub inv_steps: [f32; SPAN],
    /// Where the cells of each feature's class begin.
    pub first_cells: [u8; SPAN],
    /// Features of each class, in the order of [`SENT`], as the bits of a word.
    pub members: [u64; SENT.len()],
    /// Where the codes of these begin in [`Scratch::codes`](super::scratch::Scratch).
    pub starts: [usize; SENT.len()],
}

impl Span {
    fn empty(starts: [usize; SENT.len()]) -> Self {
        Self {
            steps: [1.0; SPAN],
            inv_steps: [0.0; SPAN],
            first_cells: [cells::first(0); SPAN],
            members: [0; SENT.len()],
            starts,
        }
    }

    /// Spans of a row. Both slices have an entry for each feature; codes of a class begin at its place in `starts`.
    pub fn of_row(bits: &[u8], steps: &[f32], mut starts: [usize; SENT.len()]) -> Vec<Self> {
        let spans = bits.chunks(SPAN).zip(steps.chunks(SPAN));
        spans
            .map(|(bits, steps)| {
                let mut span = Self::empty(starts);
                for (at, (bits, step)) in bits.iter().zip(steps).enumerate() {
                    span.put(at, *bits, *step);
                }
                for (start, members) in starts.iter_mut().zip(span.members) {
                    *start += members.count_ones() as usize;
                }
                span
            })
            .collect()
    }

    fn put(&mut self, at: usize, bits: u8, step: f32) {
        if let Some(class) = SENT.iter().position(|sent| *sent == bits) {
            self.members[class] |= 1 << at;
        }
        if !matches!(bits, 0 | 16) {
            self.steps[at] = step;
            self.inv_steps[at] = 1.0 / step;
            self.first_cells[at] = cells::first(bits);
        }
    }

    /// Features of the classes 6 and 8, whose levels are even.
    #[inline(always)]
    pub fn even(&self) -> u64 {
        self.members[1] | self.members[2]
    }
}
