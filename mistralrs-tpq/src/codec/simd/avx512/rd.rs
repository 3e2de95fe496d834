//! `rd` by feature: 64 values become a byte each, and one instruction sorts the bytes of a class out of them, or back to where
//! their features are. The other instruction sets load values by slot, one by one: by AVX2 the same processor takes 1.2 times as
//! long to encode and 1.6 times to decode.

use std::arch::x86_64::*;

use super::super::avx2::rd::{pack_planes, unpack_planes};
use super::super::avx2::{fetch_after, fetch_ahead};
use super::super::Onto;
use super::{load, splat, store, total, Avx512, Counter, Lanes};
use crate::codec::rd::cells::{cells, classes, Cells, Classes};
use crate::codec::rd::codebook::magnitudes;
use crate::codec::rd::layout::{Class, Layout, BLOCK, GAIN_LEN, SENT};
use crate::codec::rd::row::{self, added_in_halves, gain_of, level, put_words, received_gain, reciprocal, take_words};
use crate::codec::rd::scratch::{Parts, Scratch};
use crate::codec::rd::spans::{Span, SPAN};
use crate::codec::scalar::BadWord;
use crate::codec::values::Element;
use crate::codec::EncodeStats;

impl Avx512 {
    pub fn rd_encode_row<T: Element>(
        self,
        layout: &Layout,
        values: &[T],
        scratch: &mut Scratch,
        row: &mut [u8],
    ) -> EncodeStats {
        // SAFETY: `self` exists only where `new` has found the features.
        unsafe { encode_row(layout, values, scratch, row) }
    }

    pub fn rd_decode_row(
        self,
        layout: &Layout,
        row: &[u8],
        scratch: &mut Scratch,
        onto: Onto,
        sum: &mut [f32],
    ) -> Result<(), BadWord> {
        // SAFETY: `self` exists only where `new` has found the features.
        unsafe {
            match onto {
                Onto::Zero => decode_row::<true>(layout, row, scratch, sum),
                Onto::Sum => decode_row::<false>(layout, row, scratch, sum),
            }
        }
    }
}

/// Some of the classes that a layout has features of.
struct InUse {
    count: usize,
    numbers: [usize; SENT.len()],
}

impl InUse {
    /// Those that `takes` chooses by their bits.
    #[inline(always)]
    fn new(layout: &Layout, takes: impl Fn(u8) -> bool) -> Self {
        let (mut count, mut numbers) = (0, [0; SENT.len()]);
        for (number, class) in layout.classes().enumerate() {
            if takes(class.bits) && class.count > 0 {
                numbers[count] = number;
                count += 1;
            }
        }
        Self { count, numbers }
    }

    /// The features of those that a span has any of, and where their codes begin.
    #[inline(always)]
    fn of<'a>(&'a self, span: &'a Span) -> impl Iterator<Item = (u64, usize)> + use<'a> {
        let numbers = self.numbers[..self.count].iter();
        numbers
            .map(|&number| (span.members[number], span.starts[number]))
            .filter(|(members, _)| *members != 0)
    }
}

// ---- encode ----

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn encode_row<T: Element>(layout: &Layout, values: &[T], scratch: &mut Scratch, row: &mut [u8]) -> EncodeStats {
    assert_eq!(values.len(), layout.features(), "one row");
    let energy = energy(values);
    if !energy.is_finite() {
        return row::encode(layout, values, row);
    }
    let gain = gain_of(energy, values.len());
    row[..GAIN_LEN].copy_from_slice(&gain.to_le_bytes());
    scratch.prepare(layout);
    let Scratch { codes, parts, .. } = scratch;
    let clipped = encode_spans(layout, values, &splat(reciprocal(gain)), codes);
    let mut stats = EncodeStats { clipped, nonfinite: 0 };

    let planes = layout.planes();
    for class in layout.classes() {
        match class.bits {
            16 => {
                stats.clipped += put_words(
                    &class,
                    |feature| values[feature].to_f32(),
                    &mut row[planes.words..planes.bytes],
                )
            }
            8 => row[planes.bytes..planes.nibbles].copy_from_slice(&codes[class.stream..][..class.count]),
            6 => put_class::<6>(&class, codes, parts),
            5 => put_class::<5>(&class, codes, parts),
            4 => put_class::<4>(&class, codes, parts),
            3 => put_class::<3>(&class, codes, parts),
            2 => put_class::<2>(&class, codes, parts),
            _ => put_class::<1>(&class, codes, parts),
        }
    }
    pack_planes(parts, &planes, row);
    stats
}

