//! The specification: plain loops that fix every bit of a payload and of a decoded sum. `simd/` gives the same bits, and
//! calls the functions here for tails and rare cases.
//!
//! All arithmetic is f32, rounded to nearest with ties to even, never fused.

use half::bf16;

use super::values::Element;
use super::EncodeStats;

/// A 4-bit code -8..=7 is stored as `code + 8`. Biased rather than two's complement: a decoder masks and subtracts once,
/// with no sign extension of nibbles (QuickReduce stores its codes the same way).
pub const BIAS: i8 = 8;

/// Levels of `paper`: symmetric, so that a negated partial sum gives negated codes. -8 is never sent.
pub const PAPER_LOWEST: f32 = -7.0;
pub const PAPER_HIGHEST: f32 = 7.0;
/// Positions beyond this many steps count as clipped: half a step beyond the outermost level.
pub const PAPER_CLIP: f32 = 7.5;

/// Values that share one scale in `dynamic`.
pub const GROUP: usize = 32;

/// A BF16 no encoder sends, found while decoding a row.
#[derive(Debug, PartialEq, Eq)]
pub struct BadWord {
    pub feature: usize,
    pub bits: u16,
}

// ---- codes and planes ----

/// The code of `x` with `inv_step` = 1 / step, computed once in f32. NaN gives 0 (the cast of NaN), infinity saturates.
/// A step of zero has `inv_step` zero, and gives 0 for every `x`.
#[inline(always)]
pub fn quantize(x: f32, inv_step: f32, lowest: f32, highest: f32) -> i8 {
    (x * inv_step).clamp(lowest, highest).round_ties_even() as i8
}

/// Bytes of a plane of `codes` codes. The high nibble after an odd last code holds code 0.
pub const fn plane_len(codes: usize) -> usize {
    codes.div_ceil(2)
}

#[inline(always)]
fn pack(low: i8, high: i8) -> u8 {
    (low + BIAS) as u8 | ((high + BIAS) as u8) << 4
}

#[inline(always)]
fn unpack(byte: u8) -> [i8; 2] {
    [(byte & 0x0f) as i8 - BIAS, (byte >> 4) as i8 - BIAS]
}

#[inline(always)]
fn code_at(plane: &[u8], slot: usize) -> i8 {
    (plane[slot / 2] >> (slot % 2 * 4) & 0x0f) as i8 - BIAS
}

#[inline(always)]
fn set_code(plane: &mut [u8], slot: usize, code: i8) {
    let shift = slot % 2 * 4;
    let byte = &mut plane[slot / 2];
    *byte = *byte & !(0x0f << shift) | ((code + BIAS) as u8) << shift;
}

/// BF16 nearest to `x`, ties to even, as `bf16::from_f32` gives it: without branches, so that loops become vectors.
#[inline(always)]
pub fn nearest_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A NaN keeps its sign and upper bits, and is quiet.
    let nan = bits >> 16 | 0x0040;
    let is_nan = bits & 0x7fff_ffff > f32::INFINITY.to_bits();
    bf16::from_bits(if is_nan { nan } else { nearest } as u16)
}

/// [`nearest_bf16`], saturated to the finite range; NaN gives 0.
#[inline(always)]
pub fn to_finite_bf16(x: f32) -> bf16 {
    let nearest = nearest_bf16(x).to_bits();
    let sign = nearest & 0x8000;
    let finite = (nearest & 0x7fff).min(bf16::MAX.to_bits());
    bf16::from_bits(if x.is_nan() { 0 } else { sign | finite })
}

#[inline(always)]
pub fn round<T: Element>(values: &[f32], rounded: &mut [T]) {
    for (rounded, x) in rounded.iter_mut().zip(values) {
        *rounded = T::from_f32(*x);
    }
}

// ---- paper: arXiv 2411.07942, static symmetric ranges per feature and rank, outlier features in BF16 ----

/// One rank's view of a [`PaperTables`](super::PaperTables). E features, of which k are outliers.
#[derive(Debug, Clone, Copy)]
pub struct PaperRow<'a> {
    /// E; zero for an outlier and for a feature whose range is zero.
    pub steps: &'a [f32],
    /// E; 1 / step, or zero where the step is.
    pub inv_steps: &'a [f32],
    /// k features, ascending.
    pub outliers: &'a [u32],
    /// The features at or beyond E - k that are no outliers, ascending. The code of `displaced[i]` is in slot
    /// `outliers[i]`: there are as many of them as there are outliers below E - k, since both fill up the E - k slots.
    pub displaced: &'a [u32],
    /// Features that are no outliers and have a range of zero, ascending.
    pub dead: &'a [u32],
}

