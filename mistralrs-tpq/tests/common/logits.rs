//! Logits that `tpq eval --dump-logits` wrote.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// Of one window: `[tokens, vocab]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// By tensor name: `lossless.0000`, `configured.0000`, ...
pub fn read(path: &Path) -> BTreeMap<String, Logits> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let logits = |view: safetensors::tensor::TensorView<'_>| {
        assert_eq!(view.dtype(), Dtype::F32);
        let values = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        Logits {
            shape: view.shape().to_vec(),
            values,
        }
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, logits(view)))
        .collect()
}

/// max |a - b| / max |a|. NaN anywhere, or two shapes, panic: neither is a small difference.
pub fn relative_difference(a: &Logits, b: &Logits) -> f32 {
    assert_eq!(a.shape, b.shape);
    assert!(
        a.values.iter().chain(&b.values).all(|x| x.is_finite()),
        "logits are not finite"
    );
    let largest = a.values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let difference = a
        .values
        .iter()
        .zip(&b.values)
        .fold(0f32, |largest, (a, b)| largest.max((a - b).abs()));
    difference / largest.max(f32::MIN_POSITIVE)
}
