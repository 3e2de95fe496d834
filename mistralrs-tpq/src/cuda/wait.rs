//! Waiting for a device, with a deadline. Nothing here blocks in the driver: a kernel that waits for a lost rank, or an
//! operation of NCCL, would never let it return.

use std::time::{Duration, Instant};

use super::CudaError;

/// Polls before the thread begins to sleep between them: about what the rest of a decode step takes.
const SPIN: Duration = Duration::from_micros(200);
const NAP: Duration = Duration::from_micros(50);

/// Work on a device that ends, or not.
pub trait Pending {
    /// Whether it has ended.
    ///
    /// # Errors
    /// What the device or the library behind it reports, at any time.
    fn poll(&mut self) -> Result<bool, CudaError>;

    /// Makes it end, so that the device is free again.
    fn abort(&mut self);
}

/// Returns when `work` has ended. After an error or the deadline it is aborted.
///
/// # Errors
/// What `work` reports, or [`CudaError::Stalled`] after `deadline`.
pub fn wait(work: &mut dyn Pending, deadline: Duration) -> Result<(), CudaError> {
    let started = Instant::now();
    let outcome = loop {
        match work.poll() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => break error,
        }
        let waited = started.elapsed();
        if waited >= deadline {
            break CudaError::Stalled { waited };
        }
        if waited < SPIN {
            std::hint::spin_loop();
        } else {
            std::thread::sleep(NAP);
        }
    };
    work.abort();
    Err(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Work {
        polls: usize,
        ends_after: usize,
        fails_after: usize,
        aborted: bool,
    }

    impl Work {
        const fn new(ends_after: usize, fails_after: usize) -> Self {
            Self {
                polls: 0,
                ends_after,
                fails_after,
                aborted: false,
            }
        }
    }

    impl Pending for Work {
        fn poll(&mut self) -> Result<bool, CudaError> {
            self.polls += 1;
            if self.polls > self.fails_after {
                return Err(CudaError::Nccl {
                    what: "go on",
                    reason: "remote error".to_owned(),
                });
            }
            Ok(self.polls > self.ends_after)
        }

        fn abort(&mut self) {
            self.aborted = true;
        }
    }

    const NEVER: usize = usize::MAX;

    #[test]
    fn work_that_ends_is_not_aborted() {
        let mut work = Work::new(3, NEVER);
        wait(&mut work, Duration::from_secs(30)).unwrap();
        assert!(!work.aborted && work.polls == 4);
    }

    #[test]
    fn work_that_does_not_end_is_aborted_at_the_deadline() {
        let mut work = Work::new(NEVER, NEVER);
        let error = wait(&mut work, Duration::from_millis(5)).unwrap_err();
        assert!(matches!(error, CudaError::Stalled { waited } if waited >= Duration::from_millis(5)));
        assert!(work.aborted);
    }

    #[test]
    fn an_error_that_is_reported_meanwhile_ends_the_wait_before_the_deadline() {
        let mut work = Work::new(NEVER, 2);
        let error = wait(&mut work, Duration::from_secs(3600)).unwrap_err();
        assert!(matches!(error, CudaError::Nccl { .. }), "{error}");
        assert!(work.aborted && work.polls == 3);
    }
}
