//! The specification: which bits a product has.
//!
//! Inputs are taken [`chunk_of`] at a time, the last chunk filled up with zeros to whole groups of [`LANES`]. Lane `l` adds
//! the products of inputs `l`, `l + 8`, `l + 16`, ... of a chunk in this order, each with one rounding (fused). Then the
//! lanes are added as a tree, and the chunks in order, to zero.

use super::{chunk_of, Weight, LANES};

pub(super) fn block<T: Weight>(x: &[f32], weights: &[T], inputs: usize, sums: &mut [f32]) {
    let (outputs, chunk) = (weights.len() / inputs, chunk_of(inputs));
    for (x, sums) in x.chunks_exact(inputs).zip(sums.chunks_exact_mut(outputs)) {
        for (weights, sum) in weights.chunks_exact(inputs).zip(sums) {
            for (x, weights) in x.chunks(chunk).zip(weights.chunks(chunk)) {
                *sum += dot(x, weights);
            }
        }
    }
}

fn dot<T: Weight>(x: &[f32], weights: &[T]) -> f32 {
    let mut lanes = [0f32; LANES];
    for (x, weights) in x.chunks(LANES).zip(weights.chunks(LANES)) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            let x = x.get(lane).copied().unwrap_or(0.0);
            let weight = weights.get(lane).map_or(0.0, |weight| weight.to_f32());
            *sum = x.mul_add(weight, *sum);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}
