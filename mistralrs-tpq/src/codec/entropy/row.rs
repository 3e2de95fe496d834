//! A row: which gain, which codes, which bytes. The loops are arranged for speed; `spec.rs`, which only tests build, says the
//! same plainly, and a test compares them. All arithmetic is f32, rounded to nearest with ties to even, never fused, except
//! the energy behind the first guess of the gain.

use half::bf16;

use super::layout::Layout;
use super::model::COST_UNIT;
use super::rans::{Decoder, Encoder, Full};
use super::tables::Tables;
use crate::codec::bound::{of_bf16, of_level};
use crate::codec::scalar::to_finite_bf16;
use crate::codec::values::Element;
use crate::codec::{EncodeStats, Level};

/// The largest gain, 2^96: with a step up to 2^8 and codes up to 2^18 every level is finite.
pub const MAX_GAIN: u16 = (96 + 127) << 7;
/// Guesses of the gain before intervals are halved.
pub const GUESSES: usize = 8;

/// The rows of one rank.
#[derive(Debug, Clone, Copy)]
pub struct Coder<'a> {
    pub layout: &'a Layout,
    pub tables: &'a Tables,
    pub lanes: usize,
    pub level: Level,
}

/// A row's values, and what they become with the gain looked at last. Grows to the widest layer of a thread once.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The whole row; then those that are sent.
    wide: Vec<f32>,
    x: Vec<f32>,
    codes: Vec<i32>,
    places: Vec<i32>,
}

impl Scratch {
    fn prepare(&mut self, width: usize) {
        if self.wide.len() < width {
            self.wide.resize(width, 0.0);
            self.x.resize(width, 0.0);
            self.codes.resize(width, 0);
            self.places.resize(width, 0);
        }
    }
}

/// Reciprocal of a gain; zero makes every code zero.
pub fn reciprocal(gain: u16) -> f32 {
    match gain {
        0 => 0.0,
        bits => 1.0 / bf16::from_bits(bits).to_f32(),
    }
}

/// What symbols may cost in a row: all but the gain and, of each state, the mean of what it holds beyond its lowest.
pub fn budget(row_len: usize, lanes: usize) -> u64 {
    let kept = 20 * lanes;
    ((row_len * 8).saturating_sub(kept) as u64) << COST_UNIT
}

