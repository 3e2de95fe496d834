//! `curves.safetensors`: per layer one F32 tensor `[world_size, features, 2, classes]`, errors before steps, from which `rd`
//! allocates bits under any budget, and `NAME/shape` of [`SHAPE_LEN`], from which its entropy coder makes models. A file of its own, so that the scales stay small and `paper` never reads it.

use super::error::ManifestError;
use super::Layer;
use crate::calibrate::Curve;
use crate::codec::{CLASSES, SHAPE_LEN};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Curves and shape of a layer.
type Measured = (Vec<Curve>, Vec<f32>);

const NUMBERS: usize = 2 * CLASSES.len();

pub(super) fn to_bytes(layers: &[Layer]) -> Result<Vec<u8>, ManifestError> {
    let data: Vec<[Vec<u8>; 2]> = layers
        .iter()
        .map(|layer| {
            let shape = layer.shape().iter().copied().flat_map(f32::to_le_bytes);
            [layer.curves().iter().flat_map(numbers).collect(), shape.collect()]
        })
        .collect();
    let mut views = Vec::with_capacity(2 * layers.len());
    for (layer, [curves, shape]) in layers.iter().zip(&data) {
        let view = |shape, bytes| TensorView::new(Dtype::F32, shape, bytes).map_err(format);
        views.push((layer.name().to_owned(), view(curves_shape(layer).to_vec(), curves)?));
        views.push((shape_name(layer), view(vec![SHAPE_LEN], shape)?));
    }
    safetensors::serialize(views, None).map_err(format)
}

/// The curves and the shape of each of `layers`, in their order.
pub(super) fn from_bytes(bytes: &[u8], layers: &[Layer]) -> Result<Vec<Measured>, ManifestError> {
    let file = SafeTensors::deserialize(bytes).map_err(format)?;
    let data = |layer: &Layer, name: &str, expected: &[usize]| {
        let tensor = file.tensor(name).map_err(format)?;
        if tensor.dtype() == Dtype::F32 && tensor.shape() == expected {
            return Ok(tensor.data().to_vec());
        }
        Err(ManifestError::Shape {
            layer: layer.name().to_owned(),
            expected: expected.to_vec(),
            got: tensor.shape().to_vec(),
        })
    };
    layers
        .iter()
        .map(|layer| {
            let curves = data(layer, layer.name(), &curves_shape(layer))?;
            let shape = data(layer, &shape_name(layer), &[SHAPE_LEN])?;
            let shape = shape.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            Ok((curves.chunks_exact(4 * NUMBERS).map(curve).collect(), shape.collect()))
        })
        .collect()
}

fn curves_shape(layer: &Layer) -> [usize; 4] {
    [layer.world_size(), layer.features(), 2, CLASSES.len()]
}

/// Not a name of a layer: those have no slash at the end of a weight prefix.
fn shape_name(layer: &Layer) -> String {
    format!("{}/shape", layer.name())
}

/// As `scales::size_limit`.
pub(super) fn size_limit(layers: &[Layer]) -> u64 {
    let bytes =
        |layer: &Layer| (layer.ranges().len() * NUMBERS * 4 + SHAPE_LEN * 4 + 2 * (200 + layer.name().len())) as u64;
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