impl PaperRow<'_> {
    pub fn slots(&self) -> usize {
        self.steps.len() - self.outliers.len()
    }
}

/// Row: E - k codes, then k outliers as BF16. Slot j holds feature j, except that the slots of outliers hold the displaced
/// features, so vector code runs straight over the row and patches a few slots afterwards.
#[inline]
pub fn paper_encode_row<T: Element>(table: &PaperRow<'_>, values: &[T], row: &mut [u8]) -> EncodeStats {
    let slots = table.slots();
    let (plane, outliers) = row.split_at_mut(plane_len(slots));
    let mut stats = paper_encode_plane(&values[..slots], &table.inv_steps[..slots], plane);
    for (&slot, &feature) in table.outliers.iter().zip(table.displaced) {
        let (slot, feature) = (slot as usize, feature as usize);
        let code = paper_code(values[feature].to_f32(), table.inv_steps[feature], &mut stats);
        set_code(plane, slot, code);
    }
    stats += paper_encode_outliers(table.outliers, values, outliers);
    // The outliers below E - k, which come first, were counted with the plane.
    let uncounted = table.outliers.iter().skip(table.displaced.len());
    stats.nonfinite += uncounted
        .filter(|&&feature| !values[feature as usize].to_f32().is_finite())
        .count() as u64;
    stats.clipped += paper_clipped_dead(table, values);
    stats
}

/// Codes of features that share their index with their slot. Outliers among them get code 0 (their `inv_step` is zero) and
/// are counted here when they are not finite.
#[inline]
pub fn paper_encode_plane<T: Element>(values: &[T], inv_steps: &[f32], plane: &mut [u8]) -> EncodeStats {
    let mut stats = EncodeStats::default();
    for (byte, (x, inv_step)) in plane.iter_mut().zip(values.chunks(2).zip(inv_steps.chunks(2))) {
        let low = paper_code(x[0].to_f32(), inv_step[0], &mut stats);
        let high = match (x.get(1), inv_step.get(1)) {
            (Some(x), Some(inv_step)) => paper_code(x.to_f32(), *inv_step, &mut stats),
            _ => 0,
        };
        *byte = pack(low, high);
    }
    stats
}

/// The BF16 of `outliers`. Counts those that saturate, not those that are not finite.
#[inline(always)]
pub fn paper_encode_outliers<T: Element>(outliers: &[u32], values: &[T], words: &mut [u8]) -> EncodeStats {
    let mut stats = EncodeStats::default();
    for (word, &feature) in words.as_chunks_mut().0.iter_mut().zip(outliers) {
        let x = values[feature as usize].to_f32();
        *word = to_finite_bf16(x).to_le_bytes();
        stats.clipped += u64::from(x.is_finite() & (nearest_bf16(x).to_bits() & 0x7fff == bf16::INFINITY.to_bits()));
    }
    stats
}

/// How many finite values other than zero are in dead features.
#[inline(always)]
pub fn paper_clipped_dead<T: Element>(table: &PaperRow<'_>, values: &[T]) -> u64 {
    let dead = table.dead.iter().map(|&feature| values[feature as usize].to_f32());
    dead.filter(|x| x.is_finite() && *x != 0.0).count() as u64
}

/// Copies codes of displaced features, from `displaced[first]` on, into their slots, as far as `codes` has them: it holds those
/// of features `start..` in order. Returns how many it copied.
#[inline(always)]
pub fn paper_place_displaced(
    table: &PaperRow<'_>,
    first: usize,
    start: usize,
    codes: &[u8],
    plane: &mut [u8],
) -> usize {
    let end = start + 2 * codes.len();
    let moves = table.outliers.iter().zip(table.displaced).skip(first);
    let moves = moves.take_while(|(_, &feature)| (feature as usize) < end);
    moves
        .map(|(&slot, &feature)| set_code(plane, slot as usize, code_at(codes, feature as usize - start)))
        .count()
}

#[inline(always)]
fn paper_code(x: f32, inv_step: f32, stats: &mut EncodeStats) -> i8 {
    let finite = x.is_finite();
    stats.nonfinite += u64::from(!finite);
    stats.clipped += u64::from(finite & ((x * inv_step).abs() > PAPER_CLIP));
    quantize(x, inv_step, PAPER_LOWEST, PAPER_HIGHEST)
}

