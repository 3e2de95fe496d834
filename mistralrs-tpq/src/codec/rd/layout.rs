//! One rank's features by slot: in the order in which a row has them, each class from a whole block of slots on.

use super::spans::{Span, SPAN};
use super::{RdRank, RdTablesError, CLASSES, MAX_STEP};

/// Slots that vector code takes at once.
pub const BLOCK: usize = 32;
/// Bytes of the gain, which begins a row.
pub const GAIN_LEN: usize = 2;
/// Classes that are sent, in the order of a row.
pub const SENT: [u8; 8] = [16, 8, 6, 5, 4, 3, 2, 1];

/// Tables by slot. What fills up the last block of a class has feature 0 and a step of zero, so it quantizes to code 0.
///
/// Every feature in `order` is below [`Layout::features`], and every entry of `places` at most [`Layout::absent`].
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    counts: [usize; SENT.len()],
    /// The feature, ascending within a class.
    order: Vec<[u32; BLOCK]>,
    /// In units of the gain, and its reciprocal; zero for 16 bits.
    steps: Vec<[f32; BLOCK]>,
    inv_steps: Vec<[f32; BLOCK]>,
    /// By feature, its slot; [`Layout::absent`] for 0 bits.
    places: Vec<u32>,
    /// The same by feature.
    spans: Vec<Span>,
}

/// The features of one number of bits; the last block is filled up.
#[derive(Debug, Clone, Copy)]
pub struct Class<'a> {
    pub bits: u8,
    pub count: usize,
    /// Where its codes begin in [`Scratch::codes`](super::scratch::Scratch).
    pub stream: usize,
    pub order: &'a [[u32; BLOCK]],
    pub steps: &'a [[f32; BLOCK]],
    pub inv_steps: &'a [[f32; BLOCK]],
}

impl Class<'_> {
    /// Slots in use of block `at`.
    pub fn used(&self, at: usize) -> usize {
        (self.count - at * BLOCK).min(BLOCK)
    }
}

impl Layout {
    /// # Errors
    /// A table of another length, a class that does not exist, a step that is no step.
    pub fn new(rank: usize, features: usize, table: &RdRank) -> Result<Self, RdTablesError> {
        check(rank, features, table)?;
        let RdRank { bits, steps } = table;
        let mut layout = Self {
            counts: [0; SENT.len()],
            order: Vec::new(),
            steps: Vec::new(),
            inv_steps: Vec::new(),
            places: vec![0; features],
            spans: Vec::new(),
        };
        for (class, sent) in SENT.into_iter().enumerate() {
            let members: Vec<u32> = (0u32..)
                .zip(bits)
                .filter(|(_, bits)| **bits == sent)
                .map(|(feature, _)| feature)
                .collect();
            layout.counts[class] = members.len();
            for members in members.chunks(BLOCK) {
                layout.push(members, |feature| if sent == 16 { 0.0 } else { steps[feature] });
            }
        }
        let absent = layout.absent() as u32;
        let zero_bits = layout.places.iter_mut().zip(bits).filter(|(_, bits)| **bits == 0);
        zero_bits.for_each(|(place, _)| *place = absent);
        let mut starts = [0; SENT.len()];
        for (start, class) in starts.iter_mut().zip(layout.classes()) {
            *start = class.stream;
        }
        layout.spans = Span::of_row(bits, steps, starts);
        Ok(layout)
    }

    fn push(&mut self, members: &[u32], step: impl Fn(usize) -> f32) {
        let start = self.absent();
        let (mut order, mut steps, mut inv_steps) = ([0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
        for (at, &member) in members.iter().enumerate() {
            let step = step(member as usize);
            order[at] = member;
            steps[at] = step;
            inv_steps[at] = if step == 0.0 { 0.0 } else { 1.0 / step };
            self.places[member as usize] = (start + at) as u32;
        }
        self.order.push(order);
        self.steps.push(steps);
        self.inv_steps.push(inv_steps);
    }

    pub fn features(&self) -> usize {
        self.places.len()
    }

    pub fn places(&self) -> &[u32] {
        &self.places
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "what AVX-512 looks up"))]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Bytes of the codes of all classes, each with a span to spare: whole spans are read and written.
    pub fn streams_len(&self) -> usize {
        self.absent() + SENT.len() * SPAN
    }

    /// One beyond the last slot: the place of what is not sent.
    pub fn absent(&self) -> usize {
        self.order.len() * BLOCK
    }

    /// Every class of a row, empty ones included.
    #[inline(always)]
    pub fn classes(&self) -> impl Iterator<Item = Class<'_>> {
        let (mut order, mut steps, mut inv_steps) = (&self.order[..], &self.steps[..], &self.inv_steps[..]);
        let mut next_stream = 0;
        SENT.into_iter().zip(self.counts).map(move |(bits, count)| {
            let blocks = count.div_ceil(BLOCK);
            let stream = next_stream;
            next_stream += blocks * BLOCK + SPAN;
            Class {
                bits,
                count,
                stream,
                order: take(&mut order, blocks),
                steps: take(&mut steps, blocks),
                inv_steps: take(&mut inv_steps, blocks),
            }
        })
    }

    pub fn planes(&self) -> Planes {
        Planes::new(&self.counts)
    }
}

fn take<'a, T>(rest: &mut &'a [T], count: usize) -> &'a [T] {
    let (taken, left) = rest.split_at(count);
    *rest = left;
    taken
}

fn check(rank: usize, features: usize, table: &RdRank) -> Result<(), RdTablesError> {
    let RdRank { bits, steps } = table;
    if bits.len() != features || steps.len() != features {
        return Err(RdTablesError::FeatureCount {
            rank,
            expected: features,
            bits: bits.len(),
            steps: steps.len(),
        });
    }
    let smallest = f32::from_bits((127 - 100) << 23);
    for (feature, (&bits, &step)) in bits.iter().zip(steps).enumerate() {
        if !CLASSES.contains(&bits) {
            let got = bits;
            return Err(RdTablesError::Bits { rank, feature, got });
        }
        if !matches!(bits, 0 | 16) && !(smallest..=MAX_STEP).contains(&step) {
            let got = step;
            return Err(RdTablesError::Step { rank, feature, got });
        }
    }
    Ok(())
}

/// Where the parts of a row begin, in bytes: gain, words, bytes, then three planes of nibbles (4 bits of the classes 6, 5 and
/// 4), crumbs (2 bits of 6, 3 and 2) and single bits (1 bit of 5, 3 and 1), each padded to whole bytes. Planes shared by
/// classes cost at most 17 bits of padding a row, where a plane for each class would cost up to 40.
#[derive(Debug, Clone, Copy)]
pub struct Planes {
    pub words: usize,
    pub bytes: usize,
    pub nibbles: usize,
    pub crumbs: usize,
    pub singles: usize,
    /// Bytes of the row.
    pub end: usize,
}

impl Planes {
    pub const fn new(counts: &[usize; SENT.len()]) -> Self {
        let [n16, n8, n6, n5, n4, n3, n2, n1] = *counts;
        let words = GAIN_LEN;
        let bytes = words + 2 * n16;
        let nibbles = bytes + n8;
        let crumbs = nibbles + (n6 + n5 + n4).div_ceil(2);
        let singles = crumbs + (n6 + n3 + n2).div_ceil(4);
        Self {
            words,
            bytes,
            nibbles,
            crumbs,
            singles,
            end: singles + (n5 + n3 + n1).div_ceil(8),
        }
    }
}
