//! What a launch is told: the structures of `kernels/args.cuh`, field by field. Pointers are device addresses.

use bytemuck::{Pod, Zeroable};

use crate::transport::MAX_RANKS;

/// Consecutive features that one thread handles at a time.
pub const CHUNK: usize = 8;
/// Bit of an entry of [`PaperLayout::source`](super::PaperLayout::source): the rest is the index of an outlier.
pub const OUTLIER: u32 = 1 << 31;
/// Bytes before each payload.
pub const HEADER_LEN: usize = size_of::<Header>();

/// In front of a payload on the device, and sent with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    pub nonfinite: u32,
    pub clipped: u32,
    /// Of a sum: ranks whose partial sums had NaN or infinity, low word first.
    pub marks: [u32; 2],
    /// What the payload is of, see [`Call::tag`].
    pub tag: u32,
    pub reserved: [u32; 3],
}

/// Written by kernels, read by the host whenever it likes. Masks have bit r for rank r.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Status {
    /// Totals of this rank's encodes, as [`EncodeStats`](crate::codec::EncodeStats).
    pub clipped: u64,
    pub nonfinite: u64,
    /// Ranks whose partial sum had NaN or infinity.
    pub nonfinite_ranks: u64,
    /// Ranks whose payload no encoder sends.
    pub malformed_ranks: u64,
    /// Ranks whose payload is of another exchange than this rank's.
    pub mismatched_ranks: u64,
    /// Ranks that did not come to a barrier in time.
    pub absent_ranks: u64,
}

/// Addresses of a [`PaperLayout`](super::PaperLayout) or an [`RdLayout`](super::RdLayout) on the device; zero for the other codecs.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Table {
    pub steps: u64,
    pub inv_steps: u64,
    pub source: u64,
    pub slot_feature: u64,
    pub outliers: u64,
    pub patched_features: u64,
    pub patched_slots: u64,
    pub second: u64,
    pub shapes: u64,
    pub codebook: u64,
    pub stride: u32,
    pub slots: u32,
    pub outlier_count: u32,
    pub job_stride: u32,
}

/// One launch of encode, decode_accumulate, reduce_requantize or place; each reads the fields it needs.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Call {
    /// Codec of the payloads that are read.
    pub from: Table,
    /// Codec of the payload that is written.
    pub to: Table,
    pub values: u64,
    /// Or zero: the sum of raw values is a payload itself.
    pub output: u64,
    /// `features` elements, or zero.
    pub bias: u64,
    /// As `output`, or zero.
    pub residual: u64,
    /// After its header.
    pub payload: u64,
    pub status: u64,
    /// Where payloads take turns with two slots: of the count of barriers that this rank has passed. The payload is written to slot
    /// `count % 2`, those that are read are in the other one; `payload` and `payloads` are of slot 0. Zero: there is one slot.
    pub turn: u64,
    /// From slot 0 to slot 1; zero where there is one.
    pub slot_len: u64,
    /// By rank; each after its header.
    pub payloads: [u64; MAX_RANKS],
    pub tokens: u32,
    pub features: u32,
    /// Elements between rows of `values`, `output` and `residual`.
    pub values_stride: u32,
    pub from_row_len: u32,
    pub to_row_len: u32,
    pub ranks: u32,
    /// Row of `to`.
    pub to_rank: u32,
    /// Rows of the payloads that are read, before those of this call.
    pub first_row: u32,
    /// Written to the header of `payload`.
    pub tag: u32,
    /// Expected in the headers of `payloads`.
    pub from_tag: u32,
}

/// One launch of barrier. All counts are of barriers since the ranks met.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Barrier {
    /// By rank: how far this rank has got with each of them.
    pub reached: u64,
    /// By rank: what each of them has told this rank.
    pub inbox: u64,
    /// The inbox of each rank, in its own memory.
    pub inboxes: [u64; MAX_RANKS],
    pub status: u64,
    /// This rank's slot 0.
    pub headers: u64,
    /// As [`Call::slot_len`].
    pub slot_len: u64,
    pub patience_ns: u64,
    pub rank: u32,
    pub ranks: u32,
}
