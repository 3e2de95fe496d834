//! Which kernel, on how many blocks. The host model in `tests/cuda.rs` runs the same decomposition.

use super::args::CHUNK;
use crate::codec::Dtype;
use crate::transport::MAX_RANKS;

/// Threads of a block; the kernels' launch bound.
pub const THREADS: u32 = 128;

/// Blocks that fill any device on the market several times over (132 SMs x 16 resident blocks of 128 threads); beyond
/// that a block goes on to further tokens and keeps its tables in the first-level cache.
const ENOUGH_BLOCKS: u32 = 2112;

const WARP: u32 = 32;

/// Rows of a warp each that keep every scheduler of a large device busy (132 SMs x 4, twice). Not measured.
const ENOUGH_ROWS: usize = 1056;

/// The codecs that the kernels know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceCodec {
    None,
    Paper,
    Dynamic,
    Rd,
    /// Of sums.
    Dynamic8,
}

impl DeviceCodec {
    const ALL: [Self; 5] = [Self::None, Self::Paper, Self::Dynamic, Self::Rd, Self::Dynamic8];

    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Paper => "paper",
            Self::Dynamic => "dynamic",
            Self::Rd => "rd",
            Self::Dynamic8 => "dynamic8",
        }
    }

    /// By [`Codec::name`](crate::codec::Codec::name); `None` for a codec without kernels.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }
}

/// A kernel of `kernels/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    Encode(DeviceCodec, Dtype),
    Decode(DeviceCodec, Dtype),
    /// From the codec of the payloads that are read, to that of their sum.
    Requantize(DeviceCodec, DeviceCodec),
    Place(DeviceCodec, Dtype),
    Barrier,
}

impl Kernel {
    /// Every kernel there is.
    pub fn all() -> Vec<Self> {
        use DeviceCodec::{Dynamic, Dynamic8, None, Paper, Rd};
        let mut all = vec![Self::Barrier];
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            for codec in [None, Paper, Dynamic, Rd] {
                all.extend([Self::Encode(codec, dtype), Self::Decode(codec, dtype)]);
            }
            all.extend([None, Dynamic, Dynamic8].map(|codec| Self::Place(codec, dtype)));
        }
        for from in [Paper, Dynamic, Rd] {
            all.extend([Dynamic, Dynamic8].map(|to| Self::Requantize(from, to)));
        }
        all
    }

    /// Its symbol.
    pub fn name(self) -> String {
        match self {
            Self::Encode(codec, dtype) => format!("tpq_encode_{}_{}", codec.name(), dtype.name()),
            Self::Decode(codec, dtype) => format!("tpq_decode_{}_{}", codec.name(), dtype.name()),
            Self::Requantize(from, to) => format!("tpq_requantize_{}_{}", from.name(), to.name()),
            Self::Place(codec, dtype) => format!("tpq_place_{}_{}", codec.name(), dtype.name()),
            Self::Barrier => "tpq_barrier".to_owned(),
        }
    }
}

/// A kernel, its grid and its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    pub kernel: Kernel,
    /// Chunks of a row, then a stride over the tokens.
    pub grid: (u32, u32),
    pub threads: u32,
}

impl Launch {
    /// Values to a payload.
    pub fn encode(codec: DeviceCodec, dtype: Dtype, units: usize, tokens: usize) -> Self {
        let launch = Self::new(Kernel::Encode(codec, dtype), units, tokens);
        match codec {
            // Each warp goes over the whole row for its gain: with rows enough to fill the device, one warp has all of a row.
            DeviceCodec::Rd if tokens >= ENOUGH_ROWS => Self {
                grid: (1, tokens.min(ENOUGH_BLOCKS as usize) as u32),
                threads: WARP,
                ..launch
            },
            _ => launch,
        }
    }

    /// Payloads to a sum of `features` a row.
    pub fn decode(codec: DeviceCodec, dtype: Dtype, features: usize, tokens: usize) -> Self {
        let units = features.div_ceil(CHUNK);
        Self::new(Kernel::Decode(codec, dtype), units, tokens)
    }

    /// Payloads to a payload: the middle of two-shot.
    pub fn requantize(from: DeviceCodec, to: DeviceCodec, units: usize, tokens: usize) -> Self {
        Self::new(Kernel::Requantize(from, to), units, tokens)
    }

    /// Payloads of different rows to all rows: the end of two-shot.
    pub fn place(codec: DeviceCodec, dtype: Dtype, features: usize, tokens: usize) -> Self {
        let units = features.div_ceil(CHUNK);
        Self::new(Kernel::Place(codec, dtype), units, tokens)
    }

    /// Where the ranks wait for each other: one thread for each.
    pub fn barrier() -> Self {
        Self {
            kernel: Kernel::Barrier,
            grid: (1, 1),
            threads: MAX_RANKS as u32,
        }
    }

    fn new(kernel: Kernel, units: usize, tokens: usize) -> Self {
        let across = units.div_ceil(THREADS as usize).max(1) as u32;
        let down = u32::try_from(tokens).unwrap_or(u32::MAX);
        let grid = (across, down.clamp(1, (ENOUGH_BLOCKS / across).max(1)));
        Self {
            kernel,
            grid,
            threads: THREADS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_covers_a_row_and_stops_growing_with_the_tokens() {
        let launch = |tokens| Launch::decode(DeviceCodec::Paper, Dtype::Bf16, 4096, tokens);
        assert_eq!(launch(1).kernel.name(), "tpq_decode_paper_bf16");
        assert_eq!(launch(1).grid, (4, 1));
        assert_eq!(launch(0).grid, (4, 1));
        assert_eq!(launch(100_000).grid, (4, 528));
        let encode = |tokens| Launch::encode(DeviceCodec::Rd, Dtype::Bf16, 700, tokens);
        assert_eq!((encode(1).grid, encode(1).threads), ((6, 1), 128));
        assert_eq!((encode(2048).grid, encode(2048).threads), ((1, 2048), 32));
        assert_eq!(encode(100_000).grid, (1, 2112));
    }

    #[test]
    fn every_codec_is_found_by_its_name_and_others_are_not() {
        for codec in DeviceCodec::ALL {
            assert_eq!(DeviceCodec::from_name(codec.name()), Some(codec));
        }
        assert_eq!(DeviceCodec::from_name("rd_entropy"), None);
    }
}
