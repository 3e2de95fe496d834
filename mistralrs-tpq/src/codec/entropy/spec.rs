//! The specification of a row, as plain as it can be said: one value after the other, a division for each symbol and a loop
//! for each byte. `row.rs` and `rans.rs` give the same bytes and sums; the test below compares them.

use half::bf16;
use proptest::prelude::*;

use super::layout::Layout;
use super::model::{Class, Model, COST_UNIT, ESCAPE_BITS};
use super::rans::{head_len, CARRIED, PRECISION, TOTAL};
use super::row::{budget, reciprocal, Scratch, GUESSES, MAX_GAIN};
use super::{EntropyTables, RdEntropy};
use crate::codec::rd::row::gain as rms;
use crate::codec::scalar::to_finite_bf16;
use crate::codec::{Codec, Dtype, EncodeStats, Level, Values};

const LOWEST: u32 = 1 << CARRIED;

/// A stack of symbols with interleaved states; bytes in the order in which they were pushed.
struct Stack {
    states: Vec<u32>,
    bytes: Vec<u8>,
    /// More bytes were taken than there were.
    overdrawn: bool,
}

impl Stack {
    fn new(lanes: usize, carried: u32) -> Self {
        let mut states = vec![LOWEST; lanes];
        states[0] |= carried;
        Self {
            states,
            bytes: Vec::new(),
            overdrawn: false,
        }
    }

    fn push(&mut self, i: usize, start: u32, frequency: u32) {
        let lane = i % self.states.len();
        let state = &mut self.states[lane];
        while *state >= frequency << (CARRIED - PRECISION + 8) {
            self.bytes.push(*state as u8);
            *state >>= 8;
        }
        *state = ((*state / frequency) << PRECISION) + *state % frequency + start;
    }

    fn push_raw(&mut self, i: usize, value: u32, bits: u32) {
        let shift = PRECISION - bits;
        self.push(i, value << shift, 1 << shift);
    }

    /// The states, the bytes in the order of decoding, zeros. `None`: no room.
    fn row(&self, row_len: usize) -> Option<Vec<u8>> {
        let states = self
            .states
            .iter()
            .flat_map(|state| state.to_le_bytes().into_iter().take(3));
        let mut row: Vec<u8> = states.chain(self.bytes.iter().rev().copied()).collect();
        let fits = row.len() <= row_len;
        row.resize(row_len, 0);
        fits.then_some(row)
    }

    fn of(row: &[u8], lanes: usize) -> Self {
        let (head, bytes) = row.split_at(head_len(lanes));
        let state = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
        Self {
            states: head.chunks(3).map(state).collect(),
            bytes: bytes.iter().rev().copied().collect(),
            overdrawn: false,
        }
    }

    fn slot(&self, i: usize) -> u32 {
        self.states[i % self.states.len()] & (TOTAL - 1)
    }

    fn pop(&mut self, i: usize, start: u32, frequency: u32) {
        let lane = i % self.states.len();
        let state = &mut self.states[lane];
        *state = frequency * (*state >> PRECISION) + (*state & (TOTAL - 1)) - start;
        for _ in 0..2 {
            if *state < LOWEST {
                let byte = self.bytes.pop();
                self.overdrawn |= byte.is_none();
                *state = *state << 8 | u32::from(byte.unwrap_or(0));
            }
        }
    }

    fn pop_raw(&mut self, i: usize, bits: u32) -> u32 {
        let shift = PRECISION - bits;
        let value = self.slot(i) >> shift;
        self.pop(i, value << shift, 1 << shift);
        value
    }

    fn carried(&self) -> Option<u32> {
        let (first, others) = self.states.split_first()?;
        let ended = !self.overdrawn
            && first >> CARRIED == 1
            && others.iter().all(|state| *state == LOWEST)
            && self.bytes.iter().all(|byte| *byte == 0);
        ended.then_some(first & (LOWEST - 1))
    }
}

/// What a value becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    /// Symbol of the model, and low bits.
    Symbol {
        symbol: usize,
        low: u32,
    },
    Escape(u16),
}

fn code(model: &Model, class: Class, x: f32, inv_gain: f32, inv_step: f32) -> Code {
    let x = if x.is_nan() { 0.0 } else { x };
    // The cast saturates, and the sum cannot: codes that a model reaches are below 2^18.
    let position = ((x * inv_gain) * inv_step).round_ties_even() as i32;
    let position = position.clamp(-(1 << 30), 1 << 30) + (1 << class.shift >> 1);
    let symbol = (position >> class.shift) + model.reach;
    if (0..=2 * model.reach).contains(&symbol) {
        Code::Symbol {
            symbol: symbol as usize,
            low: position as u32 & ((1 << class.shift) - 1),
        }
    } else {
        Code::Escape(to_finite_bf16(x).to_bits())
    }
}

