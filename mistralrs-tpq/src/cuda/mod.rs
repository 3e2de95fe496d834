//! The GPU twin of `codec`: what a launch of the kernels in `kernels/` is told, bit-equal to `codec/scalar.rs` (a NaN for
//! a NaN): no fused multiply-add, no flush to zero, one thread adds an element's parts in rank order.
//!
//! Nothing here talks to a device yet: [`args`], [`PaperLayout`] and [`Launch`] are what a launcher needs and what
//! `tests/cuda.rs` runs, which compiles the same kernel sources for the processor. `docs/gpu-status.md` says what has run
//! where and what is missing.

pub mod args;
mod grid;
mod layout;

pub use grid::{encode_units, DeviceCodec, Kernel, Launch, THREADS};
pub use layout::PaperLayout;