/// As [`row::energy`], of values that need not be finite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn energy<T: Element>(values: &[T]) -> f64 {
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    let mut lanes = [_mm512_setzero_pd(); 4];
    // Squares of zeros change no lane.
    for block in blocks.iter().chain([&filled_up(rest)]) {
        for (lanes, x) in lanes.as_chunks_mut::<2>().0.iter_mut().zip(load(block)) {
            let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x));
            let eights = [_mm512_castps512_ps256(x), _mm256_castpd_ps(high)];
            for (lane, eight) in lanes.iter_mut().zip(eights) {
                let x = _mm512_cvtps_pd(eight);
                *lane = _mm512_add_pd(*lane, _mm512_mul_pd(x, x));
            }
        }
    }
    // SAFETY: both are 256 bytes without padding, and every bit pattern is an `f64`.
    added_in_halves(unsafe { std::mem::transmute::<[__m512d; 4], [f64; BLOCK]>(lanes) })
}

/// What is left of a row, and zeros.
#[inline(always)]
fn filled_up<T: Element, const LEN: usize>(rest: &[T]) -> [T; LEN] {
    let mut filled = [T::from_f32(0.0); LEN];
    filled[..rest.len()].copy_from_slice(rest);
    filled
}

/// Codes by class, each as an index with the sign in the highest bit. Returns how many values were clipped.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn encode_spans<T: Element>(layout: &Layout, values: &[T], inv_gain: &Lanes, codes: &mut [u8]) -> u64 {
    let classes = InUse::new(layout, |bits| bits != 16);
    let mut clipped = Counter::default();
    let row_bytes = size_of_val(values);
    let (spans, rest) = values.as_chunks::<SPAN>();
    let last = filled_up(rest);
    for (values, span) in spans.iter().chain([&last]).zip(layout.spans()) {
        for block in values.as_chunks().0 {
            fetch_after(block, row_bytes);
        }
        let bytes = span_codes(values, span, inv_gain, &mut clipped);
        for (members, at) in classes.of(span) {
            let sorted = _mm512_maskz_compress_epi8(members, bytes);
            let to: &mut [u8] = &mut codes[at..at + SPAN];
            // SAFETY: 64 bytes; the store needs no alignment.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), sorted) };
        }
    }
    total(clipped)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn span_codes<T: Element>(values: &[T; SPAN], span: &Span, inv_gain: &Lanes, clipped: &mut Counter) -> __m512i {
    let mut quarters = [_mm512_setzero_si512(); 4];
    let halves = values
        .as_chunks::<BLOCK>()
        .0
        .iter()
        .zip(span.inv_steps.as_chunks::<BLOCK>().0);
    let first_cells = span.first_cells.as_chunks::<16>().0;
    for (half, (values, inv_steps)) in halves.enumerate() {
        let lanes = load(values).into_iter().zip(inv_gain).zip(load(inv_steps));
        for (at, ((x, inv_gain), inv_step)) in lanes.enumerate() {
            let quarter = 2 * half + at;
            let position = _mm512_mul_ps(_mm512_mul_ps(x, *inv_gain), inv_step);
            let even = (span.even() >> (16 * quarter)) as __mmask16;
            quarters[quarter] = sixteen_codes(position, &first_cells[quarter], even, clipped);
        }
    }
    low_bytes(&quarters)
}

/// The lowest byte of 64 lanes, in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn low_bytes(quarters: &[__m512i; 4]) -> __m512i {
    // Packing works within 128-bit lanes: four bytes of each quarter in turn.
    let bytes = _mm512_packus_epi16(
        _mm512_packus_epi32(quarters[0], quarters[1]),
        _mm512_packus_epi32(quarters[2], quarters[3]),
    );
    let in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(in_order, bytes)
}

const CELLS: Cells = cells();
const CLASSES: Classes = classes();

/// A table of 16 f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn table(entries: &[f32; 16]) -> __m512 {
    // SAFETY: 16 f32; the load needs no alignment.
    unsafe { _mm512_loadu_ps(entries.as_ptr()) }
}

