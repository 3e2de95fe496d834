//! One exchange between GPUs, kernel by kernel.

#![allow(unsafe_code)]

use bytemuck::Zeroable;

use super::args::{Call, Table, CHUNK};
use super::grid::{DeviceCodec, Launch};
use super::group::{misuse, DeviceGroup, Operands};
use super::link::Payloads;
use super::slots::Stage;
use super::tables::SiteTables;
use super::CudaError;
use crate::codec::{Codec, Dtype};
use crate::exchange::GatherBits;
use crate::transport::MAX_RANKS;

/// Codecs and row lengths of the stages.
pub(super) struct Plan {
    dtype: Dtype,
    ranks: usize,
    row_len: usize,
    /// Of two-shot: the codec of sums, and its row.
    sums: Option<(DeviceCodec, usize)>,
}

impl Plan {
    pub(super) fn new(tables: &SiteTables, dtype: Dtype, ranks: usize, gather: Option<GatherBits>) -> Self {
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
    pub(super) fn rows(&self, limit: usize) -> usize {
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

pub(super) struct Exchange<'a> {
    pub(super) group: &'a mut DeviceGroup,
    pub(super) tables: &'a SiteTables,
    pub(super) plan: &'a Plan,
    pub(super) operands: &'a Operands,
    pub(super) tag: u32,
}

impl Exchange<'_> {
    /// # Safety
    /// As [`DeviceGroup::all_reduce`].
    pub(super) unsafe fn one_shot(mut self) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.encode() }?;
        let payloads = self.group.link.gather(&self.group.base.device, Stage::Partial)?;
        let call = self.finishing(&payloads, self.plan.row_len);
        let (features, tokens) = (self.tables.features, self.operands.tokens);
        let launch = Launch::decode(self.tables.codec, self.plan.dtype, features, tokens);
        // SAFETY: payloads of a link, and the caller's promise of the operands.
        unsafe { self.group.base.device.launch(&launch, &call) }
    }

    /// # Safety
    /// As [`DeviceGroup::all_reduce`].
    pub(super) unsafe fn two_shot(mut self) -> Result<(), CudaError> {
        let Some((sum_codec, sum_row_len)) = self.plan.sums else {
            return Err(misuse("two-shot without a second stage".to_owned()));
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.encode()?;
            self.sum_own_rows(sum_codec, sum_row_len)?;
        }
        let payloads = self.group.link.gather(&self.group.base.device, Stage::Sum)?;
        let call = Call {
            from: Table::zeroed(),
            from_tag: self.tag + 1,
            ..self.finishing(&payloads, sum_row_len)
        };
        let (features, tokens) = (self.tables.features, self.operands.tokens);
        let launch = Launch::place(sum_codec, self.plan.dtype, features, tokens);
        // SAFETY: payloads of a link, and the caller's promise of the operands.
        unsafe { self.group.base.device.launch(&launch, &call) }
    }

    /// The middle of two-shot: the sum of this rank's rows, as a payload.
    ///
    /// # Safety
    /// The partial sums are encoded.
    unsafe fn sum_own_rows(&mut self, sum_codec: DeviceCodec, sum_row_len: usize) -> Result<(), CudaError> {
        let (rank, ranks) = (self.group.base.rank, self.group.base.ranks);
        let start = |rank| self.plan.start(self.operands.tokens, rank);
        let cuts: [usize; MAX_RANKS + 1] = std::array::from_fn(|rank| start(rank.min(ranks)) * self.plan.row_len);
        let rows = |rank| start(rank + 1) - start(rank);
        let longest = (0..ranks).map(rows).max().unwrap_or(0);
        let (first_row, rows) = (start(rank), rows(rank));

        let DeviceGroup { base, link, .. } = &mut *self.group;
        let payloads = link.scatter(&base.device, &cuts[..=ranks])?;
        let own = link.own(&base.device, Stage::Sum, longest * sum_row_len)?;
        let call = Call {
            tokens: rows as u32,
            first_row: if payloads.whole { first_row as u32 } else { 0 },
            payload: own,
            to_row_len: sum_row_len as u32,
            tag: self.tag + 1,
            // Without an output what `decode` writes goes where a payload does, after a header.
            ..self.reading(&payloads, self.plan.row_len)
        };
        let features = self.tables.features;
        let launch = match sum_codec {
            DeviceCodec::None => Launch::decode(DeviceCodec::None, self.plan.dtype, features, rows),
            to => Launch::requantize(self.tables.codec, to, features.div_ceil(CHUNK), rows),
        };
        // SAFETY: payloads of a link, with room for the longest slice of the second stage.
        unsafe { self.group.base.device.launch(&launch, &call) }
    }

    /// # Safety
    /// As [`DeviceGroup::all_reduce`].
    unsafe fn encode(&mut self) -> Result<(), CudaError> {
        let (tables, operands) = (self.tables, self.operands);
        let DeviceGroup { base, link, .. } = &mut *self.group;
        let payload = link.own(&base.device, Stage::Partial, operands.tokens * self.plan.row_len)?;
        let call = Call {
            to: tables.table(),
            values: operands.values,
            payload,
            to_row_len: self.plan.row_len as u32,
            to_rank: self.group.base.rank as u32,
            tag: self.tag,
            ..self.blank()
        };
        let launch = Launch::encode(tables.codec, self.plan.dtype, tables.encode_units, operands.tokens);
        // SAFETY: the link has room for the payload; the values are the caller's promise.
        unsafe { self.group.base.device.launch(&launch, &call) }
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
            ranks: self.group.base.ranks as u32,
            from_tag: self.tag,
            ..self.blank()
        }
    }

    fn blank(&self) -> Call {
        let turns = self.group.link.turns();
        Call {
            status: self.group.base.status(),
            turn: turns.count,
            slot_len: turns.slot_len,
            tokens: self.operands.tokens as u32,
            features: self.tables.features as u32,
            values_stride: self.tables.features as u32,
            ..Call::zeroed()
        }
    }
}

/// Equal for equal exchanges, and most likely not for others: FNV-1a over what all ranks must have in common. Even, as the
/// second stage's is the next one.
pub(super) fn tag(site: u32, tables: &SiteTables, operands: &Operands, start: usize) -> u32 {
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
