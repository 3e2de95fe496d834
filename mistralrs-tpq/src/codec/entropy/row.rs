//! The specification of a row: which gain, which codes, which bytes. All arithmetic is f32, rounded to nearest with ties to
//! even, never fused, except the energy behind the first guess of the gain.

use half::bf16;

use super::model::{Class, Model, COST_UNIT, ESCAPE_BITS};
use super::rans::{Decoder, Encoder, Full, MAX_LANES};
use crate::codec::bound::{of_bf16, of_level};
use crate::codec::rd::gain as rms;
use crate::codec::scalar::to_finite_bf16;
use crate::codec::values::Element;
use crate::codec::EncodeStats;

/// The largest gain, 2^96: with a step up to 2^8 and codes up to 2^18 every level is finite.
pub const MAX_GAIN: u16 = (96 + 127) << 7;
/// Guesses of the gain before intervals are halved.
const GUESSES: usize = 8;

/// One rank's features.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// Features that are sent, ascending; the others were zero in calibration.
    pub features: Vec<u32>,
    /// One for each of `features`.
    pub classes: Vec<Class>,
    /// In units of the gain.
    pub step: f32,
    pub inv_step: f32,
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

#[inline(always)]
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
#[inline(always)]
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

/// Reciprocal of a gain; zero makes every code zero.
fn reciprocal(gain: u16) -> f32 {
    match gain {
        0 => 0.0,
        bits => 1.0 / bf16::from_bits(bits).to_f32(),
    }
}

