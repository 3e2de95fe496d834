//! What a rank has seen of raw logits, for comparison over the ranks.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use sha2::{Digest as _, Sha256};

/// The running digest of this rank's raw-logit responses.
#[derive(Default)]
pub(super) struct LogitsLog {
    seen: Mutex<Seen>,
    arrived: Condvar,
}

#[derive(Default)]
struct Seen {
    count: usize,
    digest: Sha256,
}

impl LogitsLog {
    pub(super) fn reset(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen::default();
    }

    /// Adds the logits of one sequence.
    pub(super) fn add(&self, logits: &[f32]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.digest.update(bytemuck::cast_slice(logits));
        seen.count += 1;
        self.arrived.notify_all();
    }

    /// The digest in hexadecimal, once `count` sequences are in it.
    pub(super) fn digest_after(&self, count: usize, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        while seen.count < count {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "saw {} raw-logit responses, expected {count}",
                seen.count
            );
            seen = self
                .arrived
                .wait_timeout(seen, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let digest = seen.digest.clone().finalize();
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
