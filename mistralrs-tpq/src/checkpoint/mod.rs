//! Loadable Hugging Face checkpoints with random weights, of any size and without a download.
//!
//! For tests (every architecture in a megabyte), for benchmarks at a real model's shapes (how long an exchange takes does
//! not depend on what the weights say) and for trying out a deployment before its weights are there. The text such a model
//! writes is noise; quality is measured on real models.
//!
//! ```text
//! CheckpointSpec --validate--> layout: names, shapes, how each is drawn --> weights: values --> writer: files
//!                                        config.json, tokenizer.json ------------------------^
//! ```
//! Names, shapes and configuration keys are those that the loaders of mistral.rs 0.8.1 read. Nothing here depends on the
//! engine.
//!
//! ```
//! use mistralrs_tpq::checkpoint::CheckpointSpec;
//!
//! let spec = CheckpointSpec::preset("tiny-llama")?;
//! let folder = tempfile::tempdir().unwrap();
//! let written = spec.write(&folder.path().join("tiny-llama"))?;
//! assert_eq!(written.parameters, spec.parameters()?);
//! # Ok::<(), mistralrs_tpq::checkpoint::CheckpointError>(())
//! ```

mod config;
mod error;
mod layout;
mod presets;
mod safetensors;
mod spec;
mod tokenizer;
mod weights;
mod writer;

pub use error::CheckpointError;
pub use presets::{Preset, PRESETS};
pub use spec::{Architecture, CheckpointSpec, Experts};
pub use writer::Written;
