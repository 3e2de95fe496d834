//! Levels of each bit class, symmetric about zero: a code is a sign and an index of a magnitude, and zero has no level of
//! its own.
//!
//! Up to 5 bits the levels are those that minimise the mean square error of a unit normal (Max 1960, Lloyd 1982): a partial
//! sum over its token's gain is close to one, and at 4 bits they are 0.8 dB better than even steps. From 6 bits on the
//! steps are even, `index + 1/2`: a table of 128 levels buys little and would not fit a shuffle of vector code.

/// Bits of a feature's class.
pub const CLASSES: [u8; 9] = [0, 1, 2, 3, 4, 5, 6, 8, 16];

/// Between the magnitudes of the largest class that has a table.
pub const MOST_THRESHOLDS: usize = 15;

const ONE: [f32; 1] = [0.797_884_6];
const TWO: [f32; 2] = [0.452_78, 1.510_418];
const THREE: [f32; 4] = [0.245_094_2, 0.756_005_3, 1.343_909, 2.151_946];
const FOUR: [f32; 8] = [
    0.128_395,
    0.388_048_3,
    0.656_759_1,
    0.942_340_5,
    1.256_231,
    1.618_046,
    2.069_017,
    2.732_59,
];
const FIVE: [f32; 16] = [
    0.065_889_66,
    0.198_051_8,
    0.331_378_3,
    0.466_699_5,
    0.604_933_6,
    0.747_135_7,
    0.894_565_1,
    1.048_783,
    1.211_804,
    1.386_34,
    1.576_228,
    1.787_233,
    2.028_728,
    2.317_739,
    2.691_12,
    3.260_732,
];

/// Magnitudes of a class below 6 bits, ascending; none for the others.
pub const fn table(bits: u8) -> &'static [f32] {
    match bits {
        1 => &ONE,
        2 => &TWO,
        3 => &THREE,
        4 => &FOUR,
        5 => &FIVE,
        _ => &[],
    }
}

/// Magnitudes of a class of 1 to 8 bits.
pub const fn magnitudes(bits: u8) -> usize {
    1 << (bits - 1)
}

/// The magnitude with this index, in steps.
#[inline(always)]
pub const fn level(bits: u8, index: usize) -> f32 {
    match table(bits) {
        [] => index as f32 + 0.5,
        levels => levels[index],
    }
}

/// The index of the magnitude nearest to `position >= 0`; of two equally near the larger one.
#[inline(always)]
pub fn nearest(bits: u8, position: f32) -> usize {
    let highest = magnitudes(bits) - 1;
    match table(bits) {
        // The cast saturates: infinity is the highest.
        [] => (position as usize).min(highest),
        levels => levels
            .windows(2)
            .map(|pair| usize::from(position >= threshold(pair[0], pair[1])))
            .sum(),
    }
}

/// Where the nearest of two neighbours changes.
#[inline(always)]
pub const fn threshold(below: f32, above: f32) -> f32 {
    0.5 * (below + above)
}

/// Where the nearest magnitude of a class below 6 bits changes, ascending; infinity beyond the last.
pub const fn thresholds(bits: u8) -> [f32; MOST_THRESHOLDS] {
    let levels = table(bits);
    let mut thresholds = [f32::INFINITY; MOST_THRESHOLDS];
    let mut at = 1;
    while at < levels.len() {
        thresholds[at - 1] = threshold(levels[at - 1], levels[at]);
        at += 1;
    }
    thresholds
}

/// Positions beyond this many steps are clipped: farther from the highest level than any position inside from its own.
pub const fn clip(bits: u8) -> f32 {
    let highest = level(bits, magnitudes(bits) - 1);
    highest + worst_inside(bits)
}

/// The largest distance of a position inside the levels from its nearest one, in steps.
pub const fn worst_inside(bits: u8) -> f32 {
    let levels = table(bits);
    if levels.is_empty() {
        return 0.5;
    }
    let mut worst = levels[0];
    let mut at = 1;
    while at < levels.len() {
        worst = worst.max(0.5 * (levels[at] - levels[at - 1]));
        at += 1;
    }
    worst
}