/// Entries of a table of 64 by the low six bits of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn look_up(entries: &[f32; 64], places: __m512i) -> __m512 {
    let quarters = entries.as_chunks::<16>().0;
    let low = _mm512_permutex2var_ps(table(&quarters[0]), places, table(&quarters[1]));
    let high = _mm512_permutex2var_ps(table(&quarters[2]), places, table(&quarters[3]));
    let upper = _mm512_test_epi32_mask(places, _mm512_set1_epi32(32));
    _mm512_mask_blend_ps(upper, low, high)
}

/// Index and sign of 16 positions; `even` are those whose class has even levels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn sixteen_codes(position: __m512, first_cells: &[u8; 16], even: __mmask16, clipped: &mut Counter) -> __m512i {
    // SAFETY: 16 bytes; the load needs no alignment.
    let first_cells = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(first_cells.as_ptr().cast())) };
    let magnitude = _mm512_mul_ps(
        _mm512_abs_ps(position),
        _mm512_permutexvar_ps(first_cells, table(&CLASSES.per_step)),
    );
    let inside = _mm512_min_ps(magnitude, _mm512_permutexvar_ps(first_cells, table(&CLASSES.limits)));
    let beyond = _mm512_cmp_ps_mask::<_CMP_NEQ_OQ>(inside, magnitude);
    clipped.0 = _mm512_mask_add_epi32(clipped.0, beyond, clipped.0, _mm512_set1_epi32(1));

    let cell = _mm512_cvttps_epi32(inside);
    let place = _mm512_add_epi32(cell, first_cells);
    // SAFETY: 64 bytes; the load needs no alignment.
    let below = unsafe { _mm512_loadu_si512(CELLS.below.as_ptr().cast()) };
    // The upper bytes of a lane are zero and find the first entry, which is zero.
    let below = _mm512_permutexvar_epi8(place, below);
    let reached = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(inside, look_up(&CELLS.inside, place));
    let mut index = _mm512_mask_add_epi32(below, reached, below, _mm512_set1_epi32(1));
    if even != 0 {
        let highest = _mm512_cvttps_epi32(_mm512_permutexvar_ps(first_cells, table(&CLASSES.highest)));
        index = _mm512_mask_min_epi32(index, even, cell, highest);
    }
    let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(position, _mm512_setzero_ps());
    _mm512_mask_or_epi32(index, negative, index, _mm512_set1_epi32(SIGN.into()))
}

/// Of a code as a byte.
const SIGN: u8 = 0x80;

/// Codes of a class as parts.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn put_class<const BITS: u8>(class: &Class<'_>, codes: &[u8], parts: &mut Parts) {
    let codes = codes[class.stream..].as_chunks::<BLOCK>().0;
    for (at, codes) in codes.iter().enumerate().take(class.order.len()) {
        let magnitudes = magnitudes(BITS) as u8;
        let codes = codes.map(|code| code & (magnitudes - 1) | code >> (8 - BITS) & magnitudes);
        parts.put::<BITS>(&codes, class.used(at));
    }
}

// ---- decode ----

/// ONTO_ZERO: as if `sum` were zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn decode_row<const ONTO_ZERO: bool>(
    layout: &Layout,
    row: &[u8],
    scratch: &mut Scratch,
    sum: &mut [f32],
) -> Result<(), BadWord> {
    assert_eq!(sum.len(), layout.features(), "one row");
    let gain = received_gain(row)?;
    scratch.prepare(layout);
    let Scratch { codes, parts, .. } = scratch;
    let planes = layout.planes();
    unpack_planes(row, &planes, layout, parts);
    for class in layout.classes() {
        match class.bits {
            16 => {}
            8 => {
                let to = codes[class.stream..].iter_mut();
                for (to, code) in to.zip(&row[planes.bytes..planes.nibbles]) {
                    *to = complemented::<8>(*code);
                }
            }
            6 => take_class::<6>(&class, parts, codes, complemented::<6>),
            5 => take_class::<5>(&class, parts, codes, marked::<5>),
            4 => take_class::<4>(&class, parts, codes, marked::<4>),
            3 => take_class::<3>(&class, parts, codes, marked::<3>),
            2 => take_class::<2>(&class, parts, codes, marked::<2>),
            _ => take_class::<1>(&class, parts, codes, marked::<1>),
        }
    }
    decode_spans::<ONTO_ZERO>(layout, &splat(gain), codes, sum);
    for class in layout.classes().filter(|class| class.bits == 16) {
        take_words(&class, &row[planes.words..], |feature, x| sum[feature] += x)?;
    }
    Ok(())
}

