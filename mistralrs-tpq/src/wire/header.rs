//! The fixed header before each payload on a data connection.
//!
//! It repeats what the receiver already knows, because that is the only way to notice that two ranks are not at the
//! same place: a payload is decoded only when site, sequence, tokens, dtype and codec are the expected ones.
//!
//! ```text
//!  0  magic    u16   0x5154 ("TQ")
//!  2  kind     u8    stage of the exchange
//!  3  codec    u8    tag of the codec
//!  4  dtype    u8    0 f32, 1 bf16, 2 f16
//!  5  flags    u8    bit 0: the sender's input had NaN or infinity (raw payloads; encoded ones say so in their trailer)
//!  6  rank     u16   the sender
//!  8  sequence u64   exchanges since the ranks joined
//! 16  site     u32   which all-reduce of the model
//! 20  tokens   u32   rows of the partial sum
//! 24  length   u32   bytes of the payload that follows
//! 28  part     u32   step of a stage that takes several; 0 otherwise
//! ```
//! An encoded payload ends with a trailer of 8 bytes, which `length` includes: one bit for each rank whose input, as far
//! as it is in this payload, had NaN or infinity. At the end, because a large payload is sent while it is encoded.
//!
//! At hidden size 4096 and 4.1875 bits, one token is 32 + 2144 + 8 bytes against 32 + 8192 in BF16.

use super::{cursor::Cursor, WireError};

pub const FRAME_HEADER_LEN: usize = 32;

/// Bytes after an encoded payload; see the module's text.
pub const FRAME_TRAILER_LEN: usize = 8;

/// The sender's input had NaN or infinity: all ranks learn it and act alike.
pub const FLAG_NONFINITE: u8 = 1;

const MAGIC: [u8; 2] = *b"TQ";

/// Stage of an exchange that a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A whole partial sum, encoded.
    OneShot = 1,
    /// A whole partial sum, raw.
    Lossless = 2,
    /// The receiver's slice of a partial sum, raw.
    LosslessScatter = 3,
    /// The sender's finished slice, raw.
    LosslessGather = 4,
    /// The receiver's slice of a partial sum, encoded.
    TwoShotScatter = 5,
    /// The sender's finished slice, encoded.
    TwoShotGather = 6,
    /// The sum so far of one slice, on its way round the ring.
    RingScatter = 7,
    /// A finished slice, on its way round the ring.
    RingGather = 8,
    /// The partial sum of a rank beyond the largest power of two.
    DoublingFold = 9,
    /// The sum of half of the ranks that the receiver's next sum has.
    Doubling = 10,
    /// The finished sum for a rank beyond the largest power of two, raw.
    DoublingResult = 11,
}

impl FrameKind {
    /// Whether the payload ends with a trailer: all but raw partial sums do.
    pub const fn has_trailer(self) -> bool {
        !matches!(self, Self::Lossless | Self::LosslessScatter | Self::LosslessGather)
    }

    pub const fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::OneShot),
            2 => Some(Self::Lossless),
            3 => Some(Self::LosslessScatter),
            4 => Some(Self::LosslessGather),
            5 => Some(Self::TwoShotScatter),
            6 => Some(Self::TwoShotGather),
            7 => Some(Self::RingScatter),
            8 => Some(Self::RingGather),
            9 => Some(Self::DoublingFold),
            10 => Some(Self::Doubling),
            11 => Some(Self::DoublingResult),
            _ => None,
        }
    }
}

/// See the module's table. `codec` and `dtype` stay numbers here: `exchange` compares them with its own and names both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    pub kind: FrameKind,
    pub codec: u8,
    pub dtype: u8,
    pub flags: u8,
    pub rank: u16,
    pub sequence: u64,
    pub site: u32,
    pub tokens: u32,
    pub payload_len: u32,
    pub part: u32,
}

impl FrameHeader {
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0; FRAME_HEADER_LEN];
        out[..2].copy_from_slice(&MAGIC);
        out[2..6].copy_from_slice(&[self.kind as u8, self.codec, self.dtype, self.flags]);
        out[6..8].copy_from_slice(&self.rank.to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..20].copy_from_slice(&self.site.to_le_bytes());
        out[20..24].copy_from_slice(&self.tokens.to_le_bytes());
        out[24..28].copy_from_slice(&self.payload_len.to_le_bytes());
        out[28..32].copy_from_slice(&self.part.to_le_bytes());
        out
    }

    /// # Errors
    /// Other magic, an unknown kind, or fewer than 32 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let what = "frame header";
        let mut cursor = Cursor::new(what, bytes);
        let head = cursor.array::<4>()?;
        if head[..2] != MAGIC {
            return Err(WireError::Magic {
                what,
                expected: [MAGIC[0], MAGIC[1], head[2], head[3]],
                got: head,
            });
        }
        let kind = FrameKind::from_tag(head[2]).ok_or(WireError::UnknownTag {
            what: "frame kind",
            got: u64::from(head[2]),
        })?;
        Ok(Self {
            kind,
            codec: head[3],
            dtype: cursor.u8()?,
            flags: cursor.u8()?,
            rank: cursor.u16()?,
            sequence: cursor.u64()?,
            site: cursor.u32()?,
            tokens: cursor.u32()?,
            payload_len: cursor.u32()?,
            part: cursor.u32()?,
        })
    }

    pub const fn is_nonfinite(&self) -> bool {
        self.flags & FLAG_NONFINITE != 0
    }
}
