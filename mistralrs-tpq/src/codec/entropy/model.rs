//! Frequencies of a feature's codes, from the shape of its magnitudes and how many steps its root mean square is.
//!
//! All hosts must find the same numbers, so nothing here calls a logarithm, a power or another function that mathematical
//! libraries round differently: only `+ - * /` and comparisons of f64, and whole numbers.

use super::rans::{PRECISION, TOTAL};
use super::shape::Shape;
use crate::codec::bins::power_of_two;

/// 2^(i/8).
const EIGHTHS: [f64; 8] = [
    1.0,
    1.090_507_732_665_257_7,
    1.189_207_115_002_721,
    1.296_839_554_651_009_6,
    std::f64::consts::SQRT_2,
    1.542_210_825_407_940_7,
    1.681_792_830_507_429,
    1.834_008_086_409_342_4,
];

/// Quarter octaves between the rms of a feature and the step: from 1/16 (nearly always zero) on.
const FINEST: i32 = -16;
/// A table reaches up to 8 steps an rms; beyond, low bits of a code travel as they are, in which nothing could be saved.
const COARSEST: i32 = 12;
/// How many low bits: enough for an rms of 2^15 steps.
const MAX_SHIFT: u32 = 12;
pub const MODELS: usize = (COARSEST - FINEST + 1) as usize;
/// Codes on either side of zero. 60 are 7 rms at 8 steps an rms.
const MAX_REACH: usize = 60;
/// Codes that share less of the probability than this are left to the escape.
const RARE: f64 = 1.0 / 2048.0;
/// Bits of a value that escapes: a BF16.
pub const ESCAPE_BITS: u32 = 16;
/// Costs are in units of 1/1024 bit.
pub const COST_UNIT: u32 = 10;

/// 2^(`eighths`/8).
pub fn ladder(eighths: i32) -> f64 {
    power_of_two(eighths.div_euclid(8)) * EIGHTHS[eighths.rem_euclid(8) as usize]
}

/// Which model a feature has, and how many low bits of its code travel as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    pub model: u8,
    pub shift: u8,
}

impl Class {
    /// For a root mean square of `ratio` steps, to the nearest quarter octave.
    pub fn nearest(ratio: f64) -> Self {
        let last = COARSEST + 4 * MAX_SHIFT as i32;
        // The middle between two quarters is an odd eighth.
        let (mut low, mut high) = (FINEST, last);
        while low < high {
            let middle = (low + high).div_euclid(2);
            if ratio < ladder(2 * middle + 1) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        let shift = (low - COARSEST).max(0).div_euclid(4) + i32::from((low - COARSEST).max(0) % 4 != 0);
        Self {
            model: (low - 4 * shift - FINEST) as u8,
            shift: shift as u8,
        }
    }
}

impl Class {
    /// The position, in steps, of a code with its low bits.
    #[inline(always)]
    pub fn position(self, code: i32) -> i32 {
        code - (1 << self.shift >> 1)
    }
}

/// Codes `-reach..=reach`, and the escape.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub reach: i32,
    /// By symbol: code + reach, the escape last.
    pub frequencies: Vec<u16>,
    pub starts: Vec<u16>,
    /// Without low bits and without an escaped value, in `1 / (1 << COST_UNIT)` bits.
    pub costs: Vec<u32>,
    /// By magnitude of the code: what is decoded, in steps. The mean of the magnitudes that have this code.
    pub levels: Vec<f32>,
    /// Symbol by place in `0..TOTAL`.
    pub symbols: Box<[u8; TOTAL as usize]>,
    /// By symbol.
    pub decoded: Box<[Decoded; 1 << u8::BITS]>,
}

/// What a symbol means: how it is taken off the stack, and its level in steps, which is zero for an escape.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Decoded {
    pub start: u16,
    pub frequency: u16,
    pub level: f32,
}

