//! Range asymmetric numeral systems (Duda 2013) with several interleaved states over one string of bytes, as a last-in
//! first-out stack: the encoder pushes the symbols of a row from the last to the first.
//!
//! A state is in [2^15, 2^23) between symbols and moves by bytes; frequencies add up to 2^12. A state starts with up to 15 bits
//! of its own choosing and gives them back at the end, so they cost nothing: the first one carries the row's gain, the others
//! zero, which makes a damaged row likely to be noticed.
//!
//! ```text
//! row: 3 bytes a lane (states, little endian) | bytes in the order of decoding | zeros
//! ```
//! Crates were looked at first: `constriction` is exact but allocates its words and has no lanes; `ans` has neither lanes nor
//! a way to carry bits in the first state; `rans` wraps C.

/// Frequencies of a model add up to `1 << PRECISION`.
pub const PRECISION: u32 = 12;
pub const TOTAL: u32 = 1 << PRECISION;
/// Bits that a state carries from start to end.
pub const CARRIED: u32 = 15;

const LOWEST: u32 = 1 << CARRIED;
const STATE_LEN: usize = 3;
pub const MAX_LANES: usize = 8;

/// The row is too short for its symbols.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// A symbol to be pushed: `frequency` places from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Push {
    /// Instead of a division: 2^35 over the frequency, rounded up past it. The quotient of any state below 2^23 is exact, as
    /// the error of the product is at most 2^23 * 2^12 * 2^-35 of what would carry over.
    reciprocal: u64,
    start: u16,
    frequency: u16,
}

const RECIPROCAL_BITS: u32 = 35;

impl Push {
    pub const fn new(start: u32, frequency: u32) -> Self {
        Self {
            reciprocal: (1 << RECIPROCAL_BITS) / frequency as u64 + 1,
            start: start as u16,
            frequency: frequency as u16,
        }
    }

    #[inline(always)]
    fn next(self, state: u32) -> u32 {
        let quotient = ((u64::from(state) * self.reciprocal) >> RECIPROCAL_BITS) as u32;
        // The remainder goes to the symbol's places, the quotient above them.
        state + quotient * (TOTAL - u32::from(self.frequency)) + u32::from(self.start)
    }
}

/// Pushes symbols; writes from the end of the row to its start.
#[derive(Debug)]
pub struct Encoder<'a> {
    row: &'a mut [u8],
    /// Bytes from here on are written.
    start: usize,
    states: [u32; MAX_LANES],
    lanes: usize,
}

impl<'a> Encoder<'a> {
    /// `carried` has at most [`CARRIED`] bits.
    pub fn new(row: &'a mut [u8], lanes: usize, carried: u32) -> Self {
        let mut states = [LOWEST; MAX_LANES];
        states[0] |= carried;
        let start = row.len();
        Self {
            row,
            start,
            states,
            lanes,
        }
    }

    #[inline(always)]
    pub fn push(&mut self, lane: usize, symbol: Push) -> Result<(), Full> {
        let (state, frequency) = (self.states[lane % MAX_LANES], u32::from(symbol.frequency));
        // The next state stays below 2^23 exactly when this one is below: after two bytes at most. How many is as good as
        // random, so they are counted without a branch, and two are written.
        let limit = frequency << (CARRIED - PRECISION + 8);
        let bytes = usize::from(state >= limit) + usize::from(state >> 8 >= limit);
        // Nearer to the start than two bytes, the states have no room any more.
        let place = self.row[..self.start].last_chunk_mut::<2>().ok_or(Full)?;
        *place = (state as u16).to_be_bytes();
        self.start -= bytes;
        self.states[lane % MAX_LANES] = symbol.next(state >> (8 * bytes));
        Ok(())
    }

    /// The low `bits` (at most [`PRECISION`]) of `value`, all equally likely.
    #[inline(always)]
    pub fn push_raw(&mut self, lane: usize, value: u32, bits: u32) -> Result<(), Full> {
        let shift = PRECISION - bits;
        self.push(lane, Push::new(value << shift, 1 << shift))
    }

    /// Moves all to the front of the row.
    pub fn finish(self) -> Result<(), Full> {
        let head = STATE_LEN * self.lanes;
        let body = self.row.len() - self.start;
        if head + body > self.row.len() {
            return Err(Full);
        }
        self.row.copy_within(self.start.., head);
        for (bytes, state) in self.row.chunks_exact_mut(STATE_LEN).zip(&self.states[..self.lanes]) {
            bytes.copy_from_slice(&state.to_le_bytes()[..STATE_LEN]);
        }
        self.row[head + body..].fill(0);
        Ok(())
    }
}

/// Takes symbols from a row, whoever wrote it: it never reads outside and always ends.
#[derive(Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    states: [u32; MAX_LANES],
    lanes: usize,
}

impl<'a> Decoder<'a> {
    /// `row` has at least [`head_len`] bytes.
    pub fn new(row: &'a [u8], lanes: usize) -> Self {
        let (head, bytes) = row.split_at(head_len(lanes));
        let mut states = [0; MAX_LANES];
        for (state, bytes) in states.iter_mut().zip(head.chunks_exact(STATE_LEN)) {
            *state = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
        }
        Self {
            bytes,
            at: 0,
            states,
            lanes,
        }
    }

