//! NCCL between GPUs: an all-gather of bytes, and grouped sends and receives, on the stream of the exchange.
//!
//! The communicator is this group's own. The engine has none here, as its layers are given an external one. Its calls only
//! add to the stream, once all connections are up: that is why the first of each kind runs during `open`, on a thread that
//! can be left behind at the deadline.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_void, CStr};
use std::mem::ManuallyDrop;
use std::sync::mpsc;
use std::time::Duration;

use cudarc::nccl::result::{self, NcclError};
use cudarc::nccl::sys::{self, ncclComm_t, ncclDataType_t, ncclResult_t};

use super::args::HEADER_LEN;
use super::device::driver;
use super::facts::{tell_all, MESSAGE_LEN};
use super::link::{Link, Payloads};
use super::memory::Buffer;
use super::slots::Stage;
use super::{CudaError, Device};
use crate::transport::{Transport, MAX_RANKS};

/// NCCL counts bytes in a `size_t`; the kernels count a payload's rows in 32 bits.
const LIMIT: usize = 1 << 30;
const ID_LEN: usize = 128;
/// Payloads start at multiples of it.
const ALIGNMENT: usize = 64;

#[derive(Debug)]
pub(super) struct Nccl {
    rank: usize,
    ranks: usize,
    communicator: Communicator,
    /// Payloads of all ranks, by stage: `stride` bytes from one header to the next.
    gathered: [Room; 2],
    strides: [usize; 2],
    /// This rank's rows of all ranks' partial sums.
    scattered: Room,
}

impl Nccl {
    /// Whether the library is there.
    pub(super) fn available() -> bool {
        #[cfg(not(feature = "candle"))]
        // SAFETY: loads a shared library by its usual names and drops it again.
        return unsafe { sys::is_culib_present() };
        #[cfg(feature = "candle")]
        true
    }

    /// All ranks call this together; it fails on all when it fails on one.
    pub(super) fn open(device: &Device, transport: &dyn Transport, patience: Duration) -> Result<Self, CudaError> {
        let (rank, ranks) = (transport.rank(), transport.world_size());
        let own = match (Self::available(), rank) {
            (false, _) => Err(CudaError::Absent {
                library: "NCCL (libnccl.so)",
                hint: "put its folder into LD_LIBRARY_PATH; where there is libnccl.so.2 only, link libnccl.so to it",
            }),
            (true, 0) => result::get_uniqueid()
                .map_err(refused("make an id"))
                .map(|id| id.internal),
            (true, _) => Ok([0; ID_LEN]),
        };
        let mut message = [0; MESSAGE_LEN];
        if let Ok(id) = &own {
            message[0] = 1;
            message[1..=ID_LEN].copy_from_slice(&bytemuck::cast::<_, [u8; ID_LEN]>(*id));
        }
        let messages = tell_all(transport, &message, patience)?;
        own?;
        if let Some(rank) = messages.iter().position(|message| message[0] != 1) {
            let reason = format!("rank {rank} has no NCCL");
            return Err(CudaError::ApiMisuse { what: reason });
        }
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&messages[0][1..=ID_LEN]);
        let (done, wait) = mpsc::channel();
        let device = device.clone();
        std::thread::spawn(move || {
            // Nobody waits any more: then it is dropped here.
            let _ = done.send(Self::join(&device, rank, ranks, bytemuck::cast(id)));
        });
        let stalled = |_| Err(CudaError::Stalled { waited: patience });
        wait.recv_timeout(patience).unwrap_or_else(stalled)
    }

    /// Waits for all ranks, also for lost ones.
    fn join(device: &Device, rank: usize, ranks: usize, id: [c_char; ID_LEN]) -> Result<Self, CudaError> {
        device.bind()?;
        let mut communicator = std::ptr::null_mut();
        let id = sys::ncclUniqueId { internal: id };
        // SAFETY: the communicator is written.
        let made = unsafe { result::comm_init_rank(&mut communicator, ranks as i32, id, rank as i32) };
        made.map_err(refused("join a group"))?;
        let buffer = || Room::new(device, ranks * (HEADER_LEN + ALIGNMENT));
        let mut nccl = Self {
            rank,
            ranks,
            communicator: Communicator(communicator),
            gathered: [buffer()?, buffer()?],
            strides: [0; 2],
            scattered: buffer()?,
        };
        // A small exchange and one that NCCL sends by another protocol, so that it connects what both need.
        for longest in [ranks, 8 << 20] {
            let cuts: Vec<usize> = (0..=ranks).map(|rank| longest / ranks * rank).collect();
            nccl.own(device, Stage::Sum, longest)?;
            nccl.gather(device, Stage::Sum)?;
            nccl.own(device, Stage::Partial, longest)?;
            nccl.scatter(device, &cuts)?;
        }
        device.stream().synchronize().map_err(driver("go on"))?;
        Ok(nccl)
    }

    fn header(&self, stage: Stage, rank: usize) -> u64 {
        self.gathered[stage as usize].buffer.address() + (rank * self.strides[stage as usize]) as u64
    }
}