impl Model {
    pub fn new(shape: &Shape, index: usize) -> Self {
        let steps = ladder(2 * (index as i32 + FINEST));
        let below = |code: usize| shape.below((code as f64 + 0.5) / steps);
        let reach = (1..MAX_REACH)
            .find(|reach| 1.0 - below(*reach)[0] < RARE)
            .unwrap_or(MAX_REACH);
        let count = |probability: f64| ((probability * f64::from(TOTAL)) as u32).max(1);
        // One side of a code that is not zero.
        let sides: Vec<u32> = (1..=reach)
            .map(|code| count(0.5 * (below(code)[0] - below(code - 1)[0])))
            .collect();
        let escape = count(1.0 - below(reach)[0]);
        let taken = 2 * sides.iter().sum::<u32>() + escape;
        let mut frequencies: Vec<u32> = sides.iter().rev().copied().collect();
        frequencies.push(TOTAL - taken.min(TOTAL - 1));
        frequencies.extend(&sides);
        frequencies.push(escape);
        Self::from_frequencies(reach, &balanced(frequencies, reach), levels(reach, steps, below))
    }

    fn from_frequencies(reach: usize, frequencies: &[u32], levels: Vec<f32>) -> Self {
        let mut symbols = Box::new([0; TOTAL as usize]);
        let mut decoded = Box::new([Decoded::default(); 1 << u8::BITS]);
        let mut starts = Vec::with_capacity(frequencies.len());
        let mut start = 0;
        for (symbol, &frequency) in frequencies.iter().enumerate() {
            let end = start + frequency;
            symbols[start as usize..end as usize].fill(symbol as u8);
            decoded[symbol] = Decoded {
                start: start as u16,
                frequency: frequency as u16,
                level: signed(&levels, symbol as i32 - reach as i32),
            };
            starts.push(start as u16);
            start = end;
        }
        debug_assert_eq!(start, TOTAL);
        Self {
            reach: reach as i32,
            frequencies: frequencies.iter().map(|frequency| *frequency as u16).collect(),
            starts,
            costs: frequencies.iter().map(|frequency| cost(*frequency)).collect(),
            levels,
            symbols,
            decoded,
        }
    }

    /// In steps: what a receiver makes of a code with its low bits.
    pub fn level(&self, class: Class, code: i32) -> f32 {
        match class.shift {
            0 => signed(&self.levels, code),
            _ => class.position(code) as f32,
        }
    }

    /// Symbol of the escape.
    pub fn escape(&self) -> usize {
        self.frequencies.len() - 1
    }

    /// Cost of an average symbol under the model itself, escaped values included, in units of [`COST_UNIT`].
    pub fn mean_cost(&self) -> u64 {
        let costs = self.costs.iter().zip(&self.frequencies);
        let sum: u64 = costs
            .map(|(cost, frequency)| u64::from(*cost) * u64::from(*frequency))
            .sum();
        let escapes = u64::from(self.frequencies[self.escape()]) * u64::from(ESCAPE_BITS << COST_UNIT);
        (sum + escapes) >> PRECISION
    }
}

/// The level of a code; zero beyond the levels.
fn signed(levels: &[f32], code: i32) -> f32 {
    let magnitude = levels.get(code.unsigned_abs() as usize).copied().unwrap_or(0.0);
    if code < 0 {
        -magnitude
    } else {
        magnitude
    }
}

/// Takes from the most frequent symbols what rounding up to one gave the rare ones.
fn balanced(mut frequencies: Vec<u32>, reach: usize) -> Vec<u32> {
    let mut excess = frequencies.iter().sum::<u32>() - TOTAL;
    let mut code = 0;
    while excess > 0 {
        for at in [reach + code, reach - code] {
            if excess > 0 && frequencies[at] > 1 {
                frequencies[at] -= 1;
                excess -= 1;
            }
        }
        code = (code + 1) % (reach + 1);
    }
    frequencies
}

fn levels(reach: usize, steps: f64, below: impl Fn(usize) -> [f64; 2]) -> Vec<f32> {
    let mean = |code: usize| {
        let ([p0, m0], [p1, m1]) = (below(code - 1), below(code));
        let middle = code as f64;
        match p1 - p0 > 1e-9 {
            true => ((m1 - m0) / (p1 - p0) * steps).clamp(middle - 0.5, middle + 0.5) as f32,
            false => middle as f32,
        }
    };
    std::iter::once(0.0).chain((1..=reach).map(mean)).collect()
}