/// In steps: what a receiver makes of a symbol.
fn level(model: &Model, class: Class, symbol: usize, low: u32) -> f32 {
    let code = symbol as i32 - model.reach;
    if class.shift > 0 {
        return ((code << class.shift) - (1 << class.shift >> 1) + low as i32) as f32;
    }
    let magnitude = model.levels[code.unsigned_abs() as usize];
    if code < 0 {
        -magnitude
    } else {
        magnitude
    }
}

/// Cost of a row with this gain, in units of [`COST_UNIT`].
fn cost(layout: &Layout, models: &[Model], values: &[f32], gain: u16) -> u64 {
    let inv_gain = reciprocal(gain);
    let coded = layout.features.iter().zip(&layout.classes);
    coded
        .map(|(feature, class)| {
            let model = &models[class.model as usize];
            let x = values[*feature as usize];
            match code(model, *class, x, inv_gain, layout.inv_step) {
                Code::Symbol { symbol, .. } => u64::from(model.costs[symbol] + (u32::from(class.shift) << COST_UNIT)),
                Code::Escape(_) => u64::from(model.costs[model.escape()] + (ESCAPE_BITS << COST_UNIT)),
            }
        })
        .sum()
}

/// The smallest gain found whose row costs at most `budget` (units of [`COST_UNIT`]), as BF16; zero if none does.
///
/// Newton's method on the exponent scale, where an octave of the gain is nearly a bit a value, then halving.
fn gain_for(layout: &Layout, models: &[Model], values: &[f32], budget: u64) -> u16 {
    let mut at = i64::from(rms(values).to_bits().min(MAX_GAIN));
    if at == 0 {
        return 0;
    }
    // The cost that one unit of a BF16's bits is worth, a 128th of an octave.
    let unit = (layout.features.len() as i64 * (1 << COST_UNIT) / 128).max(1);
    // Known to cost too much, and known to fit (or beyond all gains).
    let (mut low, mut high) = (0, i64::from(MAX_GAIN) + 1);
    for guess in 0.. {
        let excess = cost(layout, models, values, at as u16) as i64 - budget as i64;
        if excess > 0 {
            low = at;
        } else {
            high = at;
        }
        let done = high - low <= 1 || (excess <= 0 && -excess < unit);
        if done {
            break;
        }
        at = if guess < GUESSES {
            // Rounded up: a gain that fits is wanted.
            (at + (excess + unit - 1).div_euclid(unit)).clamp(low + 1, high - 1)
        } else {
            (low + high) / 2
        };
    }
    u16::try_from(high).ok().filter(|high| *high <= MAX_GAIN).unwrap_or(0)
}

/// The row, and its gain: it grows until the row fits.
fn encode(tables: &EntropyTables, layout: &Layout, values: &[f32]) -> (Vec<u8>, EncodeStats) {
    let models = &tables.tables.models;
    let mut gain = gain_for(layout, models, values, budget(tables.row_len, tables.lanes));
    loop {
        if let Some(row) = push_all(layout, models, tables.lanes, values, gain).row(tables.row_len) {
            return (row, count(layout, models, values, gain));
        }
        gain = if gain >= MAX_GAIN { 0 } else { gain + 1 };
    }
}

fn push_all(layout: &Layout, models: &[Model], lanes: usize, values: &[f32], gain: u16) -> Stack {
    let inv_gain = reciprocal(gain);
    let mut stack = Stack::new(lanes, u32::from(gain));
    let coded = layout.features.iter().zip(&layout.classes).enumerate().rev();
    for (i, (feature, class)) in coded {
        let model = &models[class.model as usize];
        let symbol = match code(model, *class, values[*feature as usize], inv_gain, layout.inv_step) {
            Code::Symbol { symbol, low } => {
                stack.push_raw(i, low, u32::from(class.shift));
                symbol
            }
            Code::Escape(bits) => {
                stack.push_raw(i, u32::from(bits & 0xff), 8);
                stack.push_raw(i, u32::from(bits >> 8), 8);
                model.escape()
            }
        };
        stack.push(i, u32::from(model.starts[symbol]), u32::from(model.frequencies[symbol]));
    }
    stack
}

/// Clipped: not zero in a feature that was zero in calibration, or beyond the BF16 range.
fn count(layout: &Layout, models: &[Model], values: &[f32], gain: u16) -> EncodeStats {
    let inv_gain = reciprocal(gain);
    let mut stats = EncodeStats::default();
    let mut coded = layout.features.iter().zip(&layout.classes).peekable();
    for (feature, &x) in values.iter().enumerate() {
        let class = coded.next_if(|(coded, _)| **coded as usize == feature);
        if !x.is_finite() {
            stats.nonfinite += 1;
            continue;
        }
        let lost = match class {
            None => x != 0.0,
            Some((_, class)) => {
                bf16::from_f32(x).is_infinite()
                    && matches!(
                        code(&models[class.model as usize], *class, x, inv_gain, layout.inv_step),
                        Code::Escape(_)
                    )
            }
        };
        stats.clipped += u64::from(lost);
    }
    stats
}

