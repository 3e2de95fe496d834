//! Ranks of one host read each other's payloads where they were written: memory of one GPU that the processes of the others
//! have opened (CUDA IPC). No copy, no library; what is left of an exchange is a barrier between writing and reading.
//!
//! ```text
//! rank r's memory: inbox of the barrier | slot 0 | slot 1
//! ```
//! Payloads take turns with the slots. Whose turn it is the device counts, so that exchanges may be captured into a CUDA graph.

#![allow(unsafe_code)]

use std::mem::offset_of;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{result, sys, CudaStream};

use super::args::{Barrier, Status, HEADER_LEN};
use super::device::driver;
use super::facts::{tell_all, MESSAGE_LEN};
use super::link::{Link, Payloads, Turns};
use super::memory::Buffer;
use super::slots::{Slots, Stage};
use super::{CudaError, Device};
use crate::transport::{Transport, MAX_RANKS};

/// Bytes of a payload: 4096 tokens of 8192 features at 4.2 bits. Longer ones go in pieces.
const CAPACITY: usize = 20 << 20;

#[derive(Debug)]
pub(super) struct Peer {
    rank: usize,
    ranks: usize,
    slots: Slots,
    /// By rank: where its memory is for this process.
    bases: [u64; MAX_RANKS],
    /// The other ranks' memory, to be closed.
    opened: Vec<u64>,
    _own: Buffer,
    reached: Buffer,
    status: u64,
    patience: Duration,
    /// Beside the stream of exchanges, which may wait for a rank that is lost.
    side: Arc<CudaStream>,
}

impl Peer {
    /// All ranks call this together; it fails on all when it fails on one.
    pub(super) fn open(
        device: &Device,
        transport: &dyn Transport,
        status: u64,
        patience: Duration,
    ) -> Result<Self, CudaError> {
        let (rank, ranks) = (transport.rank(), transport.world_size());
        let slots = Slots::new(CAPACITY);
        // What fails here must not keep this rank from telling the others, who wait for its handle.
        let own = share(device, slots.bytes());
        let mut message = [0; MESSAGE_LEN];
        if let Ok((_, handle)) = &own {
            message[0] = 1;
            message[1..=handle.len()].copy_from_slice(handle);
        }
        let messages = tell_all(transport, &message, patience)?;
        let (memory, _) = own?;
        if let Some(rank) = messages.iter().position(|message| message[0] != 1) {
            let reason = format!("rank {rank} has no memory to share");
            return Err(CudaError::ApiMisuse { what: reason });
        }
        let mut peer = Self {
            rank,
            ranks,
            slots,
            bases: [0; MAX_RANKS],
            opened: Vec::new(),
            reached: Buffer::zeroed(device, 8 * MAX_RANKS)?,
            status,
            // So that the kernel, which knows who is missing, gives up before the host does.
            patience: patience / 4 * 3,
            side: device.context().new_stream().map_err(driver("make a stream"))?,
            _own: memory,
        };
        for (from, message) in messages.iter().enumerate() {
            peer.bases[from] = match from == rank {
                true => peer._own.address(),
                false => open_handle(message)?,
            };
            if from != rank {
                peer.opened.push(peer.bases[from]);
            }
        }
        // Zeros before anybody tells this rank something.
        device.stream().synchronize().map_err(driver("go on"))?;
        Ok(peer)
    }

    fn meet(&self, device: &Device) -> Result<(), CudaError> {
        let barrier = Barrier {
            reached: self.reached.address(),
            inbox: self.bases[self.rank],
            inboxes: self.bases,
            status: self.status,
            headers: self.headers(self.rank),
            slot_len: self.slots.slot_len() as u64,
            patience_ns: self.patience.as_nanos() as u64,
            rank: self.rank as u32,
            ranks: self.ranks as u32,
        };
        // SAFETY: the memory of all ranks is open as long as this value lives, and its owner drops it after the stream.
        unsafe { device.barrier(&barrier) }
    }

    /// Of a rank: its slot 0.
    fn headers(&self, rank: usize) -> u64 {
        self.bases[rank] + Slots::START as u64
    }
}

impl Link for Peer {
    fn limit(&self) -> usize {
        CAPACITY
    }

    fn own(&mut self, _: &Device, _: Stage, longest: usize) -> Result<u64, CudaError> {
        if longest > CAPACITY {
            return Err(CudaError::ApiMisuse {
                what: format!("a payload of {longest} bytes, peers share {CAPACITY}"),
            });
        }
        Ok(self.headers(self.rank) + HEADER_LEN as u64)
    }

    fn gather(&mut self, device: &Device, _: Stage) -> Result<Payloads, CudaError> {
        self.meet(device)?;
        let mut addresses = [0; MAX_RANKS];
        for (rank, address) in addresses.iter_mut().enumerate().take(self.ranks) {
            *address = self.headers(rank) + HEADER_LEN as u64;
        }
        Ok(Payloads { addresses, whole: true })
    }

    fn scatter(&mut self, device: &Device, _cuts: &[usize]) -> Result<Payloads, CudaError> {
        self.gather(device, Stage::Partial)
    }

    fn turns(&self) -> Turns {
        Turns {
            count: self.reached.address() + 8 * self.rank as u64,
            slot_len: self.slots.slot_len() as u64,
        }
    }

    fn patience(&self, _deadline: Duration) -> Duration {
        self.patience
    }

    fn check(&mut self) -> Result<(), CudaError> {
        Ok(())
    }

    /// Makes a barrier that waits end now, and later ones tell nobody anything.
    fn abort(&mut self) {
        let absent = self.status + offset_of!(Status, absent_ranks) as u64;
        let (stream, inbox) = (self.side.cu_stream(), self.bases[self.rank]);
        // SAFETY: a field of the status and this rank's inbox, which kernels read at system scope. What cannot be written
        // ends when its patience is over.
        unsafe {
            let _ = result::memset_d8_async(absent, 0xff, 8, stream);
            let _ = result::memset_d8_async(inbox, 0xff, 8 * MAX_RANKS, stream);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for address in self.opened.drain(..) {
            // SAFETY: opened by `open_handle`, closed here only.
            let _ = unsafe { sys::cuIpcCloseMemHandle(address) };
        }
    }
}

/// Memory, and the handle with which other processes open it.
fn share(device: &Device, len: usize) -> Result<(Buffer, [u8; 64]), CudaError> {
    let memory = Buffer::zeroed(device, len)?;
    let mut handle = sys::CUipcMemHandle_st { reserved: [0; 64] };
    // SAFETY: the address is the start of an allocation of `cuMemAlloc`; the handle is written.
    let got = unsafe { sys::cuIpcGetMemHandle(&mut handle, memory.address()) };
    got.result().map_err(driver("share memory with other processes"))?;
    Ok((memory, bytemuck::cast(handle.reserved)))
}

fn open_handle(message: &[u8; MESSAGE_LEN]) -> Result<u64, CudaError> {
    let mut bytes = [0; 64];
    bytes.copy_from_slice(&message[1..65]);
    let handle = sys::CUipcMemHandle_st {
        reserved: bytemuck::cast(bytes),
    };
    let mut address = 0;
    let flags = sys::CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
    // SAFETY: any bytes may be given as a handle; the driver refuses those that are none.
    let opened = unsafe { sys::cuIpcOpenMemHandle_v2(&mut address, handle, flags) };
    opened.result().map_err(driver("open a peer's memory"))?;
    Ok(address)
}