/// Adds a row to `sum` (E): the slots in order with the step of the feature whose index they share (zero in the slot of an
/// outlier: that adds a zero), then the displaced features, then the outliers.
#[inline]
pub fn paper_decode_row(table: &PaperRow<'_>, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
    let slots = table.slots();
    let (plane, outliers) = row.split_at(plane_len(slots));
    accumulate_plane(plane, &table.steps[..slots], &mut sum[..slots]);
    paper_unpatch_row(table, plane, outliers, sum)
}

/// `sum[j] += code j * steps[j]`.
#[inline]
pub fn accumulate_plane(plane: &[u8], steps: &[f32], sum: &mut [f32]) {
    for (byte, (sum, steps)) in plane.iter().zip(sum.chunks_mut(2).zip(steps.chunks(2))) {
        for (code, (sum, step)) in unpack(*byte).into_iter().zip(sum.iter_mut().zip(steps)) {
            *sum += f32::from(code) * step;
        }
    }
}

/// Adds displaced features and outliers. Refuses an outlier that is not finite.
#[inline(always)]
pub fn paper_unpatch_row(table: &PaperRow<'_>, plane: &[u8], outliers: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
    for (&slot, &feature) in table.outliers.iter().zip(table.displaced) {
        let feature = feature as usize;
        sum[feature] += f32::from(code_at(plane, slot as usize)) * table.steps[feature];
    }
    for (bytes, &feature) in outliers.as_chunks().0.iter().zip(table.outliers) {
        let (feature, x) = (feature as usize, bf16::from_le_bytes(*bytes));
        if !x.is_finite() {
            let bits = x.to_bits();
            return Err(BadWord { feature, bits });
        }
        sum[feature] += x.to_f32();
    }
    Ok(())
}

// ---- dynamic: groups of 32 with a signed scale (the INT4 codec of QuickReduce, with BF16 scales) ----

/// Bits of a code in `dynamic`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// Biased, as the codes of `paper`, two to a byte.
    Four,
    /// Two's complement.
    Eight,
}

impl Width {
    const fn bits(self) -> u16 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// All levels are in use: -8 or -128.
    pub const fn lowest(self) -> f32 {
        -((1 << (self.bits() - 1)) as f32)
    }

    pub const fn highest(self) -> f32 {
        -self.lowest() - 1.0
    }

    /// Bytes of `codes` codes.
    pub const fn codes_len(self, codes: usize) -> usize {
        match self {
            Self::Four => plane_len(codes),
            Self::Eight => codes,
        }
    }

    /// `extreme / lowest` as BF16: the extreme lands on the lowest code. Zero when that is zero or subnormal (groups of 4
    /// bits below 2^-123): the reciprocal of a subnormal may overflow.
    #[inline(always)]
    pub fn scale(self, extreme: f32) -> bf16 {
        let scale = nearest_bf16(extreme * (1.0 / self.lowest()));
        if scale.to_f32().abs() < f32::MIN_POSITIVE {
            bf16::ZERO
        } else {
            scale
        }
    }

    /// The scale of group `group`, as a peer sent it. Refuses one above BF16 max / 2^(bits - 1): all levels are finite.
    #[inline(always)]
    pub fn received_scale(self, bytes: [u8; 2], group: usize) -> Result<f32, BadWord> {
        let largest = bf16::MAX.to_bits() - ((self.bits() - 1) << 7);
        let bits = u16::from_le_bytes(bytes);
        if bits & 0x7fff > largest {
            let feature = group * GROUP;
            return Err(BadWord { feature, bits });
        }
        Ok(bf16::from_bits(bits).to_f32())
    }
}

/// Row: E codes, then one BF16 scale for each 32 of them; the last group may be shorter.
#[inline]
pub fn dynamic_encode_row<T: Element>(width: Width, values: &[T], row: &mut [u8]) -> EncodeStats {
    let (codes, scales) = row.split_at_mut(width.codes_len(values.len()));
    let groups = values.chunks(GROUP).zip(codes.chunks_mut(width.codes_len(GROUP)));
    let mut stats = EncodeStats::default();
    for (scale, (values, codes)) in scales.as_chunks_mut().0.iter_mut().zip(groups) {
        *scale = dynamic_encode_group(width, values, codes, &mut stats).to_le_bytes();
    }
    stats
}