/// Adds a row to `sum`. `None` for what no encoder sends.
fn decode(tables: &EntropyTables, layout: &Layout, row: &[u8], sum: &mut [f32]) -> Option<()> {
    let mut stack = Stack::of(row, tables.lanes);
    let mut levels = Vec::new();
    for (i, (feature, class)) in layout.features.iter().zip(&layout.classes).enumerate() {
        let model = &tables.tables.models[class.model as usize];
        let slot = stack.slot(i) as u16;
        let symbol = model.starts.iter().rposition(|start| *start <= slot)?;
        stack.pop(i, u32::from(model.starts[symbol]), u32::from(model.frequencies[symbol]));
        if symbol == model.escape() {
            let high = stack.pop_raw(i, 8);
            let low = stack.pop_raw(i, 8);
            let x = bf16::from_bits((high << 8 | low) as u16);
            if !x.is_finite() {
                return None;
            }
            sum[*feature as usize] += x.to_f32();
            levels.push(0.0);
        } else {
            let low = stack.pop_raw(i, u32::from(class.shift));
            levels.push(level(model, *class, symbol, low) * layout.step);
        }
    }
    // Only now the gain is known: it was pushed first.
    let gain = stack.carried().filter(|gain| *gain <= u32::from(MAX_GAIN))?;
    let gain = bf16::from_bits(gain as u16).to_f32();
    for (feature, level) in layout.features.iter().zip(levels) {
        sum[*feature as usize] += level * gain;
    }
    Some(())
}

/// Of a bell-shaped layer.
fn tables(rms: &[f64], bits: f64) -> EntropyTables {
    let mut mass = vec![0.0; super::SHAPE_LEN];
    for i in 0..300 {
        let y = (f64::from(i) + 0.5) / 50.0;
        super::Shape::spread(&mut mass, y - 0.01, y + 0.01, (-y * y / 2.0).exp());
    }
    let shape: Vec<f32> = mass.into_iter().map(|mass| mass as f32).collect();
    EntropyTables::new(&shape, &[rms.to_vec()], bits).unwrap()
}

fn any_features() -> impl Strategy<Value = Vec<(f64, f32)>> {
    let rms = prop_oneof![1 => Just(0.0), 6 => 0.1f64..3.0, 1 => 1e-5f64..1e3];
    let value = prop_oneof![
        12 => -3.0f32..3.0,
        1 => prop::sample::select(vec![0.0, -0.0, 1e-42, 50.0, -1e6, 3e38, f32::MAX, f32::NAN, f32::INFINITY]),
    ];
    prop_oneof![
        prop::collection::vec((rms.clone(), -3.0f32..3.0), 1..60),
        prop::collection::vec((rms, value), 1..60),
    ]
}

proptest! {
    #[test]
    fn the_fast_coder_gives_the_bits_of_the_specification(
        features in any_features(),
        // Rows long enough for several lanes repeat their features.
        repeats in prop_oneof![3 => Just(1usize), 1 => 40usize..150],
        bits in 1.0f64..9.0,
        damage in any::<(prop::sample::Index, u8)>(),
    ) {
        let rms: Vec<f64> = features.iter().map(|(rms, _)| *rms).cycle().take(features.len() * repeats).collect();
        let tables = tables(&rms, bits);
        let layout = &tables.ranks[0];
        let values: Vec<f32> = features
            .iter()
            .zip(&rms)
            .map(|((_, x), rms)| x * *rms as f32)
            .cycle()
            .take(rms.len())
            .enumerate()
            .map(|(i, x)| x * (1 + i % 7) as f32 * 0.3)
            .collect();
        let (mut row, stats) = encode(&tables, layout, &values);
        for level in Level::all() {
            let codec = RdEntropy::new(tables.clone()).with_level(level);
            let mut payload = vec![0xa5; codec.payload_len(1, Dtype::F32)];
            prop_assert_eq!(codec.encode(0, Values::F32(&values), &mut payload), stats);
            prop_assert!(payload == row, "{} of {} bytes differ", payload.iter().zip(&row).filter(|(a, b)| a != b).count(), row.len());
        }
        for xor in [0, damage.1] {
            *damage.0.get_mut(&mut row) ^= xor;
            let mut expected = vec![-0.0; values.len()];
            let mut got = expected.clone();
            let codec = RdEntropy::new(tables.clone());
            let ended = decode(&tables, layout, &row, &mut expected);
            let result = codec.coder(layout).decode(&row, &mut Scratch::default(), &mut got);
            prop_assert_eq!(result, ended);
            let bits = |sum: &[f32]| sum.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert!(ended.is_none() || bits(&got) == bits(&expected));
        }
    }
}
