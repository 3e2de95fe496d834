//! Searching a level without halving: magnitudes fall into cells of an even grid, so fine that no cell holds more than one
//! threshold. One look at the cell's table and one comparison then find the level, for values of all classes side by side.
//! The cells of all classes are one table of 64.

use super::codebook::{clip, magnitudes, thresholds, MOST_THRESHOLDS};

pub const CELLS: usize = 64;

/// Bits of the classes that have cells.
const SEARCHED: [u8; 5] = [1, 2, 3, 4, 5];

/// Cells in a step.
pub const fn per_step(bits: u8) -> f32 {
    match bits {
        3 => 2.0,
        4 => 4.0,
        5 => 8.0,
        _ => 1.0,
    }
}

/// The first cell of a class. Classes without cells have a number here too, because tables of 16 classes are looked up by the
/// low four bits of it: these differ. The very first cell of the table is below every threshold.
pub const fn first(bits: u8) -> u8 {
    match bits {
        1 => 52,
        2 => 49,
        3 => 42,
        4 => 29,
        5 => 0,
        6 => 55,
        8 => 56,
        _ => 54,
    }
}

/// Where a position is clipped, in cells; nowhere for a feature that has no code.
pub const fn limit(bits: u8) -> f32 {
    match bits {
        1..=8 => clip(bits) * per_step(bits),
        _ => f32::INFINITY,
    }
}

/// Tables of classes, by the low four bits of [`first`].
pub struct Classes {
    /// See [`per_step`] and [`limit`].
    pub per_step: [f32; 16],
    pub limits: [f32; 16],
    /// Index of the highest level.
    pub highest: [f32; 16],
}

pub const fn classes() -> Classes {
    let mut classes = Classes {
        per_step: [0.0; 16],
        limits: [0.0; 16],
        highest: [0.0; 16],
    };
    let mut bits = 0;
    while bits <= 8 {
        // There is no class of 7 bits; its entries would be those of a feature that has no code.
        if bits != 7 {
            let at = (first(bits) % 16) as usize;
            classes.per_step[at] = per_step(bits);
            classes.limits[at] = limit(bits);
            classes.highest[at] = if bits == 0 { 0.0 } else { (magnitudes(bits) - 1) as f32 };
        }
        bits += 1;
    }
    classes
}

/// What a cell is for its class.
pub struct Cells {
    /// Thresholds below the cell.
    pub below: [u8; CELLS],
    /// The threshold inside it, in cells, or infinity.
    pub inside: [f32; CELLS],
}

pub const fn cells() -> Cells {
    let mut cells = Cells {
        below: [0; CELLS],
        inside: [f32::INFINITY; CELLS],
    };
    let mut taken = 0_u64;
    let mut class = 0;
    while class < SEARCHED.len() {
        let bits = SEARCHED[class];
        let (thresholds, last) = (thresholds(bits), limit(bits) as usize);
        let (mut cell, mut passed) = (0, 0);
        while cell <= last {
            let at = first(bits) as usize + cell;
            assert!(taken >> at & 1 == 0, "classes share no cell");
            taken |= 1 << at;
            cells.below[at] = passed;
            let mut inside = 0;
            while (passed as usize) < MOST_THRESHOLDS
                && thresholds[passed as usize] * per_step(bits) < (cell + 1) as f32
            {
                cells.inside[at] = thresholds[passed as usize] * per_step(bits);
                passed += 1;
                inside += 1;
            }
            assert!(inside <= 1, "one threshold a cell");
            cell += 1;
        }
        assert!(passed as usize == magnitudes(bits) - 1, "every threshold has its cell");
        class += 1;
    }
    assert!(cells.below[0] == 0);
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::rd::codebook;

    #[test]
    fn a_cell_and_a_comparison_find_the_nearest_level() {
        let cells = cells();
        for bits in SEARCHED {
            let marks = codebook::thresholds(bits).into_iter().filter(|x| x.is_finite());
            let marks = marks.flat_map(|x| [x.next_down(), x, x.next_up()]);
            let grid = (0..400).map(|i| i as f32 / 100.0);
            for position in grid.chain(marks).chain([1e-45, f32::MAX, f32::INFINITY]) {
                let inside = (position * per_step(bits)).min(limit(bits));
                let at = usize::from(first(bits)) + inside as usize;
                let index = usize::from(cells.below[at]) + usize::from(inside >= cells.inside[at]);
                assert_eq!(index, codebook::nearest(bits, position), "{bits} bits, {position}");
            }
        }
    }

    #[test]
    fn classes_differ_in_the_low_four_bits_of_their_first_cell() {
        let mut low: Vec<u8> = codebook::CLASSES[..8].iter().map(|bits| first(*bits) % 16).collect();
        low.sort_unstable();
        low.dedup();
        assert_eq!(low.len(), 8);
        assert_eq!(first(16), first(0));
    }
}
