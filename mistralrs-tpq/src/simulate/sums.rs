//! Recorded partial sums: real ones, taken from the engine once, to simulate with afterwards.
//!
//! Each rank writes one safetensors file, `partial-sums.R-of-N.safetensors`, into one folder. In it each layer is one F32 tensor
//! `[tokens, features]`, named as the layer, rows in the order of the text. Metadata: `format` (1), `rank`, `world_size`,
//! `sequence` (tokens of a window of the text), `dtype` (in which the model computed), `model` (its fingerprint).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::SimulateError;
use crate::manifest::natural;

const FORMAT: &str = "1";

/// One rank's partial sums, by layer: `[tokens, features]`, row-major.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RankSums {
    pub layers: BTreeMap<String, LayerSums>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerSums {
    pub features: usize,
    pub values: Vec<f32>,
}

/// Where a recording comes from; the same in the files of all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub world_size: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// The model's fingerprint.
    pub model: String,
}

/// The partial sums of all ranks, checked to fit together.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    pub origin: Origin,
    /// In the order of the model, each `[rank]` of `[tokens, features]`.
    pub layers: Vec<RecordedLayer>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RecordedLayer {
    pub name: String,
    pub features: usize,
    pub ranks: Vec<Vec<f32>>,
}

/// The file of one rank.
pub fn file_name(rank: usize, world_size: usize) -> String {
    format!("partial-sums.{rank}-of-{world_size}.safetensors")
}

/// Writes one rank's file into `folder`, which is created if need be.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn write(folder: &Path, origin: &Origin, rank: usize, sums: &RankSums) -> Result<PathBuf, SimulateError> {
    let metadata = [
        ("format", FORMAT.to_owned()),
        ("rank", rank.to_string()),
        ("world_size", origin.world_size.to_string()),
        ("sequence", origin.sequence.to_string()),
        ("dtype", origin.dtype.clone()),
        ("model", origin.model.clone()),
    ];
    let metadata: HashMap<String, String> = metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let path = folder.join(file_name(rank, origin.world_size));
    let broken = |what: String| SimulateError::Recording {
        path: path.clone(),
        what,
    };
    let mut views = Vec::with_capacity(sums.layers.len());
    for (name, layer) in &sums.layers {
        let shape = vec![layer.values.len() / layer.features.max(1), layer.features];
        let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(&layer.values));
        views.push((name, view.map_err(|error| broken(error.to_string()))?));
    }
    let failed = |source: std::io::Error| SimulateError::Io {
        path: path.clone(),
        source,
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| broken(error.to_string()))?;
    std::fs::write(&path, bytes).map_err(failed)?;
    Ok(path)
}

/// Reads the files of all ranks in `folder`.
///
/// # Errors
/// No recording or more than one, a file that cannot be read, or files that do not belong together. Each names the file.
pub fn read(folder: &Path) -> Result<Recorded, SimulateError> {
    let first = first_file(folder)?;
    let (origin, sums) = read_rank(&first)?;
    let mut ranks = vec![sums];
    for rank in 1..origin.world_size {
        let path = folder.join(file_name(rank, origin.world_size));
        let (other, sums) = read_rank(&path)?;
        if other != origin {
            let what = format!("recorded with {other:?}, rank 0 with {origin:?}");
            return Err(SimulateError::Recording { path, what });
        }
        ranks.push(sums);
    }
    join(folder, origin, ranks)
}

/// The file of rank 0.
fn first_file(folder: &Path) -> Result<PathBuf, SimulateError> {
    let failed = |source| SimulateError::Io {
        path: folder.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("partial-sums.0-of-") && name.ends_with(".safetensors") {
            found.push(path);
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        several => Err(SimulateError::Recording {
            path: folder.to_owned(),
            what: format!(
                "has {} recordings of a rank 0 (partial-sums.0-of-N.safetensors), expected one",
                several.len()
            ),
        }),
    }
}

fn read_rank(path: &Path) -> Result<(Origin, RankSums), SimulateError> {
    let bytes = std::fs::read(path).map_err(|source| SimulateError::Io {
        path: path.to_owned(),
        source,
    })?;
    let broken = |what: String| SimulateError::Recording {
        path: path.to_owned(),
        what,
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| broken(error.to_string()))?;
    let origin = origin(header.metadata().as_ref()).map_err(broken)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
    let mut sums = RankSums::default();
    for (name, tensor) in file.iter() {
        let (Dtype::F32, &[_, features]) = (tensor.dtype(), tensor.shape()) else {
            return Err(broken(format!(
                "layer {} is {:?} of {:?}, expected F32 of [tokens, features]",
                brief(name),
                tensor.dtype(),
                tensor.shape()
            )));
        };
        // Not a cast: a tensor's bytes start wherever the header ended.
        let values = tensor
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes));
        let values = values.collect();
        sums.layers.insert(name.to_owned(), LayerSums { features, values });
    }
    Ok((origin, sums))
}

