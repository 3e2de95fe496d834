//! The all-reduce of tensors that are on GPUs: kernels on one stream, and a link between the ranks. The host adds work to the
//! stream and never waits for it; what went wrong is seen by [`DeviceGroup::check`], which all ranks call at one place.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::time::Duration;

use cudarc::driver::CudaEvent;

use super::args::{Header, Status, HEADER_LEN};
use super::device::driver;
use super::error::ranks_in;
use super::link::Link;
use super::memory::{Buffer, Pinned};
use super::stages::{tag, Exchange, Plan};
use super::tables::SiteTables;
use super::{CudaError, Device};
use crate::codec::{Dtype, EncodeStats};
use crate::exchange::{Chosen, GatherBits};
use crate::transport::Transport;

/// A tensor on the device: `[tokens, features]`, contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    pub values: u64,
    pub output: u64,
    /// `features` elements that are added to each row, or zero.
    pub bias: u64,
    /// As `output`, added to it, or zero.
    pub residual: u64,
    pub tokens: usize,
    pub dtype: Dtype,
}

/// One process's side of a group of GPUs. All ranks call it alike.
#[derive(Debug)]
pub struct DeviceGroup {
    pub(super) base: Base,
    pub(super) link: Box<dyn Link>,
    totals: EncodeStats,
    /// One behind each exchange since the last check; the rest to be used again.
    ends: Vec<CudaEvent>,
    unchecked: usize,
}

/// What a rank has before it is linked with others.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) device: Device,
    pub(super) rank: usize,
    pub(super) ranks: usize,
    gather_bits: GatherBits,
    status: Buffer,
    seen: Pinned,
}

impl Base {
    pub(super) fn new(
        device: Device,
        (rank, ranks): (usize, usize),
        gather_bits: GatherBits,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            status: Buffer::zeroed(&device, size_of::<Status>())?,
            seen: Pinned::zeroed(&device, size_of::<Status>())?,
            device,
            rank,
            ranks,
            gather_bits,
        })
    }

    /// Address of the [`Status`] that kernels write.
    pub(super) fn status(&self) -> u64 {
        self.status.address()
    }

    pub(super) fn with(self, link: Box<dyn Link>) -> DeviceGroup {
        DeviceGroup {
            base: self,
            link,
            totals: EncodeStats::default(),
            ends: Vec::new(),
            unchecked: 0,
        }
    }
}

impl DeviceGroup {
    pub fn device(&self) -> &Device {
        &self.base.device
    }

    /// Adds to the stream: the sum of all ranks' `values` to `output`. `site` goes into each payload's tag, and `tables` are
    /// those of its codec; `raw` those of [`NoCodec`](crate::codec::NoCodec) of as many features.
    ///
    /// # Errors
    /// What the driver or NCCL reports, and an algorithm that has no kernels. What other ranks did wrong is seen by
    /// [`DeviceGroup::check`].
    ///
    /// # Safety
    /// The addresses in `operands` are valid for their shape until the stream has run what this adds to it, and nothing else
    /// writes `values` or uses `output` meanwhile.
    pub unsafe fn all_reduce(
        &mut self,
        site: u32,
        tables: &SiteTables,
        chosen: Chosen,
        operands: &Operands,
    ) -> Result<(), CudaError> {
        self.base.device.bind()?;
        self.link.check()?;
        let raw;
        let (tables, two_shot) = match chosen {
            Chosen::OneShot => (tables, false),
            Chosen::TwoShot => (tables, true),
            Chosen::LosslessOneShot | Chosen::LosslessTwoShot => {
                raw = SiteTables::raw(tables.features);
                (&raw, chosen == Chosen::LosslessTwoShot)
            }
            other => return Err(misuse(format!("{} has no kernels", other.name()))),
        };
        let plan = Plan::new(
            tables,
            operands.dtype,
            self.base.ranks,
            two_shot.then_some(self.base.gather_bits),
        );
        let rows = plan.rows(self.link.limit()).min(operands.tokens.max(1));
        if rows == 0 {
            return Err(misuse(format!(
                "a row of {} features is longer than a link carries",
                tables.features
            )));
        }
        let mut start = 0;
        while start < operands.tokens {
            let tokens = rows.min(operands.tokens - start);
            let piece = operands.rows(start, tokens, tables.features);
            let exchange = Exchange {
                group: self,
                tables,
                plan: &plan,
                operands: &piece,
                tag: tag(site, tables, &piece, start),
            };
            // SAFETY: a part of the caller's tensors, whose promise covers it.
            unsafe {
                match two_shot {
                    true => exchange.two_shot(),
                    false => exchange.one_shot(),
                }
            }?;
            start += tokens;
        }
        self.mark_end()
    }

