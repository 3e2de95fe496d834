//! Station 1: partial sum <-> payload.
//!
//! A partial sum is `[tokens, features]`, row-major. A payload is one row after another, each of the same length, with no
//! header: the frame around it says which codec, how many tokens and which rank. Bytes of one row of E = 4096 features:
//!
//! | codec | row | bytes | bits a value |
//! |---|---|--:|--:|
//! | [`NoCodec`] | E raw elements | 8192 (BF16), 16384 (F32) | 16, 32 |
//! | [`Paper`], k = 64 | E - k codes of 4 bits, k BF16 | 2016 + 128 = 2144 | 4.1875 |
//! | [`Dynamic`] | E codes of 4 bits, E / 32 BF16 scales | 2048 + 256 = 2304 | 4.5 |
//! | [`Dynamic::wide`] | E codes of 8 bits, E / 32 BF16 scales; for sums, not chosen by users | 4096 + 256 = 4352 | 8.5 |
//! | [`Rd`] | a BF16 gain, then by calibrated class 1 to 16 bits | as budgeted | as budgeted |
//! | [`RdEntropy`] | states and bytes of a range coder, the gain in them | as budgeted | as budgeted |
//!
//! Numbers are little endian; of two 4-bit codes the first is the low nibble. `scalar.rs`, `rd/row.rs` and
//! `entropy/spec.rs` are the specification of every bit; faster code follows it exactly, so ranks with different processors
//! end with the same sums. Nothing here passes through FP16 (its largest value, 65504, is smaller than real partial sums), and
//! no call allocates once a thread has seen its widest layer.

pub(crate) mod bins;
mod bound;
mod dynamic;
mod entropy;
mod none;
mod paper;
pub(crate) mod rd;
mod rows;
mod scalar;
pub(crate) mod simd;
mod split;
mod values;

pub use dynamic::Dynamic;
pub use entropy::{EntropyTables, EntropyTablesError, RdEntropy, Shape, SHAPE_LEN};
pub use none::NoCodec;
pub use paper::{Paper, PaperTables, PaperTablesError};
pub use rd::{Rd, RdRank, RdTables, RdTablesError, CLASSES};
pub use simd::Level;
pub use split::{split_bounds, Split};
pub(crate) use values::Element;
pub use values::{Dtype, Values, ValuesMut};

/// What `encode` saw; summed over a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeStats {
    /// Finite values outside their calibrated range, saturated. For `paper`: more than half a step beyond the outermost
    /// level, anything but zero in a feature calibrated to zero, and outliers beyond the BF16 range. The other codecs
    /// have no calibrated range.
    pub clipped: u64,
    /// NaN or infinite inputs. NaN encodes as zero, infinity saturates; `none` sends both as they are.
    pub nonfinite: u64,
}

impl std::ops::AddAssign for EncodeStats {
    fn add_assign(&mut self, other: Self) {
        self.clipped += other.clipped;
        self.nonfinite += other.nonfinite;
    }
}

/// A codec for one reduce site: it holds the tables of *all* ranks, so that it can encode as one and decode as any.
pub trait Codec: std::fmt::Debug + Send + Sync {
    /// `none`, `paper`, `dynamic`, `rd`, `rd_entropy`.
    fn name(&self) -> &'static str;

    /// Tag in the frame header.
    fn tag(&self) -> u8;

    /// E: the length of one row.
    fn features(&self) -> usize;

    /// Exact bytes of a payload of `tokens` rows; `usize::MAX` when that does not fit, which no buffer can match.
    fn payload_len(&self, tokens: usize, dtype: Dtype) -> usize;

