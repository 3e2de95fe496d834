//! How a sum of several ranks is encoded. Ranges are calibrated for one rank's partial sum and do not fit a sum, so its
//! scales come from the values themselves.

use std::ops::Deref;

use crate::codec::{Codec, Dynamic};

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
    pub(crate) fn codec(self, features: usize) -> Dynamic {
        match self {
            Self::Four => Dynamic::new(features),
            Self::Eight => Dynamic::wide(features),
        }
    }
}

/// The codec of a message, chosen by what is in it.
pub(super) enum MessageCodec<'a> {
    /// A partial sum as the engine made it.
    Partial(&'a dyn Codec),
    /// A sum of several.
    Sum(Dynamic),
}

impl<'a> Deref for MessageCodec<'a> {
    type Target = dyn Codec + 'a;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Partial(codec) => *codec,
            Self::Sum(codec) => codec,
        }
    }
}
