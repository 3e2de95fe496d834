//! Station 1: partial sum <-> payload.

mod values;

pub use values::{Dtype, Values, ValuesMut};

/// What `encode` saw; summed over a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeStats {
    /// Values outside their calibrated range, saturated.
    pub clipped: u64,
    /// NaN or infinite inputs. NaN encodes as zero, infinity saturates.
    pub nonfinite: u64,
}

/// A codec for one reduce site: it holds the tables of *all* ranks, so that it can encode as one and decode as any.
pub trait Codec: std::fmt::Debug + Send + Sync {
    /// `none`, `paper`, `dynamic`.
    fn name(&self) -> &'static str;

    /// Tag in the frame header.
    fn tag(&self) -> u8;

    /// E: the length of one row.
    fn features(&self) -> usize;

    /// Exact bytes of a payload of `tokens` rows.
    fn payload_len(&self, tokens: usize, dtype: Dtype) -> usize;

    /// Encodes `values` (`tokens * features` elements) as `rank`'s partial sum into `payload`, whose length is
    /// `payload_len`.
    fn encode(&self, rank: usize, values: Values<'_>, payload: &mut [u8]) -> EncodeStats;

    /// Adds the dequantized rows of `rank`'s payload to `sum` (`tokens * features` f32). Called in rank order, so every
    /// rank ends with the same bits.
    ///
    /// # Errors
    /// A payload whose length is not `payload_len`, or content no encoder produces.
    fn decode_accumulate(&self, rank: usize, payload: &[u8], dtype: Dtype, sum: &mut [f32]) -> Result<(), CodecError>;
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    #[error("payload of rank {rank} has {got} bytes, expected {expected}")]
    PayloadLength { rank: usize, expected: usize, got: usize },
}
