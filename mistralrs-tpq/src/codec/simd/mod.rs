//! Which instructions the kernels use: chosen once when the program runs, never when it is built, so that one binary
//! serves every host. Whatever the choice, the bits are those of the specification (`scalar.rs`, `rd/row.rs`). Blocks with a
//! NaN or an infinity, whole rows of `rd`, and what is left of a row after its last whole block go through it.

use std::sync::OnceLock;

use half::bf16;

use super::entropy::layout;
use super::rd::layout::Layout;
use super::rd::row;
use super::rd::scratch::Scratch;
use super::scalar::{self, BadWord, PaperRow, Width, GROUP};
use super::values::Element;
use super::EncodeStats;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod rd;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod rows;

/// Values a step; also the group of `dynamic`.
const BLOCK: usize = GROUP;
/// Bytes of as many codes of 4 bits.
const BLOCK_BYTES: usize = BLOCK / 2;

/// Groups of `dynamic` whose scales are made together.
const AT_ONCE: usize = 8;

/// Magnitudes as bits, which order as the floats do, with infinity and NaN above every number.
const MAX_FINITE: u32 = f32::MAX.to_bits();
const MAX_BF16: u32 = (bf16::MAX.to_bits() as u32) << 16;

/// What a decoded row is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onto {
    /// Zeros, whatever the room for the sum holds.
    Zero,
    Sum,
}

impl Onto {
    pub fn cleared(self, sum: &mut [f32]) -> &mut [f32] {
        if self == Self::Zero {
            sum.fill(0.0);
        }
        sum
    }
}

/// An instruction set. Values come from [`Level::all`] and its like only, so holding one proves that this processor has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(Isa);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isa {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

impl Level {
    /// The plain loops of the specification.
    pub const fn scalar() -> Self {
        Self(Isa::Scalar)
    }

