//! The all-reduce of tensors that are on GPUs: kernels on one stream, and a link between the ranks. The host adds work to the
//! stream and never waits for it; what went wrong is seen by [`DeviceGroup::check`], which all ranks call at one place.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::time::Duration;

use bytemuck::Zeroable;
use cudarc::driver::CudaEvent;

use super::args::{Call, Header, Status, Table, HEADER_LEN};
use super::device::driver;
use super::error::ranks_in;
use super::grid::{encode_units, DeviceCodec, Launch};
use super::link::{Link, Payloads};
use super::memory::{Buffer, Pinned};
use super::slots::Stage;
use super::tables::SiteTables;
use super::{CudaError, Device};
use crate::codec::{Codec, Dtype, EncodeStats};
use crate::exchange::{Chosen, GatherBits};
use crate::transport::MAX_RANKS;

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
    device: Device,
    rank: usize,
    ranks: usize,
    gather_bits: GatherBits,
    link: Box<dyn Link>,
    status: Buffer,
    seen: Pinned,
    totals: EncodeStats,
    /// One behind each exchange since the last check; the rest to be used again.
    ends: Vec<CudaEvent>,
    unchecked: usize,
}

impl DeviceGroup {
    pub(super) fn new(
        device: Device,
        (rank, ranks): (usize, usize),
        gather_bits: GatherBits,
        open: impl FnOnce(&Device, u64) -> Result<Box<dyn Link>, CudaError>,
    ) -> Result<Self, CudaError> {
        let status = Buffer::zeroed(&device, size_of::<Status>())?;
        let seen = Pinned::zeroed(&device, size_of::<Status>())?;
        let link = open(&device, status.address())?;
        Ok(Self {
            device,
            rank,
            ranks,
            gather_bits,
            link,
            status,
            seen,
            totals: EncodeStats::default(),
            ends: Vec::new(),
            unchecked: 0,
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
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
        self.device.bind()?;
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
        let plan = Plan::new(tables, operands.dtype, self.ranks, two_shot.then_some(self.gather_bits));
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
            self.link.done();
            start += tokens;
        }
        self.mark_end()
    }

    fn mark_end(&mut self) -> Result<(), CudaError> {
        if self.unchecked == self.ends.len() {
            let event = self.device.context().new_event(None);
            self.ends.push(event.map_err(driver("make an event"))?);
        }
        let recorded = self.ends[self.unchecked].record(self.device.stream());
        self.unchecked += 1;
        recorded.map_err(driver("record an event"))
    }

    /// Waits until all exchanges so far are done, at most for `deadline` from one to the next, and says what went wrong in them. All ranks must
    /// call it between the same two exchanges: they then see the same, as each exchange tells all ranks of all.
    ///
    /// # Errors
    /// A rank that did not come, sent something else or NaN, and what the driver or NCCL reports. Only
    /// [`CudaError::NonFinite`] leaves the group usable.
    pub fn check(&mut self, deadline: Duration) -> Result<EncodeStats, CudaError> {
        self.device.bind()?;
        // SAFETY: both have room for a status, and the host reads it after the wait below only.
        unsafe {
            self.seen
                .fetch(&self.device, self.status.address(), 0, size_of::<Status>())
        }?;
        let link = RefCell::new(&mut self.link);
        let (mut between, mut abort) = (|| link.borrow_mut().check(), || link.borrow_mut().abort());
        let unchecked = std::mem::take(&mut self.unchecked);
        for end in &self.ends[..unchecked] {
            Device::wait_for(end, deadline, &mut between, &mut abort)?;
        }
        self.device.finish(deadline, &mut between, &mut abort)?;
        let status: Status = bytemuck::pod_read_unaligned(&self.seen.bytes()[..size_of::<Status>()]);
        if status.nonfinite_ranks != 0 {
            // SAFETY: the status, which nothing uses now.
            unsafe { self.device.clear(self.status.address(), size_of::<Status>()) }?;
            self.totals = EncodeStats::default();
        }
        verdict(&status, deadline)?;
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

/// Codecs and row lengths of the stages.
struct Plan {
    dtype: Dtype,
    ranks: usize,
    row_len: usize,
    /// Of two-shot: the codec of sums, and its row.
    sums: Option<(DeviceCodec, usize)>,
}

impl Plan {
    fn new(tables: &SiteTables, dtype: Dtype, ranks: usize, gather: Option<GatherBits>) -> Self {
        let raw = tables.features * dtype.size();
        let sums = gather.map(|bits| match (tables.codec, bits) {
            (DeviceCodec::None, _) => (DeviceCodec::None, raw),
            (_, GatherBits::Four) => (DeviceCodec::Dynamic, bits.codec(tables.features).payload_len(1, dtype)),
            (_, GatherBits::Eight) => (DeviceCodec::Dynamic8, bits.codec(tables.features).payload_len(1, dtype)),
        });
        Self {
            dtype,
            ranks,
            row_len: tables.row_len(dtype),
            sums,
        }
    }

    /// Rows whose payloads, in both stages, have at most `limit` bytes.
    fn rows(&self, limit: usize) -> usize {
        let partial = limit / self.row_len.max(1);
        let sums = self
            .sums
            .map_or(partial, |(_, row)| (limit / row.max(1)).saturating_mul(self.ranks));
        partial.min(sums)
    }

    /// The first row of `rank`'s slice, as `tpq_place` has it.
    fn start(&self, tokens: usize, rank: usize) -> usize {
        (tokens as u64 * rank as u64 / self.ranks as u64) as usize
    }
}

struct Exchange<'a> {
    group: &'a mut DeviceGroup,
    tables: &'a SiteTables,
    plan: &'a Plan,
    operands: &'a Operands,
    tag: u32,
}

impl Exchange<'_> {
    /// # Safety
    /// As [`DeviceGroup::all_reduce`].
    unsafe fn one_shot(mut self) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.encode() }?;
        let payloads = self.group.link.gather(&self.group.device, Stage::Partial)?;
        let call = Call {
            reset: self.group.link.reset(Stage::Partial),
            ..self.finishing(&payloads, self.plan.row_len)
        };
        let (features, tokens) = (self.tables.features, self.operands.tokens);
        let launch = Launch::decode(self.tables.codec, self.plan.dtype, features, tokens);
        // SAFETY: payloads of a link, and the caller's promise of the operands.
        unsafe { self.group.device.launch(&launch, &call) }
    }

    /// # Safety
    /// As [`DeviceGroup::all_reduce`].
    unsafe fn two_shot(mut self) -> Result<(), CudaError> {
        let Some((sum_codec, sum_row_len)) = self.plan.sums else {
            return Err(misuse("two-shot without a second stage".to_owned()));
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.encode()?;
            self.sum_own_rows(sum_codec, sum_row_len)?;
        }
        let payloads = self.group.link.gather(&self.group.device, Stage::Sum)?;
        let call = Call {
            from: Table::zeroed(),
            from_tag: self.tag + 1,
            reset: self.group.link.reset(Stage::Sum),
            ..self.finishing(&payloads, sum_row_len)
        };
        let (features, tokens) = (self.tables.features, self.operands.tokens);
        let launch = Launch::place(sum_codec, self.plan.dtype, features, tokens);
        // SAFETY: payloads of a link, and the caller's promise of the operands.
        unsafe { self.group.device.launch(&launch, &call) }
    }

    /// The middle of two-shot: the sum of this rank's rows, as a payload.
    ///
    /// # Safety
    /// The partial sums are encoded.
    unsafe fn sum_own_rows(&mut self, sum_codec: DeviceCodec, sum_row_len: usize) -> Result<(), CudaError> {
        let (rank, ranks) = (self.group.rank, self.group.ranks);
        let start = |rank| self.plan.start(self.operands.tokens, rank);
        let cuts: [usize; MAX_RANKS + 1] = std::array::from_fn(|rank| start(rank.min(ranks)) * self.plan.row_len);
        let rows = |rank| start(rank + 1) - start(rank);
        let longest = (0..ranks).map(rows).max().unwrap_or(0);
        let (first_row, rows) = (start(rank), rows(rank));

        let DeviceGroup { device, link, .. } = &mut *self.group;
        let payloads = link.scatter(device, &cuts[..=ranks])?;
        let own = link.own(device, Stage::Sum, longest * sum_row_len)?;
        let reset = link.reset(Stage::Partial);
        let call = Call {
            tokens: rows as u32,
            first_row: if payloads.whole { first_row as u32 } else { 0 },
            payload: own,
            to_row_len: sum_row_len as u32,
            tag: self.tag + 1,
            reset,
            // Of raw values the sum is what `decode` writes; as there is a header before it, it goes where a payload does.
            output: own,
            ..self.reading(&payloads, self.plan.row_len)
        };
        let features = self.tables.features;
        let launch = match sum_codec {
            DeviceCodec::None => Launch::decode(DeviceCodec::None, self.plan.dtype, features, rows),
            to => Launch::requantize(self.tables.codec, to, encode_units(to, features, 0), rows),
        };
        // SAFETY: payloads of a link, with room for the longest slice of the second stage.
        unsafe { self.group.device.launch(&launch, &call) }
    }

    /// # Safety
    /// As [`DeviceGroup::all_reduce`].
    unsafe fn encode(&mut self) -> Result<(), CudaError> {
        let (tables, operands) = (self.tables, self.operands);
        let DeviceGroup { device, link, .. } = &mut *self.group;
        let payload = link.own(device, Stage::Partial, operands.tokens * self.plan.row_len)?;
        let call = Call {
            to: tables.table(),
            values: operands.values,
            payload,
            to_row_len: self.plan.row_len as u32,
            to_rank: self.group.rank as u32,
            tag: self.tag,
            ..self.blank()
        };
        let units = encode_units(tables.codec, tables.features, tables.outliers);
        let launch = Launch::encode(tables.codec, self.plan.dtype, units, operands.tokens);
        // SAFETY: the link has room for the payload; the values are the caller's promise.
        unsafe { self.group.device.launch(&launch, &call) }
    }

    /// A call that reads payloads and writes the output.
    fn finishing(&self, payloads: &Payloads, row_len: usize) -> Call {
        Call {
            output: self.operands.output,
            bias: self.operands.bias,
            residual: self.operands.residual,
            ..self.reading(payloads, row_len)
        }
    }

    fn reading(&self, payloads: &Payloads, row_len: usize) -> Call {
        Call {
            from: self.tables.table(),
            payloads: payloads.addresses,
            from_row_len: row_len as u32,
            ranks: self.group.ranks as u32,
            from_tag: self.tag,
            ..self.blank()
        }
    }

    fn blank(&self) -> Call {
        Call {
            status: self.group.status.address(),
            tokens: self.operands.tokens as u32,
            features: self.tables.features as u32,
            values_stride: self.tables.features as u32,
            ..Call::zeroed()
        }
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

/// Equal for equal exchanges, and most likely not for others: FNV-1a over what all ranks must have in common. Even, as the
/// second stage's is the next one.
fn tag(site: u32, tables: &SiteTables, operands: &Operands, start: usize) -> u32 {
    let words = [
        site,
        tables.codec as u32,
        operands.dtype as u32,
        operands.tokens as u32,
        tables.features as u32,
        start as u32,
    ];
    let bytes = words.into_iter().flat_map(u32::to_le_bytes);
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    (hash | 2) & !1
}

/// The gravest first: of a rank that is missing the payload is old, and says nothing.
fn verdict(status: &Status, waited: Duration) -> Result<(), CudaError> {
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

fn misuse(what: String) -> CudaError {
    CudaError::ApiMisuse { what }
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN && HEADER_LEN.is_multiple_of(16));
