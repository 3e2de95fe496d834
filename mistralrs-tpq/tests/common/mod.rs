//! What tests of real processes share: starting and surely ending them, HTTP, models, logits.

// Each test binary uses a part of it.
#![allow(dead_code)]

pub mod http;
pub mod logits;
pub mod manifest;
pub mod model;
#[cfg(target_os = "linux")]
pub mod namespace;
pub mod ports;
pub mod process;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One test at a time: tests of this crate's engine side start up to four processes with a model each, and two such tests at
/// once on a small host make each other late.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `condition` came true in time.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
