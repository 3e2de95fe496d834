//! Products of a few rows with the weights of a linear layer, on the processor.
//!
//! A decode step multiplies one row a sequence. candle's matrix product packs the weights anew for each call, which for 16
//! rows costs as much as the product, so that a batch gains little. Here weights `[outputs, inputs]` are read as they lie,
//! once, each block of outputs for all rows: `benches/linear.rs` compares.
//!
//! An element of the product is the same bits whatever the other rows are and however many: a sequence gets the
//! same numbers alone and in a batch. `scalar.rs` says which bits, the instruction sets match them.

use std::borrow::Cow;
use std::sync::OnceLock;

use half::f16;
use rayon::prelude::*;

use crate::codec::{Dtype, Element};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tiles;

/// Up to 64 rows [`product`] was faster than candle for every shape of `benches/linear.rs` (AVX2, 1.04 to 4.0 times), with
/// 128 0.9 to 1.3 times as fast, with 256 as often slower. NEON has its bits checked under qemu and was never timed.
pub const MAX_ROWS: usize = 128;

/// Lanes whose sums are kept apart.
const LANES: usize = 8;

/// Most inputs that are summed before the lanes are added. Four rows of so many f32 fit in a first-level cache of 32 KiB.
const CHUNK: usize = 1024;

/// Inputs of a chunk: as few chunks as [`CHUNK`] allows, equally long but for the last.
fn chunk_of(inputs: usize) -> usize {
    inputs.div_ceil(inputs.div_ceil(CHUNK)).next_multiple_of(LANES)
}

/// Outputs whose weights stay in the second-level cache while all rows are multiplied: 192 KiB of f32.
const BLOCK: usize = 48;

/// Products of inputs and weights from which on waking other threads pays: tens of microseconds of one.
const PARALLEL: usize = 1 << 18;

/// An element of weights and of rows.
pub trait Weight: Element + Send + Sync {
    fn from_f32s(values: Vec<f32>) -> Vec<Self>
    where
        Self: Sized,
    {
        values.into_iter().map(Self::from_f32).collect()
    }
}

impl Weight for f32 {
    fn from_f32s(values: Vec<f32>) -> Vec<Self> {
        values
    }
}

impl Weight for f16 {}

/// How products are computed. Values come from [`Kernel::scalar`] and [`Kernel::best`] only, so holding one proves that
/// this processor has its instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Isa);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isa {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

impl Kernel {
    /// The loops of the specification, of any dtype, slower than candle.
    pub const fn scalar() -> Self {
        Self(Isa::Scalar)
    }

    /// The vectors of this processor; `None` where candle is faster. Detected and logged on the first call.
    pub fn best(dtype: Dtype) -> Option<Self> {
        static BEST: OnceLock<Option<Isa>> = OnceLock::new();
        let isa = (*BEST.get_or_init(|| {
            let isa = Self::detect();
            tracing::debug!(?isa, "kernel of linear layers chosen");
            isa
        }))?;
        let suits = match isa {
            Isa::Scalar => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => dtype != Dtype::Bf16,
            // The conversion of F16 vectors needs a type that Rust has not made stable.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => dtype == Dtype::F32,
        };
        suits.then_some(Self(isa))
    }

    fn detect() -> Option<Isa> {
        // There candle may use Accelerate, which has units for matrices that vectors cannot follow.
        if cfg!(target_os = "macos") {
            return None;
        }
        #[cfg(target_arch = "x86_64")]
        return avx2::Avx2::new().map(Isa::Avx2);
        #[cfg(target_arch = "aarch64")]
        return neon::Neon::new().map(Isa::Neon);
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        None
    }

    /// Adds `x [rows, inputs]` times `weights [outputs, inputs]` transposed to `sums [rows, outputs]`.
    fn block<T: Weight>(self, x: &[f32], weights: &[T], inputs: usize, sums: &mut [f32]) {
        match self.0 {
            Isa::Scalar => scalar::block(x, weights, inputs, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(avx2) => avx2.block(x, weights, inputs, sums),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(neon) => neon.block(x, weights, inputs, sums),
        }
    }
}

/// `x wᵀ`: rows `x [rows, inputs]` times `weights [outputs, inputs]` transposed, as `[rows, outputs]`. Sums are kept in f32.
///
/// Uses the threads of the rayon pool that it is called from.
///
/// # Panics
/// `inputs` is 0, or the lengths are not multiples of it.
pub fn product<T: Weight>(kernel: Kernel, x: &[T], weights: &[T], inputs: usize) -> Vec<T> {
    assert!(inputs > 0 && x.len().is_multiple_of(inputs) && weights.len().is_multiple_of(inputs));
    let (rows, outputs) = (x.len() / inputs, weights.len() / inputs);
    if rows == 0 || outputs == 0 {
        return Vec::new();
    }
    let x = match T::as_f32(x) {
        Some(x) => Cow::Borrowed(x),
        None => x.iter().map(|x| x.to_f32()).collect(),
    };
    let mut sums = vec![0.0; outputs * rows];
    let block = |(weights, sums): (&[T], &mut [f32])| kernel.block(&x, weights, inputs, sums);
    let (weights_of_block, sums_of_block) = (BLOCK * inputs, BLOCK * rows);
    if rows * weights.len() < PARALLEL || rayon::current_num_threads() == 1 {
        weights
            .chunks(weights_of_block)
            .zip(sums.chunks_mut(sums_of_block))
            .for_each(block);
    } else {
        weights
            .par_chunks(weights_of_block)
            .zip(sums.par_chunks_mut(sums_of_block))
            .for_each(block);
    }
    if rows == 1 {
        return T::from_f32s(sums);
    }
    // What a block made lies together: rows of its outputs.
    let mut product = Vec::with_capacity(sums.len());
    for row in 0..rows {
        for block in sums.chunks(sums_of_block) {
            let outputs = block.len() / rows;
            product.extend(block[row * outputs..][..outputs].iter().map(|sum| T::from_f32(*sum)));
        }
    }
    product
}
