//! Through page-locked memory of the host: the only way between machines without NCCL, and between a GPU and a rank that has
//! none. The host waits for the device here, once for each piece of this rank's payload.

#![allow(unsafe_code)]

use std::time::Duration;

use bytemuck::Zeroable;
use cudarc::driver::{sys, CudaEvent};

use super::args::{Call, Header, Status, HEADER_LEN};
use super::device::driver;
use super::grid::Launch;
use super::group::{verdict, Operands};
use super::memory::{Buffer, Pinned};
use super::staging::piece_ends;
use super::tables::SiteTables;
use super::wait::{wait, Pending};
use super::{CudaError, Device};
use crate::codec::{Codec, Dtype, EncodeStats, Values, ValuesMut};
use crate::exchange::{Communicator, Delivery, ExchangeStats, Site, Staging};
use crate::transport::MAX_RANKS;

/// Payloads on the device start at multiples of it.
const ALIGNMENT: usize = 64;

/// Buffers of the host and of the device, which grow to the largest message.
#[derive(Debug)]
pub(super) struct Staged {
    device: Device,
    deadline: Duration,
    rank: usize,
    ranks: usize,
    /// This rank's frame.
    own: Pinned,
    /// The header of this rank's payload, and the kernels' status.
    header: Pinned,
    flow: Flow,
    room: Pinned,
    status: Buffer,
    /// A copy of it on the host.
    seen: Pinned,
    /// Whether the device has decoded since the last check.
    unchecked: bool,
    /// One for each piece that is on its way to the host.
    events: Vec<CudaEvent>,
}

/// Where the payloads are on the device, and how to get there.
#[derive(Debug)]
struct Flow {
    device: Device,
    rank: usize,
    payloads: Buffer,
    stride: usize,
    frame_len: usize,
    room: *const u8,
}

// SAFETY: the pointer is into memory of the `Staged` around it, used by one thread at a time.
unsafe impl Send for Flow {}

impl Staged {
    pub(super) fn new(device: Device, (rank, ranks): (usize, usize), deadline: Duration) -> Result<Self, CudaError> {
        let flow = Flow {
            device: device.clone(),
            rank,
            payloads: Buffer::zeroed(&device, 0)?,
            stride: 0,
            frame_len: 0,
            room: std::ptr::null(),
        };
        Ok(Self {
            own: Pinned::zeroed(&device, 0)?,
            header: Pinned::zeroed(&device, HEADER_LEN)?,
            room: Pinned::zeroed(&device, 0)?,
            status: Buffer::zeroed(&device, size_of::<Status>())?,
            seen: Pinned::zeroed(&device, size_of::<Status>())?,
            unchecked: false,
            events: Vec::new(),
            device,
            deadline,
            rank,
            ranks,
            flow,
        })
    }

    /// The sum of all ranks' values, with the codec on the GPU.
    ///
    /// # Safety
    /// As [`DeviceGroup::all_reduce`](super::DeviceGroup::all_reduce).
    pub(super) unsafe fn one_shot(
        &mut self,
        communicator: &Communicator,
        site: &Site,
        codec: &dyn Codec,
        tables: &SiteTables,
        operands: &Operands,
    ) -> Result<ExchangeStats, CudaError> {
        let Operands { tokens, dtype, .. } = *operands;
        let tokens_on_wire = u32::try_from(tokens).map_err(|_| CudaError::ApiMisuse {
            what: format!("{tokens} tokens are more than one exchange carries: split the batch"),
        })?;
        let payload_len = codec.payload_len(tokens, dtype);
        self.prepare(payload_len, Communicator::staged_frame_len(codec, tokens, dtype))?;
        let call = Call {
            status: self.status.address(),
            tokens: tokens_on_wire,
            features: tables.features as u32,
            values_stride: tables.features as u32,
            ..Call::zeroed()
        };
        let encode = Call {
            to: tables.table(),
            values: operands.values,
            payload: self.flow.payload(self.rank),
            to_row_len: tables.row_len(dtype) as u32,
            to_rank: self.rank as u32,
            ..call
        };
        // SAFETY: `prepare` made room for the payload; the values are the caller's promise.
        unsafe {
            self.device
                .clear(self.flow.payload(self.rank) - HEADER_LEN as u64, HEADER_LEN)?;
            self.device.launch(
                &Launch::encode(tables.codec, dtype, tables.encode_units, tokens),
                &encode,
            )?;
        }
        self.start_fetching(payload_len)?;
        let stats = communicator.staged_one_shot(site, codec, (tokens_on_wire, dtype), self)?;
        if stats.fell_back {
            // SAFETY: the caller's promise.
            let raw = unsafe {
                self.through_host(operands, tables.features, |input, output| {
                    communicator.lossless(site, codec, input, output)
                })
            }?;
            return Ok(ExchangeStats {
                fell_back: true,
                nonfinite: stats.nonfinite,
                ..raw
            });
        }
        let mut payloads = [0; MAX_RANKS];
        for (rank, payload) in payloads.iter_mut().enumerate().take(self.ranks) {
            *payload = self.flow.payload(rank);
        }
        let decode = Call {
            from: tables.table(),
            output: operands.output,
            bias: operands.bias,
            residual: operands.residual,
            payloads,
            from_row_len: tables.row_len(dtype) as u32,
            ranks: self.ranks as u32,
            ..call
        };
        // SAFETY: payloads of `flow`, which outlive the stream's work; the operands are the caller's promise.
        unsafe {
            self.device
                .launch(&Launch::decode(tables.codec, dtype, tables.features, tokens), &decode)
        }?;
        self.unchecked = true;
        Ok(stats)
    }