    /// Encodes `values` (`tokens * features` elements) as `rank`'s partial sum into `payload`, whose length is
    /// `payload_len`. Every byte is written, and equal values give equal bytes.
    ///
    /// # Panics
    /// When `values` is not whole rows, `payload` has another length, or there are no tables for `rank`: a caller's bug.
    fn encode(&self, rank: usize, values: Values<'_>, payload: &mut [u8]) -> EncodeStats;

    /// Adds the dequantized rows of `rank`'s payload to `sum` (`tokens * features` f32). Called in rank order, so every
    /// rank ends with the same bits. Each element takes one f32 multiply and one f32 add, never fused (`rd`: two
    /// multiplies).
    ///
    /// # Errors
    /// A payload whose length is not `payload_len`, a rank without tables, or content no encoder produces. After
    /// [`CodecError::Content`] part of the payload has been added, so `sum` is of no further use.
    ///
    /// # Panics
    /// When `sum` is not whole rows: a caller's bug.
    fn decode_accumulate(&self, rank: usize, payload: &[u8], dtype: Dtype, sum: &mut [f32]) -> Result<(), CodecError>;

    /// As [`Codec::decode_accumulate`] onto zeros, whatever `sum` holds: the first term of a sum.
    ///
    /// # Errors
    /// As [`Codec::decode_accumulate`].
    fn decode_first(&self, rank: usize, payload: &[u8], dtype: Dtype, sum: &mut [f32]) -> Result<(), CodecError> {
        sum.fill(0.0);
        self.decode_accumulate(rank, payload, dtype, sum)
    }

    /// Writes to `bound[i]` an upper bound of `|row[i] - d|`, where `d` is what a receiver decodes for the value `row[i]`
    /// of one token's `row` (`features` values). It covers one trip through the codec, without the rounding of the sum
    /// it is added to. For a NaN or infinite value the bound is infinite, except with `none`, which keeps every bit.
    ///
    /// The bound comes from the format alone (half a step inside the range, the distance to the range outside it, half a
    /// unit in the last place for BF16), so a test that compares it with a real round trip checks the codec.
    ///
    /// # Panics
    /// When `row` or `bound` is not one row, or there are no tables for `rank`: a caller's bug.
    fn error_bound(&self, rank: usize, row: &[f32], bound: &mut [f32]);

    /// The codec cut into `ways` by features, at [`split_bounds`]: for exchanges of fewer tokens than ranks. Made at the
    /// first call and kept. `None`: this codec cannot be cut, and such exchanges are cut by tokens, unevenly.
    ///
    /// A part decodes to the same bits as its features in a whole row: a token's sum must not depend on how many there are.
    fn split(&self, ways: usize) -> Option<Split> {
        let _ = ways;
        None
    }

    /// The calibration of `paper`, for a copy of it on a GPU; `None` for the other codecs.
    fn paper_tables(&self) -> Option<&PaperTables> {
        None
    }

    /// As [`Codec::paper_tables`], of `rd`.
    fn rd_tables(&self) -> Option<&RdTables> {
        None
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    #[error("payload of rank {rank} has {got} bytes, expected {expected}")]
    PayloadLength { rank: usize, expected: usize, got: usize },
    #[error("payload of rank {rank}, but the codec has tables for ranks 0..{ranks}")]
    UnknownRank { rank: usize, ranks: usize },
    #[error(
        "payload of rank {rank}, token {token}: BF16 {bits:#06x} at feature {feature} is nothing an encoder sends"
    )]
    Content {
        rank: usize,
        token: usize,
        feature: usize,
        bits: u16,
    },
    #[error("payload of rank {rank}, token {token}: the entropy-coded row does not end as an encoder ends it")]
    Stream { rank: usize, token: usize },
}

impl CodecError {
    /// Of a payload whose first row follows `rows` others: a codec counts tokens from the rows that it was given.
    pub(crate) fn after_rows(self, rows: usize) -> Self {
        match self {
            Self::Content {
                rank,
                token,
                feature,
                bits,
            } => Self::Content {
                rank,
                token: token + rows,
                feature,
                bits,
            },
            Self::Stream { rank, token } => Self::Stream {
                rank,
                token: token + rows,
            },
            other => other,
        }
    }
}

/// The codecs by name (configuration) and tag (frame header, hello).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum CodecKind {
    None = 0,
    Paper = 1,
    Dynamic = 2,
    Rd = 4,
    /// `rd` with `entropy: true`.
    RdEntropy = 5,
}

impl CodecKind {
    /// Every codec of this build, in tag order.
    pub const ALL: [Self; 5] = [Self::None, Self::Paper, Self::Dynamic, Self::Rd, Self::RdEntropy];

    /// The tag on the wire. Tags are never reused.
    pub const fn tag(self) -> u8 {
        self as u8
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Paper => "paper",
            Self::Dynamic => "dynamic",
            Self::Rd => "rd",
            Self::RdEntropy => "rd_entropy",
        }
    }

    pub fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.tag() == tag)
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Rounds each value to nearest even, as `bf16::from_f32` does; NaN stays NaN. Both slices have one length.
pub fn round_to_bf16(values: &[f32], rounded: &mut [half::bf16]) {
    Level::best().round(values, rounded);
}

/// Rows in `elements`.
///
/// # Panics
/// When the last row is not whole: two reduce sites were mixed up.
fn row_count(elements: usize, features: usize) -> usize {
    let tokens = elements.checked_div(features).unwrap_or(0);
    assert_eq!(
        tokens * features,
        elements,
        "{elements} elements are not whole rows of {features}"
    );
    tokens
}

/// Rows in an encoder's input, once the size of its output is known to be right.
///
/// # Panics
/// As [`Codec::encode`].
fn rows_to_encode(codec: &dyn Codec, values: Values<'_>, payload: &[u8]) -> usize {
    let tokens = row_count(values.len(), codec.features());
    let expected = codec.payload_len(tokens, values.dtype());
    assert_eq!(
        payload.len(),
        expected,
        "payload buffer of {} bytes, expected {expected}",
        payload.len()
    );
    tokens
}

/// Rows in a decoder's output, once the payload is known to have that many.
fn rows_to_decode(
    codec: &dyn Codec,
    rank: usize,
    payload: &[u8],
    dtype: Dtype,
    elements: usize,
) -> Result<usize, CodecError> {
    let tokens = row_count(elements, codec.features());
    let (expected, got) = (codec.payload_len(tokens, dtype), payload.len());
    if got == expected {
        Ok(tokens)
    } else {
        Err(CodecError::PayloadLength { rank, expected, got })
    }
}

/// # Panics
/// As [`Codec::error_bound`].
fn assert_one_row(codec: &dyn Codec, row: &[f32], bound: &[f32]) {
    let features = codec.features();
    assert!(
        row.len() == features && bound.len() == features,
        "row and bound must have {features} values each"
    );
}
