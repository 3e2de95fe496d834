//! The sum that an all-reduce ends with, composed of the same codec calls in one thread: for simulation, and for more ranks than a
//! group may have. `tests/simulate.rs` compares it with the exchange, bit for bit.

use super::doubling::{core_size, sends_partial};
use super::ring::HOP_BITS;
use super::slices::Slices;
use super::sum_codec::GatherBits;
use super::Chosen;
use crate::codec::{Codec, CodecError, Dtype, Values, ValuesMut};

/// What every rank ends with after `chosen`. `partials` has a row-major `[tokens, codec.features()]` for each rank.
///
/// # Errors
/// Of the codec, which then has a defect: everything decoded here was just encoded.
///
/// # Panics
/// When `partials` is empty or its parts are not whole rows of one length: a caller's bug.
pub fn sum_in_process(
    chosen: Chosen,
    codec: &dyn Codec,
    gather_bits: GatherBits,
    partials: &[Vec<f32>],
) -> Result<Vec<f32>, CodecError> {
    let tokens = partials[0].len() / codec.features();
    let group = Group {
        codec,
        gather_bits,
        partials,
        tokens,
    };
    match chosen {
        _ if partials.len() == 1 => Ok(partials[0].clone()),
        Chosen::OneShot => group.reduced(&Slices::whole(codec, tokens), 0),
        Chosen::TwoShot => group.by_slices(|slices, owner| group.reduced(slices, owner)),
        Chosen::Ring => group.by_slices(|slices, first| group.round_the_ring(slices, first)),
        Chosen::Doubling => group.doubled(),
        Chosen::Copy | Chosen::LosslessOneShot | Chosen::LosslessTwoShot => Ok(group.exact()),
    }
}

struct Group<'a> {
    codec: &'a dyn Codec,
    gather_bits: GatherBits,
    partials: &'a [Vec<f32>],
    tokens: usize,
}

impl Group<'_> {
    fn world_size(&self) -> usize {
        self.partials.len()
    }

    fn input(&self, rank: usize) -> Values<'_> {
        Values::F32(&self.partials[rank])
    }

    /// Raw values in rank order, as a lossless exchange adds them.
    fn exact(&self) -> Vec<f32> {
        let mut sum = vec![0.0; self.partials[0].len()];
        for partial in self.partials {
            sum.iter_mut().zip(partial).for_each(|(sum, x)| *sum += x);
        }
        sum
    }

    /// One slice, encoded by every rank and added up in rank order.
    fn reduced(&self, slices: &Slices<'_>, index: usize) -> Result<Vec<f32>, CodecError> {
        let mut sum = vec![0.0; slices.elements(index)];
        for rank in 0..self.world_size() {
            self.add_partial(slices, index, rank, &mut sum)?;
        }
        Ok(sum)
    }

    fn add_partial(&self, slices: &Slices<'_>, index: usize, rank: usize, sum: &mut [f32]) -> Result<(), CodecError> {
        let mut payload = vec![0; slices.payload_len(index, Dtype::F32)];
        slices.encode(index, (0, slices.rows(index)), rank, self.input(rank), &mut payload);
        slices.codec(index).decode_accumulate(rank, &payload, Dtype::F32, sum)
    }

    /// Rank `first` sends its part of the slice of that number; each rank to its right adds its own part exactly and sends the sum on.
    fn round_the_ring(&self, slices: &Slices<'_>, first: usize) -> Result<Vec<f32>, CodecError> {
        let world_size = self.world_size();
        let hop = HOP_BITS.codec(slices.width(first));
        let mut sum = vec![0.0; slices.elements(first)];
        self.add_partial(slices, first, first, &mut sum)?;
        slices.add(first, self.input((first + 1) % world_size), &mut sum);
        for step in 2..world_size {
            sum = recoded(&hop, &sum)?;
            slices.add(first, self.input((first + step) % world_size), &mut sum);
        }
        Ok(sum)
    }

    /// One slice for each rank, summed by `sum_of` and then encoded once more.
    fn by_slices(
        &self,
        sum_of: impl Fn(&Slices<'_>, usize) -> Result<Vec<f32>, CodecError>,
    ) -> Result<Vec<f32>, CodecError> {
        let slices = Slices::new(self.codec, self.tokens, self.world_size());
        let mut output = vec![0.0; self.partials[0].len()];
        for index in 0..self.world_size() {
            let gather = self.gather_bits.codec(slices.width(index));
            let payload = encoded(&gather, &sum_of(&slices, index)?);
            let rows = (0, slices.rows(index));
            slices.place(index, rows, &gather, 0, &payload, &mut ValuesMut::F32(&mut output))?;
        }
        Ok(output)
    }

    fn doubled(&self) -> Result<Vec<f32>, CodecError> {
        let (world_size, core) = (self.world_size(), core_size(self.world_size()));
        let whole = Slices::whole(self.codec, self.tokens);
        let mut sums = Vec::with_capacity(core);
        for rank in 0..core {
            let mut sum = vec![0.0; self.partials[rank].len()];
            if sends_partial(rank, 0, world_size) {
                self.add_partial(&whole, 0, rank, &mut sum)?;
            } else {
                self.add_partial(&whole, 0, rank + core, &mut sum)?;
                whole.add(0, self.input(rank), &mut sum);
                sum = self.recoded_sum(&sum)?;
            }
            sums.push(sum);
        }
        // Both of a pair add the decoded copies, the lower rank's first, and encode what they have for the next step.
        while sums.len() > 1 {
            let last = sums.len() == 2;
            let mut next = Vec::with_capacity(sums.len() / 2);
            for pair in sums.chunks_exact(2) {
                let sum: Vec<f32> = pair[0].iter().zip(&pair[1]).map(|(low, high)| low + high).collect();
                next.push(if last { sum } else { self.recoded_sum(&sum)? });
            }
            sums = next;
        }
        Ok(sums.swap_remove(0))
    }

    fn recoded_sum(&self, sum: &[f32]) -> Result<Vec<f32>, CodecError> {
        recoded(&self.gather_bits.codec(self.codec.features()), sum)
    }
}

fn encoded(codec: &dyn Codec, values: &[f32]) -> Vec<u8> {
    let rows = values.len().checked_div(codec.features()).unwrap_or(0);
    let mut payload = vec![0; codec.payload_len(rows, Dtype::F32)];
    codec.encode(0, Values::F32(values), &mut payload);
    payload
}

/// What a receiver decodes.
fn recoded(codec: &dyn Codec, values: &[f32]) -> Result<Vec<f32>, CodecError> {
    let mut decoded = vec![0.0; values.len()];
    codec.decode_first(0, &encoded(codec, values), Dtype::F32, &mut decoded)?;
    Ok(decoded)
}
