//! A small manifest of two ranks. `fuzz/src/bin/seeds.rs` makes seeds of it, too.

use mistralrs_tpq::codec::Dtype;
use mistralrs_tpq::manifest::{Digest, Header, Layer, Manifest};

pub fn manifest(layers: Vec<Layer>) -> Manifest {
    let header = Header {
        model: Digest([3; 32]),
        dtype: Dtype::F32,
        world_size: 2,
        corpus: Digest([4; 32]),
        sequences: 6,
        tokens: 64,
        ema: 0.99,
    };
    Manifest::new(header, layers).expect("a manifest")
}

/// `ranges`: of both ranks, rank 0's first.
pub fn layer(name: &str, outliers: &[u32], ranges: Vec<f32>) -> Layer {
    Layer::new(name, ranges.len() / 2, outliers.to_vec(), ranges, 17.5).expect("a layer")
}
