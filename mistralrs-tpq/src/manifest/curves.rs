//! `curves.safetensors`: per layer one F32 tensor `[world_size, features, 2, classes]`, errors before steps, from which `rd`
//! allocates bits under any budget. A file of its own, so that the scales stay small and `paper` never reads it.

use super::error::ManifestError;
use super::Layer;
use crate::calibrate::Curve;
use crate::codec::CLASSES;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

const NUMBERS: usize = 2 * CLASSES.len();

pub(super) fn to_bytes(layers: &[Layer]) -> Result<Vec<u8>, ManifestError> {
    let data: Vec<Vec<u8>> = layers
        .iter()
        .map(|layer| layer.curves().iter().flat_map(numbers).collect())
        .collect();
    let views = layers
        .iter()
        .zip(&data)
        .map(|(layer, bytes)| {
            let shape = vec![layer.world_size(), layer.features(), 2, CLASSES.len()];
            Ok((layer.name(), TensorView::new(Dtype::F32, shape, bytes).map_err(format)?))
        })
        .collect::<Result<Vec<_>, ManifestError>>()?;
    safetensors::serialize(views, None).map_err(format)
}

/// The curves of each of `layers`, in their order.
pub(super) fn from_bytes(bytes: &[u8], layers: &[Layer]) -> Result<Vec<Vec<Curve>>, ManifestError> {
    let file = SafeTensors::deserialize(bytes).map_err(format)?;
    layers
        .iter()
        .map(|layer| {
            let tensor = file.tensor(layer.name()).map_err(format)?;
            let shape = [layer.world_size(), layer.features(), 2, CLASSES.len()];
            if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
                return Err(ManifestError::Shape {
                    layer: layer.name().to_owned(),
                    expected: shape.to_vec(),
                    got: tensor.shape().to_vec(),
                });
            }
            Ok(tensor.data().chunks_exact(4 * NUMBERS).map(curve).collect())
        })
        .collect()
}

/// As `scales::size_limit`.
pub(super) fn size_limit(layers: &[Layer]) -> u64 {
    let bytes = |layer: &Layer| (layer.ranges().len() * NUMBERS * 4 + 200 + layer.name().len()) as u64;
    4096 + layers.iter().map(bytes).sum::<u64>()
}

fn numbers(curve: &Curve) -> impl Iterator<Item = u8> {
    curve.error.into_iter().chain(curve.step).flat_map(f32::to_le_bytes)
}

fn curve(bytes: &[u8]) -> Curve {
    let number = |at: usize| f32::from_le_bytes(std::array::from_fn(|byte| bytes[4 * at + byte]));
    Curve {
        error: std::array::from_fn(number),
        step: std::array::from_fn(|class| number(CLASSES.len() + class)),
    }
}

fn format(error: safetensors::SafeTensorError) -> ManifestError {
    ManifestError::ScalesFormat {
        message: error.to_string(),
    }
}
