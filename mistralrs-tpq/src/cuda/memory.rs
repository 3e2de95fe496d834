//! Memory that outlives an exchange: on the device, and page-locked on the host.

#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::{result, sys, CudaContext};

use super::device::driver;
use super::{CudaError, Device};

/// Bytes on the device, from the driver itself and not from a pool: other processes can open them.
#[derive(Debug)]
pub(super) struct Buffer {
    context: Arc<CudaContext>,
    address: u64,
    len: usize,
}

impl Buffer {
    /// Zeroed, once the stream gets there.
    pub(super) fn zeroed(device: &Device, len: usize) -> Result<Self, CudaError> {
        let context = device.context().clone();
        device.bind()?;
        let len = len.max(1);
        // SAFETY: a plain allocation; the address is freed once, in `drop`.
        let address = unsafe { result::malloc_sync(len) }.map_err(driver("give memory of the GPU"))?;
        let buffer = Self { context, address, len };
        // SAFETY: the buffer has `len` bytes, and lives until the stream has been waited for in `drop`.
        unsafe { device.clear(address, len) }?;
        Ok(buffer)
    }

    /// With `bytes` in it.
    pub(super) fn of(device: &Device, bytes: &[u8]) -> Result<Self, CudaError> {
        let buffer = Self::zeroed(device, bytes.len())?;
        // In the stream's order: a synchronous copy returns when the bytes are staged, and a stream that does not block could
        // run kernels before they are in place.
        // SAFETY: the buffer has at least `bytes.len()` bytes, and nothing else uses it before the wait below.
        let copied = unsafe { result::memcpy_htod_async(buffer.address, bytes, device.stream().cu_stream()) };
        copied.map_err(driver("copy to the GPU"))?;
        device.stream().synchronize().map_err(driver("go on"))?;
        Ok(buffer)
    }

    /// Makes it at least `len` bytes long; what was in it is lost when it grows. Grows by half, so that a group whose
    /// messages vary soon allocates no more. Returns the memory that it was before, if it is another now.
    pub(super) fn grow(&mut self, device: &Device, len: usize) -> Result<Option<Self>, CudaError> {
        if len <= self.len {
            return Ok(None);
        }
        let grown = Self::zeroed(device, len.next_multiple_of(256).max(self.len / 2 * 3))?;
        Ok(Some(std::mem::replace(self, grown)))
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Freeing waits for the device. What a broken context reports was reported before.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `malloc_sync`, freed here only.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Page-locked bytes on the host, which the device copies from and to by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    context: Arc<CudaContext>,
    at: *mut u8,
    len: usize,
}

// SAFETY: the memory belongs to this value alone and is valid in every thread.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn zeroed(device: &Device, len: usize) -> Result<Self, CudaError> {
        let context = device.context().clone();
        device.bind()?;
        let len = len.max(1);
        // Not write-combined: the host reads it, too.
        // SAFETY: a plain allocation; freed once, in `drop`.
        let at = unsafe { result::malloc_host(len, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let at = at.map_err(driver("give page-locked memory"))?.cast::<u8>();
        // SAFETY: `len` bytes that were just allocated.
        unsafe { at.write_bytes(0, len) };
        Ok(Self { context, at, len })
    }

    /// As [`Buffer::grow`]. Nothing may be copying from or to it.
    pub(super) fn grow(&mut self, device: &Device, len: usize) -> Result<(), CudaError> {
        if len > self.len {
            *self = Self::zeroed(device, len.next_multiple_of(4096).max(self.len / 2 * 3))?;
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes; the device writes only ranges that the callers have yet to be told of.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }

    /// Starts to copy `len` bytes from the device to `offset`.
    ///
    /// # Safety
    /// `from` is valid for `len` bytes, and the range is not used until the stream has copied them.
    pub(super) unsafe fn fetch(&self, device: &Device, from: u64, offset: usize, len: usize) -> Result<(), CudaError> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "a copy beyond its memory"
        );
        // SAFETY: in bounds, by the line above; the rest is the caller's promise.
        let copied = unsafe {
            // By address: a slice would claim that nobody else writes.
            sys::cuMemcpyDtoHAsync_v2(self.at.add(offset).cast(), from, len, device.stream().cu_stream())
        };
        copied.result().map_err(driver("copy from the GPU"))
    }

    /// The address for copies that are started elsewhere.
    pub(super) fn pointer(&self) -> *mut u8 {
        self.at
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `malloc_host`, freed here only.
            let _ = unsafe { result::free_host(self.at.cast()) };
        }
    }
}
