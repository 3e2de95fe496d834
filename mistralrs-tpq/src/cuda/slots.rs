//! A rank's shared memory: where each payload lies in it.

use super::args::HEADER_LEN;
use crate::transport::MAX_RANKS;

/// Slots start at multiples of this; more than a kernel's widest access, and a whole number of cache lines.
const ALIGNMENT: usize = 256;

/// What a payload is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Partial,
    /// A sum of several, which two-shot's owners send.
    Sum,
}

/// The inbox of the barrier, then two slots. Between barriers k and k + 1 a rank writes slot k % 2 and reads the other one of all
/// ranks; when it writes a slot again, two barriers later, all have come to the barrier after they read it.
#[derive(Debug, Clone, Copy)]
pub struct Slots {
    slot_len: usize,
}

impl Slots {
    /// Where slot 0 is, its header first: behind the inbox, which has a word for each rank.
    pub const START: usize = (8 * MAX_RANKS).next_multiple_of(ALIGNMENT);

    /// For payloads of up to `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self {
            slot_len: (HEADER_LEN + capacity).next_multiple_of(ALIGNMENT),
        }
    }

    /// From slot 0 to slot 1.
    pub fn slot_len(&self) -> usize {
        self.slot_len
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        Self::START + 2 * self.slot_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn slots_are_aligned_and_hold_a_header_and_a_payload() {
        let slots = Slots::new(1000);
        assert!(Slots::START >= 8 * MAX_RANKS && Slots::START.is_multiple_of(ALIGNMENT));
        assert!(slots.slot_len() >= HEADER_LEN + 1000 && slots.slot_len().is_multiple_of(ALIGNMENT));
    }

    const CLEARED: usize = usize::MAX;

    /// Ranks that, between barriers k and k + 1, read what all wrote before barrier k and write slot k % `slots`, whose header they
    /// cleared at barrier k. Scheduled at random. Whether a rank ever read something else, or wrote to a slot that was not cleared.
    fn goes_wrong(slots: usize, seed: u64) -> bool {
        const RANKS: usize = 4;
        const BARRIERS: usize = 50;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut memory = [[CLEARED; 2]; RANKS];
        // Of each rank: the barriers it has passed, and its step: one read of each rank, then write, tell, wait.
        let mut place = [(0, 0); RANKS];
        let mut told = [0; RANKS];
        let mut wrong = false;
        while place.iter().any(|(passed, _)| *passed < BARRIERS) {
            let rank = rng.random_range(0..RANKS);
            let (passed, step) = &mut place[rank];
            let own = *passed % slots;
            match *step {
                _ if *passed == BARRIERS => continue,
                read if read < RANKS => wrong |= *passed > 0 && memory[read][(*passed - 1) % slots] != *passed - 1,
                RANKS => {
                    wrong |= memory[rank][own] != CLEARED;
                    memory[rank][own] = *passed;
                }
                _ if told[rank] == *passed => told[rank] = *passed + 1,
                _ if told.iter().any(|told| *told <= *passed) => continue,
                _ => {
                    memory[rank][(*passed + 1) % slots] = CLEARED;
                    (*passed, *step) = (*passed + 1, 0);
                    continue;
                }
            }
            *step += 1;
        }
        wrong
    }

    #[test]
    fn two_slots_in_turn_are_enough_and_one_is_not() {
        assert!((0..200).all(|seed| !goes_wrong(2, seed)));
        assert!((0..200).any(|seed| goes_wrong(1, seed)));
    }
}