    fn mark_end(&mut self) -> Result<(), CudaError> {
        // An event of a graph cannot be asked whether it is over.
        if self.base.device.is_capturing()? {
            return Ok(());
        }
        if self.unchecked == self.ends.len() {
            let event = self.base.device.context().new_event(None);
            self.ends.push(event.map_err(driver("make an event"))?);
        }
        let recorded = self.ends[self.unchecked].record(self.base.device.stream());
        self.unchecked += 1;
        recorded.map_err(driver("record an event"))
    }

    /// Waits until all exchanges so far are done, at most for `deadline` from one to the next, and says what went wrong in them. All ranks must
    /// call it between the same two exchanges: they then see the same, as each exchange tells all ranks of all.
    ///
    /// # Errors
    /// A rank that did not come, sent something else or NaN, and what the driver or NCCL reports. Only
    /// [`CudaError::NonFinite`] leaves the group usable. A rank that `transport` knows to be lost ends the wait.
    pub fn check(&mut self, transport: &dyn Transport, deadline: Duration) -> Result<EncodeStats, CudaError> {
        self.base.device.bind()?;
        // SAFETY: both have room for a status, and the host reads it after the wait below only.
        unsafe {
            self.base
                .seen
                .fetch(&self.base.device, self.base.status.address(), 0, size_of::<Status>())
        }?;
        let link = RefCell::new(&mut self.link);
        let mut between = || {
            link.borrow_mut().check()?;
            transport.failure().map_or(Ok(()), |failure| Err(failure.into()))
        };
        let mut abort = || link.borrow_mut().abort();
        let unchecked = std::mem::take(&mut self.unchecked);
        for end in &self.ends[..unchecked] {
            Device::wait_for(end, deadline, &mut between, &mut abort)?;
        }
        self.base.device.finish(deadline, &mut between, &mut abort)?;
        let status: Status = bytemuck::pod_read_unaligned(&self.base.seen.bytes()[..size_of::<Status>()]);
        if status.nonfinite_ranks != 0 {
            // SAFETY: the status, which nothing uses now.
            unsafe { self.base.device.clear(self.base.status.address(), size_of::<Status>()) }?;
            self.totals = EncodeStats::default();
        }
        verdict(&status, self.link.patience(deadline))?;
        let now = EncodeStats {
            clipped: status.clipped,
            nonfinite: status.nonfinite,
        };
        let since = EncodeStats {
            clipped: now.clipped - self.totals.clipped,
            nonfinite: now.nonfinite - self.totals.nonfinite,
        };
        self.totals = now;
        Ok(since)
    }

    /// Gives the group up, so that the device is free again and the other ranks end too.
    pub fn abort(&mut self) {
        self.link.abort();
    }
}

impl Operands {
    fn rows(&self, start: usize, tokens: usize, features: usize) -> Self {
        let skip = (start * features * self.dtype.size()) as u64;
        let at = |address: u64| if address == 0 { 0 } else { address + skip };
        Self {
            values: at(self.values),
            output: at(self.output),
            bias: self.bias,
            residual: at(self.residual),
            tokens,
            dtype: self.dtype,
        }
    }
}

/// The gravest first: of a rank that is missing the payload is old, and says nothing.
pub(super) fn verdict(status: &Status, waited: Duration) -> Result<(), CudaError> {
    let masks = [
        status.absent_ranks,
        status.mismatched_ranks,
        status.malformed_ranks,
        status.nonfinite_ranks,
    ];
    let ranks = |mask| ranks_in(mask);
    match masks.iter().position(|mask| *mask != 0) {
        None => Ok(()),
        Some(0) => Err(CudaError::Absentees {
            ranks: ranks(masks[0]),
            waited,
        }),
        Some(1) => Err(CudaError::Mismatched { ranks: ranks(masks[1]) }),
        Some(2) => Err(CudaError::Malformed { ranks: ranks(masks[2]) }),
        Some(_) => Err(CudaError::NonFinite { ranks: ranks(masks[3]) }),
    }
}

pub(super) fn misuse(what: String) -> CudaError {
    CudaError::ApiMisuse { what }
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN && HEADER_LEN.is_multiple_of(16));
