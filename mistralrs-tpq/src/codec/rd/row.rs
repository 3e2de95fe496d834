//! The specification of a row of `rd`: plain loops that fix every bit. All arithmetic is f32, rounded to nearest with ties
//! to even, never fused, except the energy behind the gain.

use half::bf16;

use super::codebook::{self, magnitudes};
use super::layout::{Class, Layout, Planes, BLOCK, GAIN_LEN};
use crate::codec::scalar::{to_finite_bf16, BadWord};
use crate::codec::values::Element;
use crate::codec::EncodeStats;

/// The largest gain, 2^110: with steps up to 2^10 every level is finite. Louder rows saturate.
pub const MAX_GAIN: u16 = (110 + 127) << 7;

/// Root mean square of a row, as sent. NaN and infinity do not count; zero when below the smallest normal f32.
#[inline(always)]
pub(in crate::codec) fn gain<T: Element>(values: &[T]) -> bf16 {
    let counted = |x: f32| if x.is_finite() { x } else { 0.0 };
    gain_of(energy(values, counted), values.len())
}

/// Sum of squares. Each is exact in f64; they add up in 32 lanes, feature by feature, and the lanes in halves: one chain of
/// 4096 additions would take as long as all the rest of a row.
#[inline(always)]
pub fn energy<T: Element>(values: &[T], counted: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0.0_f64; BLOCK];
    let add = |(lane, x): (&mut f64, &T)| {
        let x = f64::from(counted(x.to_f32()));
        *lane += x * x;
    };
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    blocks
        .iter()
        .for_each(|block| lanes.iter_mut().zip(block).for_each(add));
    lanes.iter_mut().zip(rest).for_each(add);
    added_in_halves(lanes)
}

/// The sum of what the lanes of [`energy`] hold.
#[inline(always)]
pub fn added_in_halves(mut lanes: [f64; BLOCK]) -> f64 {
    let mut half = BLOCK / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
        half /= 2;
    }
    lanes[0]
}

/// The gain of a row of `len` values.
#[inline]
pub fn gain_of(energy: f64, len: usize) -> bf16 {
    let gain = to_finite_bf16((energy / len.max(1) as f64).sqrt() as f32);
    if gain.to_f32() < f32::MIN_POSITIVE {
        bf16::ZERO
    } else {
        bf16::from_bits(gain.to_bits().min(MAX_GAIN))
    }
}

/// The gain of a row as a peer sent it. Refuses one with which a level is not finite.
#[inline]
pub fn received_gain(row: &[u8]) -> Result<f32, BadWord> {
    let bits = u16::from_le_bytes([row[0], row[1]]);
    if bits > MAX_GAIN {
        return Err(BadWord { feature: 0, bits });
    }
    Ok(bf16::from_bits(bits).to_f32())
}

pub fn encode<T: Element>(layout: &Layout, values: &[T], row: &mut [u8]) -> EncodeStats {
    let gain = gain(values);
    let inv_gain = reciprocal(gain);
    let nonfinite = values.iter().filter(|x| !x.to_f32().is_finite()).count() as u64;
    let mut stats = EncodeStats { clipped: 0, nonfinite };
    row.fill(0);
    row[..GAIN_LEN].copy_from_slice(&gain.to_le_bytes());
    let planes = layout.planes();
    let mut cursor = Cursor::new(&planes);
    for class in layout.classes() {
        if class.bits == 16 {
            stats.clipped += put_words(&class, |feature| values[feature].to_f32(), &mut row[planes.words..]);
            continue;
        }
        let slots = class.order.as_flattened().iter().zip(class.inv_steps.as_flattened());
        for (&feature, inv_step) in slots.take(class.count) {
            let x = values[feature as usize].to_f32();
            let x = if x.is_nan() { 0.0 } else { x };
            let position = (x.clamp(f32::MIN, f32::MAX) * inv_gain) * inv_step;
            let index = codebook::nearest(class.bits, position.abs());
            stats.clipped += u64::from(x.is_finite() && position.abs() > codebook::clip(class.bits));
            let sign = usize::from(position < 0.0) * magnitudes(class.bits);
            cursor.put(row, class.bits, (sign | index) as u8);
        }
    }
    stats
}

/// 1 / gain, zero for zero: then every position is zero.
#[inline]
pub fn reciprocal(gain: bf16) -> f32 {
    if gain == bf16::ZERO {
        0.0
    } else {
        1.0 / gain.to_f32()
    }
}

