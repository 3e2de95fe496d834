//! How a sum of several ranks is encoded. Ranges are calibrated for one rank's partial sum and do not fit a sum, so its
//! scales come from the values themselves.

use crate::codec::{Codec, Dynamic, Dynamic8};

/// Bits of a code in the second stage of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GatherBits {
    /// 4.5 bits a value with scales. Costs little on sums of even size, but an outlier feature coarsens its group of 32:
    /// 10 dB below `paper` alone where every 64th feature is ten times as large (`--example error_growth`).
    Four,
    /// 8.5 bits a value with scales: 0.2 dB there.
    #[default]
    Eight,
}

impl GatherBits {
    pub const fn bits(self) -> u32 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The codec for sums of `features` features; takes no memory of its own. Calibrated ranges for sums would come in
    /// here.
    pub(super) fn codec(self, features: usize) -> SumCodec {
        match self {
            Self::Four => SumCodec::Four(Dynamic::new(features)),
            Self::Eight => SumCodec::Eight(Dynamic8::new(features)),
        }
    }
}

#[derive(Debug)]
pub(super) enum SumCodec {
    Four(Dynamic),
    Eight(Dynamic8),
}

impl std::ops::Deref for SumCodec {
    type Target = dyn Codec;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Four(codec) => codec,
            Self::Eight(codec) => codec,
        }
    }
}
