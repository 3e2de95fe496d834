//! Tensor-parallel all-reduce at about 4.2 bits a value, as a plugin for mistral.rs.
//!
//! Tensor parallelism splits each layer over N ranks. After every attention output projection and MLP down projection
//! each rank holds a partial sum `[tokens, features]`, and an all-reduce adds them: over Ethernet or PCIe most of the
//! time. This crate replaces that all-reduce by an exchange of quantized partial sums (arXiv 2411.07942).
//!
//! Embedding takes one line before the model is loaded, on every rank:
//!
//! ```no_run
//! # #[cfg(feature = "engine")] fn main() -> anyhow::Result<()> {
//! mistralrs_tpq::install("tpq.yaml".as_ref())?;
//! // ... build the model with mistral.rs as before; ranks other than 0 follow from inside its `build()`.
//! # Ok(()) }
//! # #[cfg(not(feature = "engine"))] fn main() {}
//! ```
//!
//! The exchange alone needs no engine. Two ranks as threads, four values each, one codec:
//!
//! ```
//! use mistralrs_tpq::codec::{Dynamic, Values, ValuesMut};
//! use mistralrs_tpq::exchange::{Communicator, ExchangeConfig, Site};
//! use mistralrs_tpq::transport::memory;
//! use std::sync::Arc;
//!
//! let site = Site { id: 0, name: "model.layers.0.mlp.down_proj".into() };
//! let ranks: Vec<_> = memory::group(2)
//!     .into_iter()
//!     .map(|transport| {
//!         let site = site.clone();
//!         std::thread::spawn(move || {
//!             let communicator = Communicator::new(Arc::new(transport), ExchangeConfig::default());
//!             let (partial, mut sum) = ([1.0, -2.0, 0.5, 4.0], [0.0; 4]);
//!             communicator
//!                 .all_reduce(&site, &Dynamic::new(4), Values::F32(&partial), ValuesMut::F32(&mut sum))
//!                 .map(|_| sum)
//!         })
//!     })
//!     .collect();
//! let sums: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap().unwrap()).collect();
//! assert_eq!(sums[0], sums[1]); // the same bits on every rank
//! assert_eq!(sums[0], [2.0, -4.0, 1.0, 8.0]);
//! ```
//!
//! The folders are the data path:
//!
//! ```text
//!            rank r                                                       every other rank
//!  engine    partial sum [T, E] ──┐                                  ┌──> sum [T, E]
//!  codec                          └> encode ── payload      decode ──┘ + own dequantized copy,
//!  wire                                         header + payload        in rank order, f32
//!  transport                                    TCP mesh, memory
//!  exchange  ·················· one_shot, two_shot, ring, doubling, lossless ··················
//! ```
//!
//! Beside it: `cuda` is the same for partial sums on GPUs, `config` and `manifest` say what to do, `calibrate` makes manifests,
//! `monitor` notices while serving that they no longer fit, `linear` multiplies by weights on the processor, `eval` measures quality, `simulate` larger groups, `bench` speed,
//! `report` and `cli` show it, `serve` is the HTTP server; `checkpoint` writes models with random weights to try all that on.

pub mod command;
#[cfg(feature = "engine")]
pub mod engine;

pub mod codec;

pub mod wire;

pub mod transport;

pub mod exchange;

pub mod cuda;

pub mod linear;

pub mod config;
pub mod manifest;

pub mod bench;
pub mod calibrate;
pub mod checkpoint;
pub mod eval;
pub mod monitor;
pub mod report;
pub mod simulate;

pub mod cli;
#[cfg(feature = "engine")]
pub mod serve;

#[cfg(feature = "engine")]
pub use engine::{install, install_from, install_plan};

/// Of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
