//! Which instructions the kernels use: chosen once when the program runs, never when it is built, so that one binary
//! serves every host. Whatever the choice, the bits are those of `scalar.rs`.

use std::sync::OnceLock;

use super::dynamic8::kernel;
use super::scalar::{self, BadWord, PaperRow};
use super::values::Element;
use super::EncodeStats;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod dynamic8;

/// An instruction set. Values come from [`Level::scalar`] and [`Level::best`] only, so holding one proves that this
/// processor has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(Isa);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isa {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
}

impl Level {
    /// The plain loops of the specification.
    pub const fn scalar() -> Self {
        Self(Isa::Scalar)
    }

    /// The fastest level of this processor. Detected and logged on the first call.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            let level = Self::detect();
            tracing::debug!(level = level.name(), "codec kernels chosen");
            level
        })
    }

    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
        }
    }

    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = avx2::Avx2::new() {
            return Self(Isa::Avx2(avx2));
        }
        Self::scalar()
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
        }
    }

    pub(super) fn paper_decode_row(self, table: &PaperRow<'_>, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
        match self.0 {
            Isa::Scalar => scalar::paper_decode_row(table, row, sum),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.paper_decode_row(table, row, sum),
        }
    }

    pub(super) fn dynamic_encode_row<T: Element>(self, values: &[T], row: &mut [u8]) -> EncodeStats {
        match self.0 {
            Isa::Scalar => scalar::dynamic_encode_row(values, row),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.dynamic_encode_row(values, row),
        }
    }

    pub(super) fn dynamic8_encode_row<T: Element>(self, values: &[T], row: &mut [u8]) -> u64 {
        match self.0 {
            Isa::Scalar => kernel::encode_row(values, row),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.dynamic8_encode_row(values, row),
        }
    }

    pub(super) fn dynamic8_decode_row(self, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
        match self.0 {
            Isa::Scalar => kernel::decode_row(row, sum),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.dynamic8_decode_row(row, sum),
        }
    }

    pub(super) fn dynamic_decode_row(self, row: &[u8], sum: &mut [f32]) -> Result<(), BadWord> {
        match self.0 {
            Isa::Scalar => scalar::dynamic_decode_row(row, sum),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.dynamic_decode_row(row, sum),
        }
    }
}
