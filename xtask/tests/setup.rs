//! `cargo xtask setup` as a user calls it, on a made-up engine of two crates; no network.

#[path = "setup/checkout.rs"]
mod checkout;
#[path = "setup/engine.rs"]
mod engine;
#[path = "setup/project.rs"]
mod project;
#[path = "setup/series.rs"]
mod series;
