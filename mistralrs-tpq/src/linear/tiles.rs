//! The loops that every instruction set shares: tiles of rows and outputs whose sums stay in registers.

use std::ops::Range;

use super::{chunk_of, BLOCK, LANES};
use crate::codec::Element;

/// Bytes that a processor fetches at once.
const LINE: usize = 64;

/// Walks over the weights that come after those of a block, so that they are fetched while the block is multiplied. The
/// processor fetches ahead within a row only: 8 and 16 rows of 1024 inputs took a quarter longer without.
pub(super) struct Ahead<T> {
    next: *const T,
    end: *const T,
    /// Weights of a row that belong to the chunk, and from one row to the next.
    chunk: usize,
    inputs: usize,
    /// Inputs to multiply for each line to fetch.
    pub every: usize,
}

impl<T: Element> Ahead<T> {
    /// For `chunk` of weights `[.., inputs]`, multiplied by `rows`: the next chunk of the same rows, or the next rows.
    pub fn new(weights: &[T], inputs: usize, chunk: &Range<usize>, rows: usize) -> Self {
        let (from, chunk) = match chunk.end < inputs {
            true => (chunk.end, chunk.len().min(inputs - chunk.end)),
            false => (weights.len(), chunk_of(inputs).min(inputs)),
        };
        let next = weights.as_ptr().wrapping_add(from);
        let every = match rows {
            // Eight rows of weights at once are read as fast as they come.
            1 => chunk,
            _ => LANES * (rows.div_ceil(4) * 16 * LINE / (LANES * BLOCK * size_of::<T>())).max(1),
        };
        Self {
            next,
            end: next.wrapping_add(chunk),
            chunk,
            inputs,
            every,
        }
    }

    /// The address of the next line. It may lie behind the weights: to be fetched, never to be read.
    #[inline(always)]
    pub fn line(&mut self) -> *const T {
        let line = self.next;
        self.next = line.wrapping_add(LINE / size_of::<T>());
        if self.next >= self.end {
            self.end = self.end.wrapping_add(self.inputs);
            self.next = self.end.wrapping_sub(self.chunk);
        }
        line
    }
}

/// `chunk` of `N` rows of `matrix [.., inputs]` from `first` on.
#[inline(always)]
pub(super) fn slices<'m, T, const N: usize>(
    matrix: &'m [T],
    inputs: usize,
    first: usize,
    chunk: &Range<usize>,
) -> [&'m [T]; N] {
    let mut slices: [&[T]; N] = [&[]; N];
    for (row, slice) in slices.iter_mut().enumerate() {
        *slice = &matrix[(first + row) * inputs..][chunk.clone()];
    }
    slices
}

/// Adds `tile [outputs, rows]` to its place in `sums [rows, outputs]`.
#[inline(always)]
pub(super) fn add<const ROWS: usize>(
    tile: &[[f32; ROWS]],
    sums: &mut [f32],
    outputs: usize,
    row: usize,
    output: usize,
) {
    for (o, tile) in tile.iter().enumerate() {
        for (r, tile) in tile.iter().enumerate() {
            sums[(row + r) * outputs + output + o] += tile;
        }
    }
}