    /// Waits for the exchanges so far, and says what the device found in their payloads: all else was seen on their way.
    ///
    /// # Errors
    /// A payload that no encoder sends, and what the driver reports.
    pub(super) fn check(&mut self) -> Result<(), CudaError> {
        if !std::mem::take(&mut self.unchecked) {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: both have room for a status, and the host reads it after the wait below only.
        unsafe {
            self.seen
                .fetch(&self.device, self.status.address(), 0, size_of::<Status>())
        }?;
        self.synchronize()?;
        let status: Status = bytemuck::pod_read_unaligned(&self.seen.bytes()[..size_of::<Status>()]);
        verdict(&status, self.deadline)
    }

    /// Brings the values to the host, and what `exchange` makes of them back: for codecs and algorithms without kernels.
    ///
    /// # Safety
    /// As [`DeviceGroup::all_reduce`](super::DeviceGroup::all_reduce).
    pub(super) unsafe fn through_host<E: Into<CudaError>>(
        &mut self,
        operands: &Operands,
        features: usize,
        exchange: impl FnOnce(Values<'_>, ValuesMut<'_>) -> Result<ExchangeStats, E>,
    ) -> Result<ExchangeStats, CudaError> {
        if operands.bias != 0 || operands.residual != 0 {
            return Err(CudaError::ApiMisuse {
                what: "the exchange through the host adds no bias".to_owned(),
            });
        }
        let len = operands.tokens * features * operands.dtype.size();
        self.device.bind()?;
        // What the last exchange brought back is still read by the stream.
        self.synchronize()?;
        self.own.grow(&self.device, len)?;
        self.room.grow(&self.device, len)?;
        // SAFETY: room for `len` bytes, read after the wait only; the values are the caller's promise.
        unsafe { self.own.fetch(&self.device, operands.values, 0, len) }?;
        self.synchronize()?;
        let (own, room) = (&self.own.bytes()[..len], &mut self.room.bytes_mut()[..len]);
        let stats = match operands.dtype {
            Dtype::F32 => exchange(
                Values::F32(bytemuck::cast_slice(own)),
                ValuesMut::F32(bytemuck::cast_slice_mut(room)),
            ),
            Dtype::Bf16 => exchange(
                Values::Bf16(bytemuck::cast_slice(own)),
                ValuesMut::Bf16(bytemuck::cast_slice_mut(room)),
            ),
            Dtype::F16 => exchange(
                Values::F16(bytemuck::cast_slice(own)),
                ValuesMut::F16(bytemuck::cast_slice_mut(room)),
            ),
        };
        let stats = stats.map_err(Into::into)?;
        // SAFETY: `len` bytes on both sides; the room is not touched before the stream has been waited for.
        unsafe { copy_to_device(&self.device, self.room.pointer(), operands.output, len) }?;
        Ok(stats)
    }

    /// Waits for what the stream has been given, which depends on no other rank.
    fn synchronize(&self) -> Result<(), CudaError> {
        self.device.finish(self.deadline, &mut || Ok(()), &mut || {})
    }

    fn prepare(&mut self, payload_len: usize, frame_len: usize) -> Result<(), CudaError> {
        self.device.bind()?;
        // The room's last payloads may still be on their way to the device.
        self.synchronize()?;
        self.own.grow(&self.device, frame_len)?;
        self.room.grow(&self.device, frame_len * (self.ranks - 1))?;
        let stride = (HEADER_LEN + payload_len).next_multiple_of(ALIGNMENT);
        drop(self.flow.payloads.grow(&self.device, stride * self.ranks)?);
        if stride != self.flow.stride {
            self.flow.stride = stride;
            // Headers are where payloads were. A peer's says nothing here: its marks came with the frame.
            for rank in 0..self.ranks {
                // SAFETY: a header in front of each payload.
                unsafe {
                    self.device
                        .clear(self.flow.payload(rank) - HEADER_LEN as u64, HEADER_LEN)
                }?;
            }
        }
        self.flow.frame_len = frame_len;
        self.flow.room = self.room.pointer();
        Ok(())
    }

    /// Copies of the pieces to the host, each with an event behind it; the header first.
    fn start_fetching(&mut self, len: usize) -> Result<(), CudaError> {
        let payload = self.flow.payload(self.rank);
        // SAFETY: both have room, and are read after an event that follows the copy.
        unsafe {
            self.header
                .fetch(&self.device, payload - HEADER_LEN as u64, 0, HEADER_LEN)
        }?;
        let mut start = 0;
        for (index, end) in piece_ends(len).enumerate() {
            // SAFETY: as above.
            unsafe { self.own.fetch(&self.device, payload + start as u64, start, end - start) }?;
            if index == self.events.len() {
                self.events
                    .push(self.device.context().new_event(None).map_err(driver("make an event"))?);
            }
            self.events[index]
                .record(self.device.stream())
                .map_err(driver("record an event"))?;
            start = end;
        }
        Ok(())
    }
}

impl Staging for Staged {
    fn fetch(&mut self, end: usize) -> Result<(), CudaError> {
        let piece = end.div_ceil(super::staging::PIECE).saturating_sub(1);
        match self.events.get(piece) {
            Some(event) => wait(&mut Fetched(event), self.deadline),
            None => Ok(()),
        }
    }

