//! The specification of a row of `rd`: plain loops that fix every bit. All arithmetic is f32, rounded to nearest with ties
//! to even, never fused, except the energy behind the gain.

use half::bf16;

use super::codebook::{self, magnitudes};
use crate::codec::scalar::{to_finite_bf16, BadWord};
use crate::codec::values::Element;
use crate::codec::EncodeStats;

/// Bytes of the gain, which begins a row.
pub const GAIN_LEN: usize = 2;
/// The largest gain, 2^110: with steps up to 2^10 every level is finite. Louder rows saturate.
pub const MAX_GAIN: u16 = (110 + 127) << 7;

/// One rank's features in the order of their slots.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// Features of 16 bits, ascending, then of 8, 6, 5, 4, 3, 2 and 1; those of 0 bits are absent.
    pub order: Vec<u32>,
    /// How many features each of these classes has, in the same order.
    pub counts: [usize; SENT.len()],
    /// By feature: step in units of the gain, and its reciprocal; zero for 0 and 16 bits.
    pub steps: Vec<f32>,
    pub inv_steps: Vec<f32>,
}

/// Classes that are sent, in the order of a row.
pub const SENT: [u8; 8] = [16, 8, 6, 5, 4, 3, 2, 1];

/// Bytes of a row: gain, words, bytes, then three planes of nibbles (4 bits of the classes 6, 5 and 4), crumbs (2 bits of 6,
/// 3 and 2) and single bits (1 bit of 5, 3 and 1), each padded to whole bytes. Planes shared by classes cost at most 17 bits
/// of padding a row, where a plane for each class would cost up to 40.
pub const fn row_len(counts: &[usize; SENT.len()]) -> usize {
    let [n16, n8, n6, n5, n4, n3, n2, n1] = *counts;
    let nibbles = n6 + n5 + n4;
    let crumbs = n6 + n3 + n2;
    let singles = n5 + n3 + n1;
    GAIN_LEN + 2 * n16 + n8 + nibbles.div_ceil(2) + crumbs.div_ceil(4) + singles.div_ceil(8)
}

/// Root mean square of a row, as sent. NaN and infinity do not count; zero when below the smallest normal f32.
#[inline]
pub fn gain<T: Element>(values: &[T]) -> bf16 {
    let energy: f64 = values
        .iter()
        .map(|x| x.to_f32())
        .filter(|x| x.is_finite())
        .map(|x| f64::from(x) * f64::from(x))
        .sum();
    let gain = to_finite_bf16((energy / values.len().max(1) as f64).sqrt() as f32);
    if gain.to_f32() < f32::MIN_POSITIVE {
        bf16::ZERO
    } else {
        bf16::from_bits(gain.to_bits().min(MAX_GAIN))
    }
}

#[inline]
pub fn encode<T: Element>(layout: &Layout, values: &[T], row: &mut [u8]) -> EncodeStats {
    let gain = gain(values);
    let inv_gain = if gain == bf16::ZERO { 0.0 } else { 1.0 / gain.to_f32() };
    let nonfinite = values.iter().filter(|x| !x.to_f32().is_finite()).count() as u64;
    let mut stats = EncodeStats { clipped: 0, nonfinite };
    row.fill(0);
    row[..GAIN_LEN].copy_from_slice(&gain.to_le_bytes());
    let mut planes = Planes::new(layout, GAIN_LEN);
    layout.for_each(|bits, feature| {
        let x = values[feature].to_f32();
        if bits == 16 {
            planes.put_word(row, to_finite_bf16(x).to_le_bytes());
            stats.clipped += u64::from(x.is_finite() && bf16::from_f32(x).is_infinite());
            return;
        }
        let x = if x.is_nan() { 0.0 } else { x };
        let position = (x.clamp(f32::MIN, f32::MAX) * inv_gain) * layout.inv_steps[feature];
        let index = codebook::nearest(bits, position.abs());
        stats.clipped += u64::from(x.is_finite() && position.abs() > codebook::clip(bits));
        let sign = usize::from(position < 0.0) * magnitudes(bits);
        planes.put(row, bits, (sign | index) as u8);
    });
    stats
}

/// Adds a row to `sum`, slot by slot. Refuses what no encoder sends.
#[inline]
pub fn decode(layout: &Layout, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
    let bits = u16::from_le_bytes([row[0], row[1]]);
    if bits > MAX_GAIN {
        return Err(BadWord { feature: 0, bits });
    }
    let gain = bf16::from_bits(bits).to_f32();
    let mut planes = Planes::new(layout, GAIN_LEN);
    let mut bad = None;
    layout.for_each(|bits, feature| {
        if bits == 16 {
            let word = bf16::from_le_bytes(planes.take_word(row));
            if word.is_finite() {
                sum[feature] += word.to_f32();
            } else {
                let bits = word.to_bits();
                bad.get_or_insert(BadWord { feature, bits });
            }
            return;
        }
        let code = planes.take(row, bits) as usize;
        let magnitude = codebook::level(bits, code & (magnitudes(bits) - 1));
        let level = if code < magnitudes(bits) { magnitude } else { -magnitude };
        sum[feature] += level * (layout.steps[feature] * gain);
    });
    bad.map_or(Ok(()), Err)
}

impl Layout {
    #[inline(always)]
    fn for_each(&self, mut visit: impl FnMut(u8, usize)) {
        let mut order = self.order.as_slice();
        for (bits, count) in SENT.into_iter().zip(self.counts) {
            let (class, rest) = order.split_at(count);
            class.iter().for_each(|feature| visit(bits, *feature as usize));
            order = rest;
        }
    }
}

/// Where the next code of each plane goes, in units of the plane.
#[derive(Debug, Clone, Copy)]
struct Planes {
    words: usize,
    bytes: usize,
    nibbles: usize,
    crumbs: usize,
    singles: usize,
}

impl Planes {
    fn new(layout: &Layout, start: usize) -> Self {
        let [n16, n8, n6, n5, n4, n3, n2, _] = layout.counts;
        let bytes = start + 2 * n16;
        let nibbles = bytes + n8;
        let crumbs = nibbles + (n6 + n5 + n4).div_ceil(2);
        let singles = crumbs + (n6 + n3 + n2).div_ceil(4);
        Self {
            words: start,
            bytes,
            nibbles: nibbles * 2,
            crumbs: crumbs * 4,
            singles: singles * 8,
        }
    }

    #[inline(always)]
    fn put_word(&mut self, row: &mut [u8], word: [u8; 2]) {
        row[self.words..self.words + 2].copy_from_slice(&word);
        self.words += 2;
    }

    #[inline(always)]
    fn take_word(&mut self, row: &[u8]) -> [u8; 2] {
        let word = [row[self.words], row[self.words + 1]];
        self.words += 2;
        word
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