/// Defines `$isa::block` of the lanes of the module that uses it: `zero`, `load`, `fetch`, `multiply_add`, `sums_of_four`.
macro_rules! tiles {
    ($isa:ident, $features:literal) => {
        impl $isa {
            pub fn block<T: Weight>(self, x: &[f32], weights: &[T], inputs: usize, sums: &mut [f32]) {
                // SAFETY: `self` proves that the processor has the features.
                unsafe { block(x, weights, inputs, sums) }
            }
        }

        #[target_feature(enable = $features)]
        fn block<T: Weight>(x: &[f32], weights: &[T], inputs: usize, sums: &mut [f32]) {
            let (rows, length) = (x.len() / inputs, chunk_of(inputs));
            for start in (0..inputs).step_by(length) {
                let chunk = start..inputs.min(start + length);
                let mut ahead = Ahead::new(weights, inputs, &chunk, rows);
                let mut row = 0;
                // Twelve sums and what is multiplied fill sixteen registers; fewer rows take more outputs, to
                // have enough sums that do not wait for each other.
                while row < rows {
                    row += match rows - row {
                        1 => strip::<T, 1, 8>(x, weights, inputs, &chunk, sums, row, &mut ahead),
                        2 => strip::<T, 2, 4>(x, weights, inputs, &chunk, sums, row, &mut ahead),
                        3 => strip::<T, 3, 4>(x, weights, inputs, &chunk, sums, row, &mut ahead),
                        _ => strip::<T, 4, 3>(x, weights, inputs, &chunk, sums, row, &mut ahead),
                    };
                }
            }
        }

        /// Rows from `row` on with all weights. Returns how many rows that were: `ROWS`.
        #[inline]
        #[target_feature(enable = $features)]
        fn strip<T: Weight, const ROWS: usize, const OUTPUTS: usize>(
            x: &[f32],
            weights: &[T],
            inputs: usize,
            chunk: &Range<usize>,
            sums: &mut [f32],
            row: usize,
            ahead: &mut Ahead<T>,
        ) -> usize {
            let outputs = weights.len() / inputs;
            let x = slices::<f32, ROWS>(x, inputs, row, chunk);
            let whole = outputs - outputs % OUTPUTS;
            for output in (0..whole).step_by(OUTPUTS) {
                let tile = tile::<T, ROWS, OUTPUTS>(x, slices(weights, inputs, output, chunk), ahead);
                add(&tile, sums, outputs, row, output);
            }
            for output in whole..outputs {
                let tile = tile::<T, ROWS, 1>(x, slices(weights, inputs, output, chunk), ahead);
                add(&tile, sums, outputs, row, output);
            }
            ROWS
        }

        /// Products of slices that are equally long.
        #[inline]
        #[target_feature(enable = $features)]
        fn tile<T: Weight, const ROWS: usize, const OUTPUTS: usize>(
            x: [&[f32]; ROWS],
            weights: [&[T]; OUTPUTS],
            ahead: &mut Ahead<T>,
        ) -> [[f32; ROWS]; OUTPUTS] {
            let length = x[0].len();
            assert!(x.iter().all(|x| x.len() == length) && weights.iter().all(|w| w.len() == length));
            let mut sums = [[zero(); ROWS]; OUTPUTS];
            let whole = length - length % LANES;
            let mut at = 0;
            while at < whole {
                fetch(ahead.line());
                let end = whole.min(at + ahead.every);
                while at < end {
                    let mut lanes = [zero(); OUTPUTS];
                    for o in 0..OUTPUTS {
                        // SAFETY: every slice has `LANES` elements from `at` on: `at` is a multiple of it below `whole`.
                        lanes[o] = unsafe { load(weights[o].as_ptr().add(at)) };
                    }
                    for r in 0..ROWS {
                        // SAFETY: as above.
                        let x = unsafe { load(x[r].as_ptr().add(at)) };
                        for o in 0..OUTPUTS {
                            sums[o][r] = multiply_add(x, lanes[o], sums[o][r]);
                        }
                    }
                    at += LANES;
                }
            }
            if whole < length {
                let filled = |left: &mut dyn Iterator<Item = f32>| {
                    let mut lanes = [0.0; LANES];
                    lanes.iter_mut().zip(left).for_each(|(lane, value)| *lane = value);
                    // SAFETY: `LANES` f32.
                    unsafe { load(lanes.as_ptr()) }
                };
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    let weights = filled(&mut weights[whole..].iter().map(|weight| weight.to_f32()));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = multiply_add(filled(&mut x[whole..].iter().copied()), weights, *sum);
                    }
                }
            }
            // A copy: what a slice is taken of does not stay in registers.
            let (sums, mut totals) = (sums, [[0.0; ROWS]; OUTPUTS]);
            for (totals, sums) in totals
                .as_flattened_mut()
                .chunks_mut(4)
                .zip(sums.as_flattened().chunks(4))
            {
                let mut four = [zero(); 4];
                four[..sums.len()].copy_from_slice(sums);
                totals.copy_from_slice(&sums_of_four(four)[..totals.len()]);
            }
            totals
        }
    };
}
pub(super) use tiles;