impl Link for Nccl {
    fn limit(&self) -> usize {
        LIMIT
    }

    fn own(&mut self, device: &Device, stage: Stage, longest: usize) -> Result<u64, CudaError> {
        let stride = (HEADER_LEN + longest).next_multiple_of(ALIGNMENT);
        self.strides[stage as usize] = stride;
        self.gathered[stage as usize].grow(device, self.ranks * stride)?;
        let header = self.header(stage, self.rank);
        // SAFETY: this rank's part of a buffer that was just made long enough.
        unsafe { device.clear(header, HEADER_LEN) }?;
        Ok(header + HEADER_LEN as u64)
    }

    fn gather(&mut self, device: &Device, stage: Stage) -> Result<Payloads, CudaError> {
        let (own, all) = (self.header(stage, self.rank), self.header(stage, 0));
        let count = self.strides[stage as usize];
        // SAFETY: `ranks * count` bytes, of which this rank's are the input, in place as NCCL has it.
        let gathered = unsafe {
            result::all_gather(
                own as *const c_void,
                all as *mut c_void,
                count,
                ncclDataType_t::ncclUint8,
                self.communicator.0,
                device.stream().cu_stream().cast(),
            )
        };
        gathered.map_err(refused("gather payloads"))?;
        let mut addresses = [0; MAX_RANKS];
        for (rank, address) in addresses.iter_mut().enumerate().take(self.ranks) {
            *address = self.header(stage, rank) + HEADER_LEN as u64;
        }
        Ok(Payloads { addresses, whole: true })
    }

    fn scatter(&mut self, device: &Device, cuts: &[usize]) -> Result<Payloads, CudaError> {
        let len = |rank: usize| cuts[rank + 1] - cuts[rank];
        let stride = (HEADER_LEN + len(self.rank)).next_multiple_of(ALIGNMENT);
        self.scattered.grow(device, self.ranks * stride)?;
        let slot = |rank: usize| self.scattered.buffer.address() + (rank * stride) as u64;
        let header = self.header(Stage::Partial, self.rank);
        let rows = |rank: usize| header + (HEADER_LEN + cuts[rank]) as u64;
        let link = Transfer {
            communicator: self.communicator.0,
            stream: device.stream().cu_stream().cast(),
        };
        // SAFETY: the payload has `cuts[ranks]` bytes, and each slot room for a header and this rank's rows.
        unsafe {
            device.copy(header, slot(self.rank), HEADER_LEN)?;
            if len(self.rank) > 0 {
                device.copy(rows(self.rank), slot(self.rank) + HEADER_LEN as u64, len(self.rank))?;
            }
            result::group_start().map_err(refused("start a group"))?;
            let outcome = (0..self.ranks).filter(|peer| *peer != self.rank).try_for_each(|peer| {
                link.send(header, HEADER_LEN, peer)?;
                link.send(rows(peer), len(peer), peer)?;
                link.receive(slot(peer), HEADER_LEN, peer)?;
                link.receive(slot(peer) + HEADER_LEN as u64, len(self.rank), peer)
            });
            // Ended in any case: a group left open would swallow what other code gives to NCCL in this thread.
            let ended = result::group_end();
            outcome.map_err(refused("exchange rows"))?;
            ended.map_err(refused("exchange rows"))?;
        }
        let mut addresses = [0; MAX_RANKS];
        for (rank, address) in addresses.iter_mut().enumerate().take(self.ranks) {
            *address = slot(rank) + HEADER_LEN as u64;
        }
        Ok(Payloads {
            addresses,
            whole: false,
        })
    }

