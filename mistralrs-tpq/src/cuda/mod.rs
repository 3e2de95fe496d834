//! The GPU twin of `codec` and `exchange`: payloads bit-equal to `codec/scalar.rs` (a NaN for a NaN), sums in rank order. No
//! fused multiply-add, no flush to zero; one thread adds an element's parts.
//!
//! ```text
//!  encode ── link: peer memory, NCCL ── decode                                    one-shot
//!  encode ── link: each rank its rows ── requantize ── link ── place              two-shot
//!  encode ── page-locked memory, the group's own connections ── decode            tcp
//! ```
//!
//! Without the feature `cuda` there is what needs no device, and what `tests/cuda.rs` runs, which compiles the kernels'
//! sources for the processor. `docs/gpu-status.md` says what has run where.

pub mod args;
mod error;
pub mod facts;
mod grid;
mod layout;
pub mod order;
mod rd_layout;
pub mod slots;
pub mod staging;
pub mod wait;

#[cfg(all(feature = "cuda", feature = "candle"))]
mod candle;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod group;
#[cfg(feature = "cuda")]
mod link;
#[cfg(feature = "cuda")]
pub mod measure;
#[cfg(feature = "cuda")]
mod memory;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(feature = "cuda")]
mod peer;
#[cfg(feature = "cuda")]
mod reducer;
#[cfg(feature = "cuda")]
mod staged;
#[cfg(feature = "cuda")]
mod stages;
#[cfg(feature = "cuda")]
mod tables;
#[cfg(feature = "cuda")]
mod tensor;

#[cfg(all(feature = "cuda", feature = "candle"))]
pub use candle::all_reduce_storage;
#[cfg(feature = "cuda")]
pub use device::{device_count, Device};
pub use error::CudaError;
pub use facts::GpuLink;
pub use grid::{DeviceCodec, Kernel, Launch, THREADS};
#[cfg(feature = "cuda")]
pub use group::{DeviceGroup, Operands};
pub use layout::{PaperLayout, SiteLayout};
pub use rd_layout::RdLayout;
#[cfg(feature = "cuda")]
pub use reducer::{DeviceReducer, ReducerConfig};
#[cfg(feature = "cuda")]
pub use tables::SiteTables;
#[cfg(feature = "cuda")]
pub use tensor::DeviceTensor;