/// Writes the features of 16 bits, and returns how many of them were finite and are not as BF16.
#[inline(always)]
pub fn put_words(class: &Class<'_>, value: impl Fn(usize) -> f32, words: &mut [u8]) -> u64 {
    let mut clipped = 0;
    let order = class.order.as_flattened().iter().take(class.count);
    for (word, &feature) in words.as_chunks_mut().0.iter_mut().zip(order) {
        let x = value(feature as usize);
        *word = to_finite_bf16(x).to_le_bytes();
        clipped += u64::from(x.is_finite() && bf16::from_f32(x).is_infinite());
    }
    clipped
}

/// Adds a row to `sum`, slot by slot. Refuses what no encoder sends.
pub fn decode(layout: &Layout, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
    let gain = received_gain(row)?;
    let planes = layout.planes();
    let mut cursor = Cursor::new(&planes);
    for class in layout.classes() {
        if class.bits == 16 {
            take_words(&class, &row[planes.words..], |feature, x| sum[feature] += x)?;
            continue;
        }
        let slots = class.order.as_flattened().iter().zip(class.steps.as_flattened());
        for (&feature, step) in slots.take(class.count) {
            let code = cursor.take(row, class.bits) as usize;
            sum[feature as usize] += level(class.bits, code) * (step * gain);
        }
    }
    Ok(())
}

/// What a code stands for, in steps.
#[inline(always)]
pub const fn level(bits: u8, code: usize) -> f32 {
    let magnitude = codebook::level(bits, code & (magnitudes(bits) - 1));
    if code < magnitudes(bits) {
        magnitude
    } else {
        -magnitude
    }
}

/// Reads the features of 16 bits, up to one that is not finite.
#[inline(always)]
pub fn take_words(class: &Class<'_>, words: &[u8], mut add: impl FnMut(usize, f32)) -> Result<(), BadWord> {
    let order = class.order.as_flattened().iter().take(class.count);
    for (word, &feature) in words.as_chunks().0.iter().zip(order) {
        let (feature, x) = (feature as usize, bf16::from_le_bytes(*word));
        if !x.is_finite() {
            let bits = x.to_bits();
            return Err(BadWord { feature, bits });
        }
        add(feature, x.to_f32());
    }
    Ok(())
}

/// Where the next code of each plane is, in units of the plane.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    bytes: usize,
    nibbles: usize,
    crumbs: usize,
    singles: usize,
}

impl Cursor {
    fn new(planes: &Planes) -> Self {
        Self {
            bytes: planes.bytes,
            nibbles: planes.nibbles * 2,
            crumbs: planes.crumbs * 4,
            singles: planes.singles * 8,
        }
    }

    /// The low bits of a code of 6 or 5 are its nibble, those of 3 its crumb.
    #[inline(always)]
    fn put(&mut self, row: &mut [u8], bits: u8, code: u8) {
        if bits == 8 {
            row[self.bytes] = code;
            self.bytes += 1;
            return;
        }
        let mut code = code;
        if bits >= 4 {
            row[self.nibbles / 2] |= (code & 0x0f) << (self.nibbles % 2 * 4);
            self.nibbles += 1;
            code >>= 4;
        }
        if bits & 2 != 0 {
            row[self.crumbs / 4] |= (code & 3) << (self.crumbs % 4 * 2);
            self.crumbs += 1;
            code >>= 2;
        }
        if bits & 1 != 0 {
            row[self.singles / 8] |= (code & 1) << (self.singles % 8);
            self.singles += 1;
        }
    }

    #[inline(always)]
    fn take(&mut self, row: &[u8], bits: u8) -> u8 {
        if bits == 8 {
            self.bytes += 1;
            return row[self.bytes - 1];
        }
        let (mut code, mut shift) = (0, 0);
        if bits >= 4 {
            code |= row[self.nibbles / 2] >> (self.nibbles % 2 * 4) & 0x0f;
            self.nibbles += 1;
            shift = 4;
        }
        if bits & 2 != 0 {
            code |= (row[self.crumbs / 4] >> (self.crumbs % 4 * 2) & 3) << shift;
            self.crumbs += 1;
            shift += 2;
        }
        if bits & 1 != 0 {
            code |= (row[self.singles / 8] >> (self.singles % 8) & 1) << shift;
            self.singles += 1;
        }
        code
    }
}
