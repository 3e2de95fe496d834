//! The real engine in real processes: every architecture under tensor parallelism, the server, and what is refused.
//!
//! Models are made on the spot (a megabyte, random weights), except for greedy text, which the demo model writes.
#![cfg(feature = "engine")]

mod common;

#[path = "engine/architectures.rs"]
mod architectures;
#[path = "engine/bench.rs"]
mod bench;
#[path = "engine/calibration.rs"]
mod calibration;
#[cfg(target_os = "linux")]
#[path = "engine/capture.rs"]
mod capture;
#[path = "engine/drift.rs"]
mod drift;
#[path = "engine/install.rs"]
mod install;
#[path = "engine/instruments.rs"]
mod instruments;
#[path = "engine/load.rs"]
mod load;
#[path = "engine/migrate.rs"]
mod migrate;
#[path = "engine/openai.rs"]
mod openai;
#[path = "engine/programs.rs"]
mod programs;
#[path = "engine/quality.rs"]
mod quality;
#[path = "engine/quality_rd.rs"]
mod quality_rd;
#[path = "engine/recovery.rs"]
mod recovery;
#[path = "engine/refusals.rs"]
mod refusals;
#[path = "engine/runs.rs"]
mod runs;
#[path = "engine/serving.rs"]
mod serving;
