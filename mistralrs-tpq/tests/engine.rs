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
#[path = "engine/install.rs"]
mod install;
#[path = "engine/load.rs"]
mod load;
#[path = "engine/quality.rs"]
mod quality;
#[path = "engine/recovery.rs"]
mod recovery;
#[path = "engine/refusals.rs"]
mod refusals;
#[path = "engine/runs.rs"]
mod runs;
#[path = "engine/serving.rs"]
mod serving;