    /// The fastest level of this processor, or the one that the environment variable `TPQ_KERNELS` names, to compare them or to
    /// rule one out. Chosen and logged on the first call.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            let fastest = Self::all().last().unwrap_or(Self::scalar());
            let level = match std::env::var("TPQ_KERNELS") {
                Ok(name) => Self::all().find(|level| level.name() == name).unwrap_or_else(|| {
                    tracing::warn!(
                        "TPQ_KERNELS={name}: this processor has no such kernels, {} instead",
                        fastest.name()
                    );
                    fastest
                }),
                Err(_) => fastest,
            };
            tracing::debug!(level = level.name(), "codec kernels chosen");
            level
        })
    }

    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
        }
    }

    /// The levels of this processor, the fastest last.
    pub fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let found = [avx2::Avx2::new().map(Isa::Avx2), avx512::Avx512::new().map(Isa::Avx512)];
        #[cfg(target_arch = "aarch64")]
        let found = [neon::Neon::new().map(Isa::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let found: [Option<Isa>; 0] = [];
        std::iter::once(Self::scalar()).chain(found.into_iter().flatten().map(Self))
    }

    pub(super) fn paper_encode_row<T: Element>(
        self,
        table: &PaperRow<'_>,
        values: &[T],
        row: &mut [u8],
    ) -> EncodeStats {
        match self.0 {
            Isa::Scalar => scalar::paper_encode_row(table, values, row),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.paper_encode_row(table, values, row),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.paper_encode_row(table, values, row),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.paper_encode_row(table, values, row),
        }
    }

    pub(super) fn paper_decode_row(
        self,
        table: &PaperRow<'_>,
        row: &[u8],
        onto: Onto,
        sum: &mut [f32],
    ) -> Result<(), BadWord> {
        match self.0 {
            Isa::Scalar => scalar::paper_decode_row(table, row, onto.cleared(sum)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.paper_decode_row(table, row, onto, sum),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.paper_decode_row(table, row, onto, sum),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.paper_decode_row(table, row, onto, sum),
        }
    }

    pub(super) fn dynamic_encode_row<T: Element>(self, width: Width, values: &[T], row: &mut [u8]) -> EncodeStats {
        match self.0 {
            Isa::Scalar => scalar::dynamic_encode_row(width, values, row),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.dynamic_encode_row(width, values, row),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.dynamic_encode_row(width, values, row),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.dynamic_encode_row(width, values, row),
        }
    }

    pub(super) fn dynamic_decode_row(
        self,
        width: Width,
        row: &[u8],
        onto: Onto,
        sum: &mut [f32],
    ) -> Result<(), BadWord> {
        match self.0 {
            Isa::Scalar => scalar::dynamic_decode_row(width, row, onto.cleared(sum)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.dynamic_decode_row(width, row, onto, sum),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.dynamic_decode_row(width, row, onto, sum),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.dynamic_decode_row(width, row, onto, sum),
        }
    }

    pub(super) fn dynamic_decode_rounded_row<T: Element>(
        self,
        width: Width,
        row: &[u8],
        values: &mut [T],
    ) -> Result<(), BadWord> {
        match self.0 {
            Isa::Scalar => scalar::dynamic_decode_rounded_row(width, row, values),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.dynamic_decode_rounded_row(width, row, values),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.dynamic_decode_rounded_row(width, row, values),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.dynamic_decode_rounded_row(width, row, values),
        }
    }

    pub(super) fn rd_encode_row<T: Element>(
        self,
        layout: &Layout,
        values: &[T],
        scratch: &mut Scratch,
        row: &mut [u8],
    ) -> EncodeStats {
        match self.0 {
            Isa::Scalar => row::encode(layout, values, row),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.rd_encode_row(layout, values, scratch, row),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.rd_encode_row(layout, values, scratch, row),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.rd_encode_row(layout, values, scratch, row),
        }
    }

    pub(super) fn rd_decode_row(
        self,
        layout: &Layout,
        row: &[u8],
        scratch: &mut Scratch,
        onto: Onto,
        sum: &mut [f32],
    ) -> Result<(), BadWord> {
        match self.0 {
            Isa::Scalar => row::decode(layout, row, onto.cleared(sum)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.rd_decode_row(layout, row, scratch, onto.cleared(sum)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.rd_decode_row(layout, row, scratch, onto, sum),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.rd_decode_row(layout, row, scratch, onto.cleared(sum)),
        }
    }

    /// Each value to nearest even; both slices have one length.
    pub(super) fn round<T: Element>(self, values: &[f32], rounded: &mut [T]) {
        match self.0 {
            Isa::Scalar => scalar::round(values, rounded),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.round(values, rounded),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.round(values, rounded),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.round(values, rounded),
        }
    }

    /// Elements in f32; both slices have one length.
    pub(super) fn widen<T: Element>(self, values: &[T], wide: &mut [f32]) {
        match self.0 {
            Isa::Scalar => wide.iter_mut().zip(values).for_each(|(wide, x)| *wide = x.to_f32()),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.widen(values, wide),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.widen(values, wide),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.widen(values, wide),
        }
    }

    /// As [`rd::gain`](super::rd::gain).
    pub(super) fn gain(self, values: &[f32]) -> bf16 {
        match self.0 {
            Isa::Scalar => row::gain(values),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.gain(values),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.gain(values),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.gain(values),
        }
    }

    /// As [`layout::locate`].
    pub(super) fn locate(
        self,
        layout: &layout::Layout,
        x: &[f32],
        inv_gain: f32,
        codes: &mut [i32],
        places: &mut [i32],
    ) {
        match self.0 {
            Isa::Scalar => layout::locate(layout, x, inv_gain, codes, places),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.locate(layout, x, inv_gain, codes, places),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => avx512.locate(layout, x, inv_gain, codes, places),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.locate(layout, x, inv_gain, codes, places),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn every_level_rounds_as_half_does() {
        // All upper halves, each with lower halves around a tie of BF16 and, with 0x1000 and its like, of F16.
        let lowers = [0, 1, 0x0fff, 0x1000, 0x1001, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff];
        let values: Vec<f32> = (0..=u16::MAX)
            .flat_map(|upper| lowers.map(|lower| u32::from(upper) << 16 | lower))
            .map(f32::from_bits)
            .collect();
        for level in Level::all() {
            rounds_as(
                level,
                &values,
                |x| u32::from(bf16::from_f32(x).to_bits()),
                bf16::ZERO,
                |x| x.to_bits().into(),
            );
            rounds_as(
                level,
                &values,
                |x| u32::from(f16::from_f32(x).to_bits()),
                f16::ZERO,
                |x| x.to_bits().into(),
            );
            rounds_as(level, &values, f32::to_bits, 0.0, f32::to_bits);
        }
    }

    fn rounds_as<T: Element>(
        level: Level,
        values: &[f32],
        expected: impl Fn(f32) -> u32,
        zero: T,
        bits: impl Fn(T) -> u32,
    ) {
        let mut rounded = vec![zero; values.len()];
        level.round(values, &mut rounded);
        for (x, rounded) in values.iter().zip(rounded) {
            let (expected, got) = (expected(*x), bits(rounded));
            let dtype = T::DTYPE.name();
            assert_eq!(got, expected, "{}: {:#010x} to {dtype}", level.name(), x.to_bits());
        }
    }
}