    /// Where in `0..TOTAL` the next symbol of a lane is.
    #[inline(always)]
    pub fn slot(&self, lane: usize) -> u32 {
        self.states[lane % MAX_LANES] & (TOTAL - 1)
    }

    /// Takes the symbol found at [`slot`](Self::slot) off the stack. Beyond the end of the row all bytes are zero.
    #[inline(always)]
    pub fn pop(&mut self, lane: usize, start: u32, frequency: u32) {
        let state = self.states[lane % MAX_LANES];
        let state = frequency * (state >> PRECISION) + (state & (TOTAL - 1)) - start;
        // Two bytes bring back any state but zero, which no encoder leaves.
        let bytes = u32::from(state < LOWEST) + u32::from(state < LOWEST >> 8);
        let next = match self.bytes.get(self.at..).and_then(|rest| rest.first_chunk()) {
            Some(next) => u16::from_be_bytes(*next),
            None => u16::from(self.bytes.get(self.at).copied().unwrap_or(0)) << 8,
        };
        self.at += bytes as usize;
        self.states[lane % MAX_LANES] = state << (8 * bytes) | u32::from(next) >> (16 - 8 * bytes);
    }

    #[inline(always)]
    pub fn pop_raw(&mut self, lane: usize, bits: u32) -> u32 {
        let shift = PRECISION - bits;
        let value = self.slot(lane) >> shift;
        self.pop(lane, value << shift, 1 << shift);
        value
    }

    /// What the first state carried, when the row ends as an encoder ends it.
    pub fn finish(self) -> Option<u32> {
        let (first, others) = self.states[..self.lanes].split_first()?;
        let rest = self.bytes.get(self.at..)?;
        let ended =
            first >> CARRIED == 1 && others.iter().all(|state| *state == LOWEST) && rest.iter().all(|byte| *byte == 0);
        ended.then_some(first & (LOWEST - 1))
    }
}

/// Bytes of the states.
pub const fn head_len(lanes: usize) -> usize {
    STATE_LEN * lanes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Starts and frequencies of 4 symbols, one of them rare.
    const MODEL: [(u32, u32); 4] = [(0, 2500), (2500, 1000), (3500, 595), (4095, 1)];

    fn find(slot: u32) -> usize {
        MODEL.iter().rposition(|(start, _)| *start <= slot).unwrap_or(0)
    }

    proptest! {
        #[test]
        fn what_was_pushed_is_popped_in_reverse_and_the_carried_bits_come_back(
            symbols in prop::collection::vec((0usize..4, 0u32..4096, 0u32..=12), 0..200),
            lanes in 1usize..=MAX_LANES,
            carried in 0u32..1 << CARRIED,
            slack in 0usize..9,
        ) {
            let needed = head_len(lanes) + symbols.len() * 3;
            let mut row = vec![0xaa; needed + slack];
            let mut encoder = Encoder::new(&mut row, lanes, carried);
            for (i, (symbol, raw, bits)) in symbols.iter().enumerate().rev() {
                let (start, frequency) = MODEL[*symbol];
                encoder.push_raw(i % lanes, raw & ((1 << bits) - 1), *bits).unwrap();
                encoder.push(i % lanes, Push::new(start, frequency)).unwrap();
            }
            encoder.finish().unwrap();
            let mut decoder = Decoder::new(&row, lanes);
            for (i, (symbol, raw, bits)) in symbols.iter().enumerate() {
                let found = find(decoder.slot(i % lanes));
                let (start, frequency) = MODEL[found];
                decoder.pop(i % lanes, start, frequency);
                prop_assert_eq!(found, *symbol);
                prop_assert_eq!(decoder.pop_raw(i % lanes, *bits), raw & ((1 << bits) - 1));
            }
            prop_assert_eq!(decoder.finish(), Some(carried));
        }

        #[test]
        fn any_bytes_decode_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 24..90), lanes in 1usize..=MAX_LANES) {
            let mut decoder = Decoder::new(&bytes, lanes);
            for i in 0..300 {
                let (start, frequency) = MODEL[find(decoder.slot(i % lanes))];
                decoder.pop(i % lanes, start, frequency);
                decoder.pop_raw(i % lanes, (i % 13) as u32);
            }
            let _ = decoder.finish();
        }
    }

    #[test]
    fn a_product_divides_every_state_as_a_division_does() {
        for frequency in 1..=TOTAL {
            let push = Push::new(0, frequency);
            let limit = frequency << (CARRIED - PRECISION + 8);
            // Where quotients change, and some others.
            let quotients = (0..limit / frequency).step_by(61).chain([limit / frequency]);
            let edges = quotients.flat_map(|quotient| [quotient * frequency, quotient * frequency + frequency - 1]);
            for state in edges.filter(|state| *state < limit) {
                let expected = ((state / frequency) << PRECISION) + state % frequency;
                assert_eq!(push.next(state), expected, "{state} / {frequency}");
            }
        }
    }

    #[test]
    fn a_row_too_short_is_an_error() {
        let mut row = [0; 4];
        let mut encoder = Encoder::new(&mut row, 1, 0);
        let rare = (0..20).try_for_each(|_| encoder.push(0, Push::new(4095, 1)));
        assert_eq!(rare, Err(Full));
        let mut encoder = Encoder::new(&mut row, 1, 0);
        (0..2).for_each(|_| encoder.push(0, Push::new(4095, 1)).unwrap());
        assert_eq!(encoder.finish(), Err(Full), "the states need room too");
    }
}