/// `PRECISION - log2(frequency)` in units of [`COST_UNIT`], by repeated squaring of whole numbers.
fn cost(frequency: u32) -> u32 {
    let whole = 31 - frequency.leading_zeros();
    let mut mantissa = u64::from(frequency) << (31 - whole);
    let mut log2 = whole;
    for _ in 0..COST_UNIT {
        mantissa = (mantissa * mantissa) >> 31;
        let bit = u32::from(mantissa >= 1 << 32);
        mantissa >>= bit;
        log2 = log2 << 1 | bit;
    }
    (PRECISION << COST_UNIT) - log2
}

#[cfg(test)]
pub mod tests {
    use super::super::shape::SHAPE_LEN;
    use super::*;

    /// Magnitudes of a unit normal.
    pub fn normal() -> Shape {
        let mut mass = vec![0.0; SHAPE_LEN];
        for i in 0..6000 {
            let y = (f64::from(i) + 0.5) / 1000.0;
            Shape::spread(&mut mass, y - 0.0005, y + 0.0005, (-y * y / 2.0).exp());
        }
        Shape::new(&mass.iter().map(|mass| *mass as f32).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn costs_are_logarithms() {
        for frequency in [1, 2, 3, 5, 100, 1000, 2049, 4095, 4096] {
            let expected = 1024.0 * (12.0 - f64::from(frequency).log2());
            let got = f64::from(cost(frequency));
            assert!((got - expected).abs() <= 1.0, "{frequency}: {got}, {expected}");
        }
    }

    #[test]
    fn frequencies_of_every_model_fill_the_table_and_rise_towards_zero() {
        for index in 0..MODELS {
            let model = Model::new(&normal(), index);
            let sum: u32 = model.frequencies.iter().map(|f| u32::from(*f)).sum();
            assert_eq!(sum, TOTAL, "{index}");
            assert!(model.frequencies.iter().all(|frequency| *frequency > 0));
            let reach = model.reach as usize;
            let up = &model.frequencies[..=reach];
            assert!(up.windows(2).all(|pair| pair[0] <= pair[1] + 1), "{index} {up:?}");
        }
    }

    /// Entropy of a normal variable in steps of its rms / s: log2(s sqrt(2 pi e)).
    #[test]
    fn a_normal_feature_costs_its_entropy() {
        for (index, steps) in [(16, 1.0f64), (20, 2.0), (24, 4.0), (28, 8.0)] {
            let expected = (steps * (2.0 * std::f64::consts::PI * std::f64::consts::E).sqrt()).log2();
            let got = Model::new(&normal(), index).mean_cost() as f64 / 1024.0;
            // One rms a step: the formula for small steps is 0.06 bits too low.
            let tolerance = if index == 16 { 0.08 } else { 0.05 };
            assert!(
                (got - expected).abs() < tolerance,
                "{steps} steps: {got} bits, expected {expected}"
            );
        }
    }

    #[test]
    fn classes_are_the_nearest_quarter_octave_and_carry_low_bits_beyond_eight_steps() {
        let class = |ratio: f64| {
            let class = Class::nearest(ratio);
            (i32::from(class.model) + FINEST, class.shift)
        };
        assert_eq!(class(1.0), (0, 0));
        assert_eq!(class(1.0905), (0, 0));
        assert_eq!(class(1.0906), (1, 0));
        assert_eq!(class(8.0), (12, 0));
        assert_eq!(class(9.0), (9, 1));
        assert_eq!(class(16.0), (12, 1));
        assert_eq!(class(0.0), (FINEST, 0));
        assert_eq!(class(1e30), (12, MAX_SHIFT as u8));
        for at in FINEST..=COARSEST {
            assert_eq!(class(ladder(2 * at)), (at, 0));
        }
    }
}
