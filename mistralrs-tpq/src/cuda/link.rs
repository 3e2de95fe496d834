//! How payloads get from GPU to GPU, in the order of a stream and without the host.

use std::fmt;
use std::time::Duration;

use super::slots::Stage;
use super::{CudaError, Device};
use crate::transport::MAX_RANKS;

/// Device addresses of the payloads of a stage, by rank; each after its header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payloads {
    pub(super) addresses: [u64; MAX_RANKS],
    /// Whether they are whole, where this rank asked for its own rows only.
    pub(super) whole: bool,
}

/// Where a link's payloads take turns with two slots: [`Call::turn`](super::args::Call::turn) and the field after it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Turns {
    pub(super) count: u64,
    pub(super) slot_len: u64,
}

/// One exchange runs at a time: `own` of a stage, then `gather` or `scatter` of it. All ranks call alike.
pub(super) trait Link: fmt::Debug + Send {
    /// Bytes of the longest payload it carries.
    fn limit(&self) -> usize;

    /// Where this rank's payload of `stage` goes, after a header of zeros. `longest`: bytes of the longest payload that a
    /// rank has in this stage.
    fn own(&mut self, device: &Device, stage: Stage, longest: usize) -> Result<u64, CudaError>;

    /// The payloads of all ranks, to be read by what is given to the stream from now on.
    fn gather(&mut self, device: &Device, stage: Stage) -> Result<Payloads, CudaError>;

    /// As `gather` of partial sums, of which only those bytes are needed that are this rank's: `cuts[r]..cuts[r + 1]` are
    /// rank r's, of every rank's payload.
    fn scatter(&mut self, device: &Device, cuts: &[usize]) -> Result<Payloads, CudaError>;

    /// With two slots in turn, all addresses are of slot 0.
    fn turns(&self) -> Turns {
        Turns::default()
    }

    /// How long its kernels wait for other ranks, where the host waits for `deadline`.
    fn patience(&self, deadline: Duration) -> Duration {
        deadline
    }

    /// What went wrong meanwhile, without waiting.
    fn check(&mut self) -> Result<(), CudaError>;

    /// Makes work of this link that is on the device end, and the other ranks' with it, as far as it can.
    fn abort(&mut self);
}
