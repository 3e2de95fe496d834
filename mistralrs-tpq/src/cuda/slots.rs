//! A rank's shared memory: where each payload lies in it, and which headers are zero.

use super::args::HEADER_LEN;
use crate::transport::MAX_RANKS;

/// What a payload is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Partial,
    /// A sum of several, which two-shot's owners send.
    Sum,
}

/// Slots start at multiples of this; more than a kernel's widest access, and a whole number of cache lines.
const ALIGNMENT: usize = 256;

/// The inbox of the barrier, then two slots for each stage, of which exchanges use one in turn.
#[derive(Debug)]
pub struct Slots {
    slot_len: usize,
    /// Of the exchange that is under way: even or odd.
    turn: usize,
    /// Headers that are not zero, by stage and turn.
    used: [[bool; 2]; 2],
}

impl Slots {
    /// For payloads of up to `capacity` bytes, in memory of zeros.
    pub fn new(capacity: usize) -> Self {
        Self {
            slot_len: (HEADER_LEN + capacity).next_multiple_of(ALIGNMENT),
            turn: 0,
            used: [[false; 2]; 2],
        }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.at(1, 1) + self.slot_len
    }

    /// Where the header of this exchange's payload of `stage` is.
    pub fn slot(&self, stage: Stage) -> usize {
        self.at(stage as usize, self.turn)
    }

    /// Takes that slot; whether its header has to be cleared before.
    pub fn take(&mut self, stage: Stage) -> bool {
        std::mem::replace(&mut self.used[stage as usize][self.turn], true)
    }

    /// The header of the next exchange's payload of `stage`, which the caller clears.
    pub fn clear_next(&mut self, stage: Stage) -> usize {
        let next = 1 - self.turn;
        self.used[stage as usize][next] = false;
        self.at(stage as usize, next)
    }

    pub fn done(&mut self) {
        self.turn = 1 - self.turn;
    }

    fn at(&self, stage: usize, turn: usize) -> usize {
        const INBOX: usize = (8 * MAX_RANKS).next_multiple_of(ALIGNMENT);
        INBOX + (2 * stage + turn) * self.slot_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn slots_are_aligned_disjoint_and_inside_the_memory() {
        let mut slots = Slots::new(1000);
        let mut starts = Vec::new();
        for _ in 0..2 {
            starts.extend([slots.slot(Stage::Partial), slots.slot(Stage::Sum)]);
            slots.done();
        }
        starts.sort_unstable();
        starts.push(slots.bytes());
        assert!(starts[0] >= 8 * MAX_RANKS);
        assert!(starts.iter().all(|start| start % ALIGNMENT == 0));
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= HEADER_LEN + 1000));
    }

    #[test]
    fn a_header_is_zero_when_it_is_used_whatever_exchanges_follow_each_other() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut slots = Slots::new(0);
        let mut dirty = vec![false; slots.bytes()];
        let mut cleared = 0;
        for exchange in 0..1000 {
            let mut stage = |slots: &mut Slots, stage| {
                let at = slots.slot(stage);
                if slots.take(stage) {
                    cleared += 1;
                    dirty[at] = false;
                }
                assert!(!dirty[at], "exchange {exchange}");
                dirty[at] = true;
                dirty[slots.clear_next(stage)] = false;
            };
            stage(&mut slots, Stage::Partial);
            // One-shots and two-shots follow each other in any order.
            if exchange > 500 && rng.random_bool(0.5) {
                stage(&mut slots, Stage::Sum);
            }
            slots.done();
        }
        // As long as one kind follows itself, no extra clearing is needed.
        assert!(cleared > 0 && cleared < 400, "{cleared}");
    }

    /// Ranks that write slot k % `slots`, meet, read all slots, and so on, scheduled at random. Whether a rank ever read
    /// something else than what was written for its exchange.
    fn reads_wrong(slots: usize, seed: u64) -> bool {
        const RANKS: usize = 4;
        const EXCHANGES: usize = 50;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut memory = [[usize::MAX; 2]; RANKS];
        // Of each rank: the exchange, and its step: write, tell, wait, then one read of each rank.
        let mut place = [(0, 0); RANKS];
        let mut told = [0; RANKS];
        let mut wrong = false;
        while place.iter().any(|(exchange, _)| *exchange < EXCHANGES) {
            let rank = rng.random_range(0..RANKS);
            let (exchange, step) = &mut place[rank];
            match *step {
                _ if *exchange == EXCHANGES => continue,
                0 => memory[rank][*exchange % slots] = *exchange,
                1 => told[rank] = *exchange + 1,
                2 if told.iter().any(|told| *told < *exchange + 1) => continue,
                2 => {}
                read => wrong |= memory[read - 3][*exchange % slots] != *exchange,
            }
            *step += 1;
            if *step == 3 + RANKS {
                (*exchange, *step) = (*exchange + 1, 0);
            }
        }
        wrong
    }

    #[test]
    fn two_slots_in_turn_and_one_barrier_are_enough_and_one_slot_is_not() {
        assert!((0..200).all(|seed| !reads_wrong(2, seed)));
        assert!((0..200).any(|seed| reads_wrong(1, seed)));
    }
}