impl Coder<'_> {
    /// Encodes one row into `row`, all of whose bytes are written.
    pub fn encode<T: Element>(&self, values: &[T], scratch: &mut Scratch, row: &mut [u8]) -> EncodeStats {
        self.gather(values, scratch);
        self.fit(self.level.gain(&scratch.wide[..values.len()]), scratch, row);
        self.count(&scratch.wide[..values.len()], scratch)
    }

    /// Whether a row of `row_len` bytes has room for zeros, which every row becomes with a gain of zero.
    pub fn fits_zeros(&self, row_len: usize) -> bool {
        let mut scratch = Scratch::default();
        scratch.prepare(self.layout.features.len());
        self.locate(0, &mut scratch);
        self.push_all(0, &scratch, &mut vec![0; row_len]).is_ok()
    }

    fn gather<T: Element>(&self, values: &[T], scratch: &mut Scratch) {
        scratch.prepare(values.len());
        let wide = &mut scratch.wide[..values.len()];
        self.level.widen(values, wide);
        let Layout { features, absent, .. } = self.layout;
        if absent.is_empty() {
            scratch.x[..features.len()].copy_from_slice(wide);
            return;
        }
        for (x, feature) in scratch.x.iter_mut().zip(features) {
            *x = wide[*feature as usize];
        }
    }

    /// Finds codes and places with this gain, and returns what the row costs, in units of [`COST_UNIT`].
    fn locate(&self, gain: u16, scratch: &mut Scratch) -> u64 {
        let Scratch { x, codes, places, .. } = scratch;
        let len = self.layout.features.len();
        let (x, codes, places) = (&x[..len], &mut codes[..len], &mut places[..len]);
        self.level.locate(self.layout, x, reciprocal(gain), codes, places);
        let costs = places.iter().map(|place| u64::from(self.tables.costs[*place as usize]));
        costs.sum()
    }

    /// Encodes with the smallest gain whose row fits, as BF16, and returns it.
    fn fit(&self, rms: bf16, scratch: &mut Scratch, row: &mut [u8]) -> u16 {
        let (mut gain, mut located) = self.gain_for(rms, budget(row.len(), self.lanes), scratch);
        loop {
            if located != Some(gain) {
                self.locate(gain, scratch);
            }
            if self.push_all(gain, scratch, row).is_ok() {
                return gain;
            }
            // A row of zeros always fits: `EntropyTables` made rows that long.
            assert!(gain > 0, "a row of {} bytes has no room for zeros", row.len());
            gain = if gain >= MAX_GAIN { 0 } else { gain + 1 };
            located = None;
        }
    }

    /// The smallest gain found whose row costs at most `budget` (units of [`COST_UNIT`]), as BF16; zero if none does. Also the
    /// gain for which values were located last.
    ///
    /// Newton's method on the exponent scale, where an octave of the gain is nearly a bit a value, then halving.
    fn gain_for(&self, rms: bf16, budget: u64, scratch: &mut Scratch) -> (u16, Option<u16>) {
        let mut at = i64::from(rms.to_bits().min(MAX_GAIN));
        if at == 0 {
            return (0, None);
        }
        // The cost that one unit of a BF16's bits is worth, a 128th of an octave.
        let unit = (self.layout.features.len() as i64 * (1 << COST_UNIT) / 128).max(1);
        // Known to cost too much, and known to fit (or beyond all gains).
        let (mut low, mut high) = (0, i64::from(MAX_GAIN) + 1);
        let mut guess = 0;
        let located = loop {
            let excess = self.locate(at as u16, scratch) as i64 - budget as i64;
            if excess > 0 {
                low = at;
            } else {
                high = at;
            }
            if high - low <= 1 || (excess <= 0 && -excess < unit) {
                break at;
            }
            at = if guess < GUESSES {
                // Rounded up: a gain that fits is wanted.
                (at + (excess + unit - 1).div_euclid(unit)).clamp(low + 1, high - 1)
            } else {
                (low + high) / 2
            };
            guess += 1;
        };
        let found = u16::try_from(high).ok().filter(|high| *high <= MAX_GAIN).unwrap_or(0);
        (found, u16::try_from(located).ok())
    }

    fn push_all(&self, gain: u16, scratch: &Scratch, row: &mut [u8]) -> Result<(), Full> {
        let len = self.layout.features.len();
        let mut encoder = Encoder::new(row, self.lanes, u32::from(gain));
        // One beyond the lane of the last.
        let mut lane = (len + self.lanes - 1) % self.lanes + 1;
        for (i, place) in scratch.places[..len].iter().enumerate().rev() {
            lane = if lane == 0 { self.lanes } else { lane } - 1;
            let symbol = &self.tables.symbols[*place as usize];
            if symbol.escapes {
                let bits = u32::from(to_finite_bf16(scratch.x[i]).to_bits());
                encoder.push_raw(lane, bits & 0xff, 8)?;
                encoder.push_raw(lane, bits >> 8, 8)?;
            } else if symbol.low_bits > 0 {
                let low = scratch.codes[i] as u32 & ((1 << symbol.low_bits) - 1);
                encoder.push_raw(lane, low, u32::from(symbol.low_bits))?;
            }
            encoder.push(lane, symbol.push)?;
        }
        encoder.finish()
    }

    /// Clipped: not zero in a feature that was zero in calibration, or beyond the BF16 range.
    fn count(&self, wide: &[f32], scratch: &Scratch) -> EncodeStats {
        let Layout { features, absent, .. } = self.layout;
        let absent = absent.iter().map(|feature| wide[*feature as usize]);
        let mut stats = EncodeStats {
            clipped: absent.filter(|x| x.is_finite() && *x != 0.0).count() as u64,
            nonfinite: 0,
        };
        if wide
            .iter()
            .fold(true, |inside, x| inside & (x.abs() <= bf16::MAX.to_f32_const()))
        {
            return stats;
        }
        stats.nonfinite = wide.iter().filter(|x| !x.is_finite()).count() as u64;
        let coded = scratch.x.iter().zip(&scratch.places).take(features.len());
        let lost =
            |(x, place): &(&f32, &i32)| x.is_finite() && bf16::from_f32(**x).is_infinite() && self.escapes(**place);
        stats.clipped += coded.filter(lost).count() as u64;
        stats
    }

    fn escapes(&self, place: i32) -> bool {
        self.tables.symbols[place as usize].escapes
    }

    /// Adds a row to `sum`. `None` for what no encoder sends; part of the row may have been added then.
    pub fn decode(&self, row: &[u8], scratch: &mut Scratch, sum: &mut [f32]) -> Option<()> {
        let Layout {
            features,
            absent,
            classes,
            step,
            ..
        } = self.layout;
        scratch.prepare(sum.len());
        let levels = &mut scratch.x[..features.len()];
        let mut decoder = Decoder::new(row, self.lanes);
        let mut next = 0;
        for (i, (class, level)) in classes.iter().zip(&mut *levels).enumerate() {
            let lane = next;
            next = if lane + 1 == self.lanes { 0 } else { lane + 1 };
            let (model, shift) = (self.tables.model(*class), u32::from(class.shift));
            let symbol = model.symbols[decoder.slot(lane) as usize];
            let decoded = model.decoded[usize::from(symbol)];
            decoder.pop(lane, u32::from(decoded.start), u32::from(decoded.frequency));
            let code = i32::from(symbol) - model.reach;
            let mut in_steps = decoded.level;
            if code > model.reach {
                let high = decoder.pop_raw(lane, 8);
                let low = decoder.pop_raw(lane, 8);
                let x = bf16::from_bits((high << 8 | low) as u16);
                if !x.is_finite() {
                    return None;
                }
                sum[features[i] as usize] += x.to_f32();
            } else if shift > 0 {
                let low = decoder.pop_raw(lane, shift) as i32;
                in_steps = class.position(code << shift | low) as f32;
            }
            *level = in_steps * step;
        }
        // Only now the gain is known: it was pushed first.
        let gain = decoder.finish().filter(|gain| *gain <= u32::from(MAX_GAIN))?;
        let gain = bf16::from_bits(gain as u16).to_f32();
        if absent.is_empty() {
            sum.iter_mut()
                .zip(levels)
                .for_each(|(sum, level)| *sum += *level * gain);
            return Some(());
        }
        for (feature, level) in features.iter().zip(levels) {
            sum[*feature as usize] += *level * gain;
        }
        Some(())
    }

    /// An upper bound of each value's error, by the same choices as [`Coder::encode`].
    pub fn error_bound(&self, row_len: usize, values: &[f32], bound: &mut [f32]) {
        let mut scratch = Scratch::default();
        self.gather(values, &mut scratch);
        let gain = self.fit(self.level.gain(values), &mut scratch, &mut vec![0; row_len]);
        let step = f64::from(self.layout.step) * f64::from(bf16::from_bits(gain).to_f32());
        for (bound, x) in bound.iter_mut().zip(values) {
            *bound = if x.is_finite() { x.abs() } else { f32::INFINITY };
        }
        let coded = self.layout.features.iter().zip(&self.layout.classes);
        for ((feature, class), (code, place)) in coded.zip(scratch.codes.iter().zip(&scratch.places)) {
            let x = values[*feature as usize];
            if gain == 0 || !x.is_finite() {
                continue;
            }
            bound[*feature as usize] = if self.escapes(*place) {
                of_bf16(x)
            } else {
                // Half a step to the code, and from there to its level. There is no range to leave.
                let level = self.tables.model(*class).level(*class, *code);
                of_level(x, step, f32::MAX, 0.5 + (level - level.round()).abs())
            };
        }
    }
}