/// Codes of up to 32 values, and their scale.
#[inline]
pub fn dynamic_encode_group<T: Element>(width: Width, values: &[T], codes: &mut [u8], stats: &mut EncodeStats) -> bf16 {
    stats.nonfinite += values.iter().filter(|x| !x.to_f32().is_finite()).count() as u64;
    let scale = width.scale(group_extreme(values));
    let inv_scale = reciprocal(scale);
    let code = |x: &T| quantize(dynamic_input(x.to_f32()), inv_scale, width.lowest(), width.highest());
    match width {
        Width::Four => codes
            .iter_mut()
            .zip(values.chunks(2))
            .for_each(|(byte, x)| *byte = pack(code(&x[0]), x.get(1).map_or(0, code))),
        Width::Eight => codes.iter_mut().zip(values).for_each(|(byte, x)| *byte = code(x) as u8),
    }
    scale
}

/// What `dynamic` encodes for `x`: NaN is 0, and magnitudes beyond the BF16 range, infinity among them, are the largest
/// BF16. That moves a finite f32 by less than 2^-8 of itself, and keeps every level finite.
#[inline(always)]
fn dynamic_input(x: f32) -> f32 {
    let x = if x.is_nan() { 0.0 } else { x };
    x.clamp(bf16::MIN.to_f32_const(), bf16::MAX.to_f32_const())
}

/// The value of largest magnitude; the negative one when two of opposite sign tie.
#[inline(always)]
pub fn group_extreme<T: Element>(values: &[T]) -> f32 {
    let (mut lowest, mut highest) = (0.0f32, 0.0f32);
    for x in values.iter().map(|x| dynamic_input(x.to_f32())) {
        lowest = lowest.min(x);
        highest = highest.max(x);
    }
    if highest > -lowest {
        highest
    } else {
        lowest
    }
}

/// 1 / scale, from the BF16 that the receiver uses; zero for zero.
#[inline(always)]
pub fn reciprocal(scale: bf16) -> f32 {
    if scale == bf16::ZERO {
        0.0
    } else {
        1.0 / scale.to_f32()
    }
}

/// Adds a row to `sum` (E). Refuses a scale whose levels are not all finite.
#[inline]
pub fn dynamic_decode_row(width: Width, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
    let (codes, scales) = row.split_at(width.codes_len(sum.len()));
    let groups = codes.chunks(width.codes_len(GROUP)).zip(sum.chunks_mut(GROUP));
    for (i, (scale, (codes, sum))) in scales.as_chunks().0.iter().zip(groups).enumerate() {
        dynamic_decode_group(width, width.received_scale(*scale, i)?, codes, sum);
    }
    Ok(())
}

/// A row on its own, rounded once to `values` (E).
#[inline]
pub fn dynamic_decode_rounded_row<T: Element>(width: Width, row: &[u8], values: &mut [T]) -> Result<(), BadWord> {
    let (codes, scales) = row.split_at(width.codes_len(values.len()));
    let groups = codes.chunks(width.codes_len(GROUP)).zip(values.chunks_mut(GROUP));
    for (i, (scale, (codes, values))) in scales.as_chunks().0.iter().zip(groups).enumerate() {
        dynamic_decode_rounded_group(width, width.received_scale(*scale, i)?, codes, values);
    }
    Ok(())
}

#[inline]
pub fn dynamic_decode_rounded_group<T: Element>(width: Width, scale: f32, codes: &[u8], values: &mut [T]) {
    let mut sum = [0.0; GROUP];
    let sum = &mut sum[..values.len()];
    dynamic_decode_group(width, scale, codes, sum);
    round(sum, values);
}

/// `sum[j] += code j * scale`.
#[inline]
pub fn dynamic_decode_group(width: Width, scale: f32, codes: &[u8], sum: &mut [f32]) {
    let add = |sum: &mut f32, code: i8| *sum += f32::from(code) * scale;
    match width {
        Width::Four => {
            for (byte, sum) in codes.iter().zip(sum.chunks_mut(2)) {
                sum.iter_mut().zip(unpack(*byte)).for_each(|(sum, code)| add(sum, code));
            }
        }
        Width::Eight => sum.iter_mut().zip(codes).for_each(|(sum, code)| add(sum, *code as i8)),
    }
}
