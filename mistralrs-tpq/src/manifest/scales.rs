//! `scales.safetensors`: one F32 tensor `[world_size, features]` for each layer, named as the layer.

use super::error::ManifestError;
use super::Manifest;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;

pub(super) fn to_bytes(manifest: &Manifest) -> Result<Vec<u8>, ManifestError> {
    let write = |error: safetensors::SafeTensorError| ManifestError::ScalesFormat {
        message: error.to_string(),
    };
    let data: Vec<Vec<u8>> = manifest
        .layers
        .iter()
        .map(|layer| layer.ranges().iter().flat_map(|range| range.to_le_bytes()).collect())
        .collect();
    let views = manifest
        .layers
        .iter()
        .zip(&data)
        .map(|(layer, bytes)| {
            let shape = vec![layer.world_size(), layer.features()];
            Ok((layer.name(), TensorView::new(Dtype::F32, shape, bytes).map_err(write)?))
        })
        .collect::<Result<Vec<_>, ManifestError>>()?;
    safetensors::serialize(views, None).map_err(write)
}

/// Reads the ranges of all `layers` (name, features) out of a file.
pub(super) fn from_bytes(
    bytes: &[u8],
    world_size: usize,
    layers: &[(&str, usize)],
) -> Result<Vec<Vec<f32>>, ManifestError> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| ManifestError::ScalesFormat {
        message: error.to_string(),
    })?;
    let mut tensors: HashMap<&str, TensorView<'_>> = file.iter().collect();
    let ranges = layers
        .iter()
        .map(|(name, features)| {
            let tensor = tensors.remove(name).ok_or_else(|| ManifestError::MissingScales {
                layer: (*name).to_owned(),
            })?;
            ranges_of(name, &tensor, &[world_size, *features])
        })
        .collect::<Result<_, _>>()?;
    match tensors.into_keys().min() {
        None => Ok(ranges),
        Some(layer) => Err(ManifestError::UnlistedScales {
            layer: layer.escape_debug().take(256).collect(),
        }),
    }
}

fn ranges_of(layer: &str, tensor: &TensorView<'_>, shape: &[usize]) -> Result<Vec<f32>, ManifestError> {
    if tensor.dtype() != Dtype::F32 {
        return Err(ManifestError::ScalesDtype {
            layer: layer.to_owned(),
            got: format!("{:?}", tensor.dtype()),
        });
    }
    if tensor.shape() != shape {
        let (expected, got) = (shape.to_vec(), tensor.shape().to_vec());
        return Err(ManifestError::Shape {
            layer: layer.to_owned(),
            expected,
            got,
        });
    }
    // Not a cast: a tensor's bytes start wherever the header ended.
    Ok(tensor
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect())
}

/// The most bytes a file for these layers can have: the ranges, and for each layer a header entry (its name in JSON, shape and
/// offsets, under 200 bytes besides the name).
pub(super) fn size_limit(world_size: usize, layers: &[(&str, usize)]) -> u64 {
    let bytes = |(name, features): &(&str, usize)| (world_size * features * 4) as u64 + 200 + name.len() as u64;
    4096 + layers.iter().map(bytes).sum::<u64>()
}