fn origin(metadata: Option<&HashMap<String, String>>) -> Result<Origin, String> {
    let text = |key: &str| {
        let value = metadata.and_then(|metadata| metadata.get(key));
        value.ok_or_else(|| format!("has no metadata `{key}`: it is no recording of partial sums"))
    };
    let number = |key: &str, most: usize| {
        let value = text(key)?;
        let number = value.parse().ok().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| format!("metadata `{key}` is `{}`, expected 1 to {most}", brief(value)))
    };
    let format = text("format")?;
    if format != FORMAT {
        return Err(format!("has format `{}`, expected {FORMAT}", brief(format)));
    }
    Ok(Origin {
        world_size: number("world_size", crate::config::defaults::MAX_WORLD_SIZE)?,
        sequence: number("sequence", 1 << 20)?,
        dtype: brief(text("dtype")?),
        model: brief(text("model")?),
    })
}

/// Layers of all ranks, each with the same rows.
fn join(folder: &Path, origin: Origin, ranks: Vec<RankSums>) -> Result<Recorded, SimulateError> {
    let broken = |what: String| SimulateError::Recording {
        path: folder.to_owned(),
        what,
    };
    let mut names: Vec<String> = ranks[0].layers.keys().cloned().collect();
    names.sort_by_key(|name| natural(name));
    if names.is_empty() {
        return Err(broken("has no layer".to_owned()));
    }
    let mut layers = Vec::with_capacity(names.len());
    let mut ranks = ranks;
    for name in names {
        let mut parts = Vec::with_capacity(ranks.len());
        let mut features = 0;
        for (rank, sums) in ranks.iter_mut().enumerate() {
            let layer = sums.layers.remove(&name);
            let layer = layer.ok_or_else(|| broken(format!("rank {rank} has no layer {}", brief(&name))))?;
            if layer.values.is_empty() || layer.features == 0 {
                return Err(broken(format!("layer {} of rank {rank} is empty", brief(&name))));
            }
            if rank > 0 && (layer.features != features || layer.values.len() != Vec::len(&parts[0])) {
                return Err(broken(format!(
                    "layer {} has another shape on rank {rank} than on rank 0",
                    brief(&name)
                )));
            }
            features = layer.features;
            if let Some(at) = layer.values.iter().position(|value| !value.is_finite()) {
                return Err(broken(format!(
                    "layer {} of rank {rank} has {} at token {}: the model overflows in this dtype",
                    brief(&name),
                    layer.values[at],
                    at / features
                )));
            }
            parts.push(layer.values);
        }
        layers.push(RecordedLayer {
            name,
            features,
            ranks: parts,
        });
    }
    Ok(Recorded { origin, layers })
}

/// A string of a file, as it may stand in a message.
fn brief(text: &str) -> String {
    text.escape_debug().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin_of(world_size: usize) -> Origin {
        Origin {
            world_size,
            sequence: 2,
            dtype: "bf16".into(),
            model: "00".into(),
        }
    }

    fn sums(layers: &[(&str, usize, &[f32])]) -> RankSums {
        let layer = |(name, features, values): &(&str, usize, &[f32])| {
            let (features, values) = (*features, values.to_vec());
            ((*name).to_owned(), LayerSums { features, values })
        };
        RankSums {
            layers: layers.iter().map(layer).collect(),
        }
    }

    fn message(folder: &Path) -> String {
        read(folder).unwrap_err().to_string()
    }

    #[test]
    fn a_recording_reads_back_with_its_layers_in_the_order_of_the_model() {
        let dir = tempfile::tempdir().unwrap();
        for rank in 0..2 {
            let x = rank as f32;
            let layers = sums(&[("l.10", 1, &[x, 1.0]), ("l.2", 2, &[0.5, x, 3.0, -1.0])]);
            write(dir.path(), &origin_of(2), rank, &layers).unwrap();
        }
        let recorded = read(dir.path()).unwrap();
        assert_eq!(recorded.origin, origin_of(2));
        let names: Vec<&str> = recorded.layers.iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(names, ["l.2", "l.10"]);
        assert_eq!(recorded.layers[0].ranks[1], [0.5, 1.0, 3.0, -1.0]);
    }

    #[test]
    fn what_is_no_recording_or_not_of_one_run_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(message(dir.path()).contains("has 0 recordings"));
        let layer: (&str, usize, &[f32]) = ("l", 2, &[1.0, 2.0]);
        write(dir.path(), &origin_of(2), 0, &sums(&[layer])).unwrap();
        assert!(message(dir.path()).contains("partial-sums.1-of-2.safetensors"));
        write(dir.path(), &origin_of(2), 1, &sums(&[("l", 1, &[1.0, 2.0])])).unwrap();
        assert!(message(dir.path()).contains("another shape on rank 1"));
        write(dir.path(), &origin_of(2), 1, &sums(&[("m", 2, &[1.0, 2.0])])).unwrap();
        assert!(message(dir.path()).contains("rank 1 has no layer l"));
        write(dir.path(), &origin_of(2), 1, &sums(&[("l", 2, &[1.0, f32::NAN])])).unwrap();
        assert!(message(dir.path()).contains("has NaN at token 0"));
        let other = Origin {
            sequence: 7,
            ..origin_of(2)
        };
        write(dir.path(), &other, 1, &sums(&[layer])).unwrap();
        assert!(message(dir.path()).contains("sequence: 7"));
        std::fs::write(dir.path().join(file_name(1, 2)), b"noise").unwrap();
        assert!(message(dir.path()).contains("1-of-2"));
    }
}