    fn own(&self) -> &[u8] {
        self.own.bytes()
    }

    fn own_mut(&mut self) -> &mut [u8] {
        self.own.bytes_mut()
    }

    fn seen(&mut self) -> Result<EncodeStats, CudaError> {
        let header: Header = bytemuck::pod_read_unaligned(&self.header.bytes()[..HEADER_LEN]);
        Ok(EncodeStats {
            clipped: u64::from(header.clipped),
            nonfinite: u64::from(header.nonfinite),
        })
    }

    fn halves(&mut self) -> (&[u8], &mut [u8], &mut dyn Delivery) {
        let room_len = self.flow.frame_len * (self.ranks - 1);
        (self.own.bytes(), &mut self.room.bytes_mut()[..room_len], &mut self.flow)
    }
}

impl Flow {
    fn payload(&self, rank: usize) -> u64 {
        self.payloads.address() + (rank * self.stride + HEADER_LEN) as u64
    }
}

impl Delivery for Flow {
    fn deliver(&mut self, from: usize, start: usize, end: usize) -> Result<(), CudaError> {
        let place = if from > self.rank { from - 1 } else { from };
        let to = self.payload(from) + start as u64;
        // SAFETY: in the room, a frame for each other rank in rank order, of which these bytes have arrived; the transport
        // does not write them again, and they stay until the stream has been waited for. The payload has room for them.
        unsafe {
            let at = self.room.add(place * self.frame_len + start);
            copy_to_device(&self.device, at, to, end - start)
        }
    }
}

/// # Safety
/// `len` bytes at both addresses, which stay as they are until the stream has copied them; `from` is page-locked.
unsafe fn copy_to_device(device: &Device, from: *const u8, to: u64, len: usize) -> Result<(), CudaError> {
    // SAFETY: the caller's promise.
    let copied = unsafe {
        // By address: a slice would claim memory that the transport holds.
        sys::cuMemcpyHtoDAsync_v2(to, from.cast(), len, device.stream().cu_stream())
    };
    copied.result().map_err(driver("copy to the GPU"))
}

struct Fetched<'a>(&'a CudaEvent);

impl Pending for Fetched<'_> {
    fn poll(&mut self) -> Result<bool, CudaError> {
        self.0.try_is_complete().map_err(driver("go on"))
    }

    /// The kernel before it waits for nobody.
    fn abort(&mut self) {}
}