/// The code with a bit above its own, which tells the classes below 6 bits apart.
#[inline(always)]
fn marked<const BITS: u8>(code: u8) -> u8 {
    code | 1 << BITS
}

/// The index of a class with even levels as an `i8`; a negative one in ones' complement. Half a step above is the level.
#[inline(always)]
fn complemented<const BITS: u8>(code: u8) -> u8 {
    let magnitudes = magnitudes(BITS) as u8;
    let index = code & (magnitudes - 1);
    if code & magnitudes == 0 {
        index
    } else {
        !index
    }
}

/// What [`marked`] codes stand for, in steps. Zero is what a feature without a code has: added to a sum, it changes no bit.
const MARKED_LEVELS: [f32; 64] = {
    let mut levels = [-0.0; 64];
    let mut bits = 1;
    while bits <= 5 {
        let mut code = 0;
        while code < 1 << bits {
            levels[1 << bits | code] = level(bits, code);
            code += 1;
        }
        bits += 1;
    }
    levels
};

/// The reverse of [`put_class`], each code changed by `to_byte`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn take_class<const BITS: u8>(class: &Class<'_>, parts: &mut Parts, codes: &mut [u8], to_byte: impl Fn(u8) -> u8) {
    let codes = codes[class.stream..].as_chunks_mut::<BLOCK>().0;
    for (at, codes) in codes.iter_mut().enumerate().take(class.order.len()) {
        let taken = parts.take::<BITS>(class.used(at));
        for (code, taken) in codes.iter_mut().zip(taken) {
            *code = to_byte(taken);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn decode_spans<const ONTO_ZERO: bool>(layout: &Layout, gain: &Lanes, codes: &[u8], sum: &mut [f32]) {
    let marked_classes = InUse::new(layout, |bits| bits < 6);
    let even_classes = InUse::new(layout, |bits| matches!(bits, 6 | 8));
    let (sums, rest) = sum.as_chunks_mut::<SPAN>();
    let mut last = filled_up(rest);
    for (sum, span) in sums.iter_mut().chain([&mut last]).zip(layout.spans()) {
        let marked = in_place(&marked_classes, span, codes);
        let even = in_place(&even_classes, span, codes);
        let halves = sum
            .as_chunks_mut::<BLOCK>()
            .0
            .iter_mut()
            .zip(span.steps.as_chunks::<BLOCK>().0);
        for (half, (sum, steps)) in halves.enumerate() {
            fetch_ahead(sum);
            let mut result = if ONTO_ZERO { splat(0.0) } else { load(sum) };
            let lanes = result.iter_mut().zip(gain).zip(load(steps));
            for (at, ((sum, gain), step)) in lanes.enumerate() {
                let quarter = 2 * half + at;
                let is_even = (span.even() >> (16 * quarter)) as __mmask16;
                let level = sixteen_levels(&marked, &even, quarter, is_even);
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(level, _mm512_mul_ps(step, *gain)));
            }
            store(&result, sum);
        }
    }
    rest.copy_from_slice(&last[..rest.len()]);
}

/// The next codes of some classes, each at its feature; zero at others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn in_place(classes: &InUse, span: &Span, codes: &[u8]) -> [u8; SPAN] {
    let mut bytes = _mm512_setzero_si512();
    for (members, at) in classes.of(span) {
        let sorted: &[u8] = &codes[at..at + SPAN];
        // SAFETY: 64 bytes; the load needs no alignment.
        let sorted = unsafe { _mm512_loadu_si512(sorted.as_ptr().cast()) };
        bytes = _mm512_or_si512(bytes, _mm512_maskz_expand_epi8(members, sorted));
    }
    // SAFETY: both are 64 bytes without padding, and every bit pattern is a `u8`.
    unsafe { std::mem::transmute(bytes) }
}

/// Levels in steps of 16 features of a span.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn sixteen_levels(marked: &[u8; SPAN], even: &[u8; SPAN], quarter: usize, is_even: __mmask16) -> __m512 {
    // SAFETY: 16 bytes of 64; the load needs no alignment.
    let sixteen = |bytes: &[u8; SPAN]| unsafe { _mm_loadu_si128(bytes[16 * quarter..][..16].as_ptr().cast()) };
    let level = look_up(&MARKED_LEVELS, _mm512_cvtepu8_epi32(sixteen(marked)));
    if is_even == 0 {
        return level;
    }
    let index = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen(even)));
    _mm512_mask_add_ps(level, is_even, index, _mm512_set1_ps(0.5))
}
