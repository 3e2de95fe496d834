//! Which kernel, on how many blocks. The host model in `tests/cuda.rs` runs the same decomposition.

use super::args::CHUNK;
use crate::codec::{CodecKind, Dtype};

/// Threads of a block; the kernels' launch bound.
pub const THREADS: u32 = 128;

/// Blocks that fill any device on the market several times over (132 SMs x 16 resident blocks of 128 threads); beyond
/// that a block goes on to further tokens and keeps its tables in the first-level cache.
const ENOUGH_BLOCKS: u32 = 2112;

/// A kernel's name and grid; every block has [`THREADS`] threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    pub kernel: String,
    /// Chunks of a row, then a stride over the tokens.
    pub grid: (u32, u32),
}

impl Launch {
    /// Values to a payload.
    pub fn encode(codec: CodecKind, dtype: Dtype, units: usize, tokens: usize) -> Self {
        Self::new(format!("tpq_encode_{}_{}", codec.name(), dtype.name()), units, tokens)
    }

    /// Payloads to a sum of `features` a row.
    pub fn decode(codec: CodecKind, dtype: Dtype, features: usize, tokens: usize) -> Self {
        let units = features.div_ceil(CHUNK);
        Self::new(format!("tpq_decode_{}_{}", codec.name(), dtype.name()), units, tokens)
    }

    /// Payloads to a payload: the middle of two-shot.
    pub fn requantize(from: CodecKind, to: CodecKind, units: usize, tokens: usize) -> Self {
        Self::new(format!("tpq_requantize_{}_{}", from.name(), to.name()), units, tokens)
    }

    fn new(kernel: String, units: usize, tokens: usize) -> Self {
        let across = units.div_ceil(THREADS as usize).max(1) as u32;
        let down = u32::try_from(tokens).unwrap_or(u32::MAX);
        let grid = (across, down.clamp(1, (ENOUGH_BLOCKS / across).max(1)));
        Self { kernel, grid }
    }
}

/// Chunks that encoding a row takes: of features, or for `paper` of slots and then of outliers.
pub fn encode_units(codec: CodecKind, features: usize, outliers: usize) -> usize {
    match codec {
        CodecKind::Paper => (features - outliers).div_ceil(CHUNK) + outliers.div_ceil(CHUNK),
        _ => features.div_ceil(CHUNK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_covers_a_row_and_stops_growing_with_the_tokens() {
        let launch = |tokens| Launch::decode(CodecKind::Paper, Dtype::Bf16, 4096, tokens);
        assert_eq!(launch(1).kernel, "tpq_decode_paper_bf16");
        assert_eq!(launch(1).grid, (4, 1));
        assert_eq!(launch(0).grid, (4, 1));
        assert_eq!(launch(100_000).grid, (4, 528));
        assert_eq!(encode_units(CodecKind::Paper, 4096, 64), 504 + 8);
    }
}
