//! What vector code needs beside a row: its values in f32, and its codes as a byte for each part of a code, because the parts
//! of two classes may share a byte of a plane.

use super::layout::{Layout, BLOCK};

/// Grows to the widest layer of a thread once.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Encoding: the row, where it is not f32. Decoding: what is added, by slot.
    pub values: Vec<f32>,
    /// A byte for each feature, class by class, where codes are sorted and not loaded by slot.
    pub codes: Vec<u8>,
    pub parts: Parts,
}

/// A byte for each nibble, crumb and single bit of a row.
#[derive(Debug, Default)]
pub struct Parts {
    pub nibbles: Plane,
    pub crumbs: Plane,
    pub singles: Plane,
}

impl Scratch {
    /// Room for a row, with a block to spare: whole blocks are read and written.
    pub fn prepare(&mut self, layout: &Layout) {
        let values = layout.features().max(layout.absent()) + BLOCK;
        if self.values.len() < values {
            self.values.resize(values, 0.0);
        }
        if self.codes.len() < layout.streams_len() {
            self.codes.resize(layout.streams_len(), 0);
        }
        let Parts {
            nibbles,
            crumbs,
            singles,
        } = &mut self.parts;
        for plane in [nibbles, crumbs, singles] {
            plane.at = 0;
            if plane.codes.len() < values + BLOCK {
                plane.codes.resize(values + BLOCK, 0);
            }
        }
    }
}

impl Parts {
    /// Takes codes of `BITS` bits apart. Of the bits above them anything may be set.
    #[inline(always)]
    pub fn put<const BITS: u8>(&mut self, codes: &[u8; BLOCK], used: usize) {
        let mut shift = 0;
        if BITS >= 4 {
            self.nibbles.put(codes, 0, 0x0f, used);
            shift = 4;
        }
        if BITS & 2 != 0 {
            self.crumbs.put(codes, shift, 3, used);
            shift += 2;
        }
        if BITS & 1 != 0 {
            self.singles.put(codes, shift, 1, used);
        }
    }

    /// The reverse of [`Parts::put`]: codes of `BITS` bits, and whatever follows beyond the `used` first.
    #[inline(always)]
    pub fn take<const BITS: u8>(&mut self, used: usize) -> [u8; BLOCK] {
        let mut codes = [0; BLOCK];
        let mut shift = 0;
        if BITS >= 4 {
            self.nibbles.take(&mut codes, 0, used);
            shift = 4;
        }
        if BITS & 2 != 0 {
            self.crumbs.take(&mut codes, shift, used);
            shift += 2;
        }
        if BITS & 1 != 0 {
            self.singles.take(&mut codes, shift, used);
        }
        codes
    }
}

/// Parts of one kind, in the order of their slots.
#[derive(Debug, Default)]
pub struct Plane {
    codes: Vec<u8>,
    at: usize,
}

impl Plane {
    #[inline(always)]
    fn put(&mut self, codes: &[u8; BLOCK], shift: u8, mask: u8, used: usize) {
        if let Some(parts) = self.codes[self.at..].first_chunk_mut::<BLOCK>() {
            for (part, code) in parts.iter_mut().zip(codes) {
                *part = code >> shift & mask;
            }
        }
        self.at += used;
    }

    #[inline(always)]
    fn take(&mut self, codes: &mut [u8; BLOCK], shift: u8, used: usize) {
        if let Some(parts) = self.codes[self.at..].first_chunk::<BLOCK>() {
            for (code, part) in codes.iter_mut().zip(parts) {
                *code |= part << shift;
            }
        }
        self.at += used;
    }

    /// All that was put, in whole blocks filled up with zeros.
    #[inline(always)]
    pub fn filled(&mut self) -> &[[u8; BLOCK]] {
        let end = self.at.next_multiple_of(BLOCK);
        self.codes[self.at..end].fill(0);
        self.codes[..end].as_chunks().0
    }

    /// Room for at least `codes` parts.
    #[inline(always)]
    pub fn room(&mut self, codes: usize) -> &mut [[u8; BLOCK]] {
        self.codes[..codes.next_multiple_of(BLOCK)].as_chunks_mut().0
    }
}