/// Cost of a row with this gain, in units of [`COST_UNIT`].
fn cost<T: Element>(layout: &Layout, models: &[Model], values: &[T], gain: u16) -> u64 {
    let inv_gain = reciprocal(gain);
    let coded = layout.features.iter().zip(&layout.classes);
    coded
        .map(|(feature, class)| {
            let model = &models[class.model as usize];
            let x = values[*feature as usize].to_f32();
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
fn gain_for<T: Element>(layout: &Layout, models: &[Model], values: &[T], budget: u64) -> u16 {
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

/// Encodes one row into `row`, all of whose bytes are written.
pub fn encode<T: Element>(
    layout: &Layout,
    models: &[Model],
    lanes: usize,
    values: &[T],
    row: &mut [u8],
) -> EncodeStats {
    let gain = fit(layout, models, lanes, values, row);
    count(layout, models, values, gain)
}

/// Encodes, and returns the gain: it grows until the row fits.
fn fit<T: Element>(layout: &Layout, models: &[Model], lanes: usize, values: &[T], row: &mut [u8]) -> u16 {
    let mut gain = gain_for(layout, models, values, budget(row.len(), lanes));
    while push_all(layout, models, lanes, values, gain, row).is_err() {
        // A row of zeros always fits: `EntropyTables` made rows that long.
        assert!(gain > 0, "a row of {} bytes has no room for zeros", row.len());
        gain = if gain >= MAX_GAIN { 0 } else { gain + 1 };
    }
    gain
}

/// What symbols may cost in a row: all but the gain and, of each state, the mean of what it holds beyond its lowest.
pub fn budget(row_len: usize, lanes: usize) -> u64 {
    let kept = 20 * lanes;
    ((row_len * 8).saturating_sub(kept) as u64) << COST_UNIT
}

/// Whether `values` fit into a row of `row_len` bytes with the gain zero, which makes them all zero.
pub fn fits(layout: &Layout, models: &[Model], lanes: usize, values: &[f32], row_len: usize) -> bool {
    push_all(layout, models, lanes, values, 0, &mut vec![0; row_len]).is_ok()
}

fn push_all<T: Element>(
    layout: &Layout,
    models: &[Model],
    lanes: usize,
    values: &[T],
    gain: u16,
    row: &mut [u8],
) -> Result<(), Full> {
    let inv_gain = reciprocal(gain);
    let mut encoder = Encoder::new(row, lanes, u32::from(gain));
    let coded = layout.features.iter().zip(&layout.classes).enumerate().rev();
    for (i, (feature, class)) in coded {
        let (model, lane) = (&models[class.model as usize], i % lanes % MAX_LANES);
        let x = values[*feature as usize].to_f32();
        let symbol = match code(model, *class, x, inv_gain, layout.inv_step) {
            Code::Symbol { symbol, low } => {
                encoder.push_raw(lane, low, u32::from(class.shift))?;
                symbol
            }
            Code::Escape(bits) => {
                encoder.push_raw(lane, u32::from(bits & 0xff), 8)?;
                encoder.push_raw(lane, u32::from(bits >> 8), 8)?;
                model.escape()
            }
        };
        encoder.push(
            lane,
            u32::from(model.starts[symbol]),
            u32::from(model.frequencies[symbol]),
        )?;
    }
    encoder.finish()
}

/// Clipped: not zero in a feature that was zero in calibration, or beyond the BF16 range.
fn count<T: Element>(layout: &Layout, models: &[Model], values: &[T], gain: u16) -> EncodeStats {
    let inv_gain = reciprocal(gain);
    let mut stats = EncodeStats::default();
    let mut coded = layout.features.iter().zip(&layout.classes).peekable();
    for (feature, x) in values.iter().enumerate() {
        let x = x.to_f32();
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

/// Adds a row to `sum`. `scratch` has a value for each feature that is sent. `None` for what no encoder sends; part of the row
/// may have been added then.
pub fn decode(
    layout: &Layout,
    models: &[Model],
    lanes: usize,
    row: &[u8],
    scratch: &mut [f32],
    sum: &mut [f32],
) -> Option<()> {
    let mut decoder = Decoder::new(row, lanes);
    let coded = layout.features.iter().zip(&layout.classes).zip(scratch.iter_mut());
    for (i, ((feature, class), place)) in coded.enumerate() {
        let (model, lane) = (&models[class.model as usize], i % lanes % MAX_LANES);
        let symbol = model.symbols[decoder.slot(lane) as usize] as usize;
        decoder.pop(
            lane,
            u32::from(model.starts[symbol]),
            u32::from(model.frequencies[symbol]),
        );
        *place = if symbol == model.escape() {
            let high = decoder.pop_raw(lane, 8);
            let low = decoder.pop_raw(lane, 8);
            let x = bf16::from_bits((high << 8 | low) as u16);
            if !x.is_finite() {
                return None;
            }
            sum[*feature as usize] += x.to_f32();
            0.0
        } else {
            let low = decoder.pop_raw(lane, u32::from(class.shift));
            level(model, *class, symbol, low) * layout.step
        };
    }
    // Only now the gain is known: it was pushed first.
    let gain = decoder.finish().filter(|gain| *gain <= u32::from(MAX_GAIN))?;
    let gain = bf16::from_bits(gain as u16).to_f32();
    for (feature, level) in layout.features.iter().zip(scratch) {
        sum[*feature as usize] += *level * gain;
    }
    Some(())
}

/// An upper bound of each value's error, by the same choices as [`encode`].
pub fn error_bound(layout: &Layout, models: &[Model], lanes: usize, row_len: usize, values: &[f32], bound: &mut [f32]) {
    let gain = fit(layout, models, lanes, values, &mut vec![0; row_len]);
    let inv_gain = reciprocal(gain);
    let step = f64::from(layout.step) * f64::from(bf16::from_bits(gain).to_f32());
    for (bound, x) in bound.iter_mut().zip(values) {
        *bound = if x.is_finite() { x.abs() } else { f32::INFINITY };
    }
    for (feature, class) in layout.features.iter().zip(&layout.classes) {
        let (x, feature) = (values[*feature as usize], *feature as usize);
        if gain == 0 || !x.is_finite() {
            continue;
        }
        let model = &models[class.model as usize];
        bound[feature] = match code(model, *class, x, inv_gain, layout.inv_step) {
            Code::Escape(_) => of_bf16(x),
            Code::Symbol { symbol, low } => {
                // Half a step to the code, and from there to its level. There is no range to leave.
                let level = level(model, *class, symbol, low);
                of_level(x, step, f32::MAX, 0.5 + (level - level.round()).abs())
            }
        };
    }
}