    fn check(&mut self) -> Result<(), CudaError> {
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: an open communicator; the state is written.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.communicator.0, &mut state) };
        let outcome = asked.result().and_then(|_| state.result());
        outcome.map(|_| ()).map_err(refused("go on"))
    }

    fn abort(&mut self) {
        self.communicator.abort();
    }
}

struct Transfer {
    communicator: ncclComm_t,
    stream: sys::cudaStream_t,
}

impl Transfer {
    /// # Safety
    /// `len` bytes at `from`, until the stream has sent them.
    unsafe fn send(&self, from: u64, len: usize, to: usize) -> Result<(), NcclError> {
        if len == 0 {
            return Ok(());
        }
        let (from, kind) = (from as *const c_void, ncclDataType_t::ncclUint8);
        // SAFETY: the caller's promise.
        unsafe { result::send(from, len, kind, to as i32, self.communicator, self.stream) }.map(|_| ())
    }

    /// # Safety
    /// Room for `len` bytes at `to`, until the stream has received them.
    unsafe fn receive(&self, to: u64, len: usize, from: usize) -> Result<(), NcclError> {
        if len == 0 {
            return Ok(());
        }
        let (to, kind) = (to as *mut c_void, ncclDataType_t::ncclUint8);
        // SAFETY: the caller's promise.
        unsafe { result::recv(to, len, kind, from as i32, self.communicator, self.stream) }.map(|_| ())
    }
}

/// Memory that grows to the largest message. What a captured graph refers to stays.
#[derive(Debug)]
struct Room {
    buffer: Buffer,
    /// Whether a graph has the buffer's address.
    in_graph: bool,
    /// Buffers before this one that a graph has.
    kept: Vec<Buffer>,
}

impl Room {
    fn new(device: &Device, len: usize) -> Result<Self, CudaError> {
        Ok(Self {
            buffer: Buffer::zeroed(device, len)?,
            in_graph: false,
            kept: Vec::new(),
        })
    }

    fn grow(&mut self, device: &Device, len: usize) -> Result<(), CudaError> {
        let captured = device.is_capturing()?;
        if captured && len > self.buffer.len() {
            return Err(CudaError::Captured {
                which: "of more bytes than any before it",
            });
        }
        if let Some(old) = self.buffer.grow(device, len)? {
            if std::mem::take(&mut self.in_graph) {
                self.kept.push(old);
            }
        }
        self.in_graph |= captured;
        Ok(())
    }
}

/// Aborted when dropped: `ncclCommDestroy` waits for the other ranks, which may be gone.
#[derive(Debug)]
struct Communicator(ncclComm_t);

// SAFETY: NCCL allows any thread, one at a time; `Nccl` is used behind a lock.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Ends its kernels, also those that wait for a lost rank. On a thread of its own: NCCL ends them at once, but returns only
    /// when no graph has its operations any more, and who holds such graphs may be waiting here.
    fn abort(&mut self) {
        if self.0.is_null() {
            return;
        }
        let open = ManuallyDrop::new(Self(std::mem::replace(&mut self.0, std::ptr::null_mut())));
        let abort = move || {
            // SAFETY: open until now, and not used again.
            let _ = unsafe { result::comm_abort(open.0) };
        };
        // Without memory for a thread it is left as it is: its kernels end with the process.
        let _ = std::thread::Builder::new()
            .name("tpq-nccl-abort".to_owned())
            .spawn(abort);
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.abort();
    }
}

/// What NCCL says, with what was asked of it.
fn refused(what: &'static str) -> impl Fn(NcclError) -> CudaError {
    move |error| {
        // SAFETY: any code may be asked about; the text is static.
        let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(error.0)) };
        CudaError::Nccl {
            what,
            reason: text.to_string_lossy().into_owned(),
        }
    }
}
