//! `cargo xtask`: the project's commands.
//!
//! ```text
//! setup   published engine crates (or a checkout) + patches/<version>/*.patch -> engine/
//! build   setup, then target/release/{tpq,mistralrs-server}
//! install setup, then `cargo install` of those and mistralrs
//! demo    build, calibrate, evaluate, serve and stream on local ranks, one table
//! engine-check  a series on a checkout: apply, take off, compile with published candle, test
//! cuda-check  the CUDA kernels for each architecture, without a GPU
//! manifest-check  the manifests of examples/multi-host against their schemas
//! test    the engine-free tests first, then everything
//! ci      what must pass before a change lands
//! ```
//! A workspace of its own, because the main one cannot even be resolved before `engine/` exists.

pub mod args;
pub mod build;
pub mod checks;
pub mod cuda_check;
pub mod demo;
pub mod engine_check;
pub mod install;
pub mod manifest_check;
pub mod setup;
pub mod steps;
pub mod wheels;
pub mod workspace;
