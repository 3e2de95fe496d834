//! A long exchange as several short ones, one after the other.
//!
//! A rank waits for the last of its peers in each stage, and nothing overlaps what it does then: it adds up what came last and encodes
//! the sum. In parts that is little, and what a stage touches stays in the second-level cache. 512 x 4096 values in
//! `paper`'s 4.19 bits over 1 Gbit/s took four ranks on two cores 1.04 to 1.07 times the wire's time whole and take 1.00 in parts,
//! eight ranks 1.23 to 1.37 and 1.02 to 1.05.
//!
//! Only for several peers at once: messages for one, of two ranks, `ring` or `doubling`, are encoded, sent and added up piece by piece.
//! `one_shot` has a single stage, and frames that a rank sends from its GPU.

use super::policy::{Chosen, Shape};
use crate::codec::Codec;
use crate::transport::PACE_BYTES;
use crate::wire::{FRAME_HEADER_LEN, FRAME_TRAILER_LEN};

/// Bytes for one peer in one part, at most, unless rows are longer.
///
/// A packet on its way through Linux has at most 64 KiB. Of a longer message a rest stays in the socket: until other peers' messages
/// are gone, and with them the order of sending, so that eight ranks at 1 Gbit/s took 1.2 (BBR) or 2.0 times (CUBIC) the wire's
/// time for messages of 137 kB; or, at 64 KiB and some bytes, until a delayed acknowledgement 40 ms later.
const FRAME_BYTES: usize = 48 << 10;
// So that it leaves in one go.
const _: () = assert!(FRAME_HEADER_LEN + FRAME_BYTES + FRAME_TRAILER_LEN <= PACE_BYTES);

/// Rows of an exchange, cut into parts. The same on all ranks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    tokens: usize,
    count: usize,
    /// Parts but the last are multiples of this many rows: were they not, one rank would have the odd row of every part.
    unit: usize,
}

impl Parts {
    pub(super) fn new(chosen: Chosen, shape: Shape, codec: &dyn Codec) -> Self {
        let Shape { world_size, tokens, .. } = shape;
        let row_len = match chosen {
            Chosen::TwoShot => codec.payload_len(1, shape.dtype),
            Chosen::LosslessTwoShot => shape.features * shape.dtype.size(),
            _ => 0,
        };
        // Of one part, for each rank to add up.
        let rows = match world_size {
            0..=2 => usize::MAX,
            _ => FRAME_BYTES.checked_div(row_len).unwrap_or(usize::MAX).max(1),
        };
        Self {
            tokens,
            count: (tokens / world_size.max(1)).div_ceil(rows).max(1),
            unit: world_size,
        }
    }

    /// First row, and the one after the last, of each part.
    pub(super) fn bounds(self) -> impl Iterator<Item = (usize, usize)> {
        let units = (self.tokens / self.unit) as u128;
        let at = move |part: usize| match part == self.count {
            true => self.tokens,
            false => (units * part as u128 / self.count as u128) as usize * self.unit,
        };
        (0..self.count).map(move |part| (at(part), at(part + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Dtype, Dynamic};

    fn parts(chosen: Chosen, world_size: usize, tokens: usize, features: usize) -> Vec<(usize, usize)> {
        let dtype = Dtype::Bf16;
        let shape = Shape {
            world_size,
            tokens,
            features,
            dtype,
        };
        Parts::new(chosen, shape, &Dynamic::new(features)).bounds().collect()
    }

    #[test]
    fn parts_cover_all_rows_and_their_frames_fit_one_packet() {
        for (chosen, row) in [(Chosen::TwoShot, 4096 * 9 / 16), (Chosen::LosslessTwoShot, 8192)] {
            for tokens in [1, 7, 100, 511, 2048] {
                let parts = parts(chosen, 8, tokens, 4096);
                assert_eq!((parts[0].0, parts[parts.len() - 1].1), (0, tokens));
                assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0));
                assert!(parts[1..].iter().all(|(start, _)| start % 8 == 0), "{parts:?}");
                let rows = parts.iter().map(|(start, end)| end - start);
                assert!(rows.clone().max().unwrap().div_ceil(8) * row <= 64 << 10, "{parts:?}");
                assert!(parts.len() == 1 || rows.min().unwrap() >= 8, "{parts:?}");
            }
        }
    }

    #[test]
    fn messages_for_one_peer_and_of_one_stage_stay_whole() {
        assert_eq!(parts(Chosen::TwoShot, 2, 4096, 4096), [(0, 4096)]);
        assert_eq!(parts(Chosen::TwoShot, 8, 0, 4096), [(0, 0)]);
        for chosen in [Chosen::Ring, Chosen::Doubling, Chosen::OneShot] {
            assert_eq!(parts(chosen, 8, 4096, 4096), [(0, 4096)]);
        }
    }
}
