//! The folder: written beside its place under another name, then renamed, so that it is whole or absent.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{BufWriter, ErrorKind, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::layout::{self, TensorSpec};
use super::spec::CheckpointSpec;
use super::weights::Source;
use super::{config, safetensors, tokenizer, CheckpointError};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Written {
    pub dir: PathBuf,
    /// Values in all tensors.
    pub parameters: u64,
    /// Of the weight files, headers included.
    pub weight_bytes: u64,
    /// File names of the weights, in order.
    pub weight_files: Vec<String>,
}

/// `model.safetensors.index.json`, as Hugging Face's tools expect beside several weight files. The engine reads the files
/// without it.
#[derive(Serialize)]
struct Index<'a> {
    metadata: IndexMetadata,
    weight_map: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct IndexMetadata {
    total_size: u64,
}

/// A tensor larger than this gets a file of its own.
const SHARD_BYTES: u64 = 4 << 30;
const WRITE_BUFFER: usize = 1 << 20;

impl CheckpointSpec {
    /// Writes config.json, the tokenizer and the weights to the new folder `dir`. Memory does not grow with the model.
    ///
    /// # Errors
    /// A shape that the engine does not load, a `dir` that is not empty, a tokenizer that does not fit, and I/O errors by
    /// path. Nothing is left behind then.
    pub fn write(&self, dir: &Path) -> Result<Written, CheckpointError> {
        self.write_with_progress(dir, |_, _| ControlFlow::Continue(()))
    }

    /// As [`write`](Self::write); `progress` is called with the parameters written so far, and all; `Break` cancels.
    ///
    /// # Errors
    /// As [`write`](Self::write), and [`CheckpointError::Cancelled`].
    pub fn write_with_progress(
        &self,
        dir: &Path,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Written, CheckpointError> {
        self.write_sharded(dir, SHARD_BYTES, progress)
    }

    fn write_sharded(
        &self,
        dir: &Path,
        shard_bytes: u64,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Written, CheckpointError> {
        self.validate()?;
        refuse_existing(dir)?;
        let small_files = tokenizer::files(self)?;
        let parent = dir
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(CheckpointError::io("cannot create the folder", parent))?;
        let mut folder = tempfile::Builder::new()
            .prefix(".make-model-")
            // What `mkdir` would give: the umask decides, not tempfile's owner-only default.
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .map_err(CheckpointError::io("cannot create a temporary folder in", parent))?;

        let (parameters, weight_bytes, weight_files) = self.write_weights(folder.path(), shard_bytes, progress)?;
        write_file(folder.path(), "config.json", config::text(self).as_bytes())?;
        for (name, bytes) in &small_files {
            write_file(folder.path(), name, bytes)?;
        }

        match std::fs::rename(folder.path(), dir) {
            Ok(()) => folder.disable_cleanup(true),
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory) => {
                return Err(CheckpointError::Exists { dir: dir.to_owned() });
            }
            Err(error) => return Err(CheckpointError::io("cannot put the finished checkpoint at", dir)(error)),
        }
        Ok(Written {
            dir: dir.to_owned(),
            parameters,
            weight_bytes,
            weight_files,
        })
    }

    fn write_weights(
        &self,
        folder: &Path,
        shard_bytes: u64,
        mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<(u64, u64, Vec<String>), CheckpointError> {
        let tensors = layout::tensors(self);
        let parameters = tensors.iter().map(TensorSpec::elements).sum();
        let shards = shards(tensors, shard_bytes / self.dtype.size() as u64);
        let names: Vec<String> = (1..=shards.len())
            .map(|number| shard_name(number, shards.len()))
            .collect();
        let mut source = Source::new(self);
        let (mut done, mut bytes) = (0, 0);
        for (shard, name) in shards.iter().zip(&names) {
            let path = folder.join(name);
            let failed = |error| CheckpointError::io("cannot write", &path)(error);
            let mut file = BufWriter::with_capacity(WRITE_BUFFER, File::create(&path).map_err(failed)?);
            let header = safetensors::header(shard, self.dtype);
            file.write_all(&header).map_err(failed)?;
            bytes += header.len() as u64;
            for tensor in shard {
                let write = |block: &[u8]| {
                    done += (block.len() / self.dtype.size()) as u64;
                    if progress(done, parameters).is_break() {
                        return Err(CheckpointError::Cancelled);
                    }
                    file.write_all(block).map_err(failed)
                };
                source.tensor(tensor, write)?;
                bytes += tensor.elements() * self.dtype.size() as u64;
            }
            // A delayed write error, such as a full disk, shows here and not in a dropped buffer.
            file.flush().map_err(failed)?;
        }
        if shards.len() > 1 {
            let weight_map = shards
                .iter()
                .zip(&names)
                .flat_map(|(shard, name)| shard.iter().map(|tensor| (tensor.name.as_str(), name.as_str())));
            let total_size = parameters * self.dtype.size() as u64;
            let index = Index {
                metadata: IndexMetadata { total_size },
                weight_map: weight_map.collect(),
            };
            let text =
                serde_json::to_vec_pretty(&index).unwrap_or_else(|_| unreachable!("names and numbers serialize"));
            write_file(folder, "model.safetensors.index.json", &text)?;
        }
        Ok((parameters, bytes, names))
    }
}

fn refuse_existing(dir: &Path) -> Result<(), CheckpointError> {
    let exists = || CheckpointError::Exists { dir: dir.to_owned() };
    match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().map_or(Ok(()), |_| Err(exists())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => Err(exists()),
        Err(error) => Err(CheckpointError::io("cannot read the folder", dir)(error)),
    }
}

fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).map_err(CheckpointError::io("cannot write", path))
}

/// Splits at `limit` elements, keeping the order.
fn shards(tensors: Vec<TensorSpec>, limit: u64) -> Vec<Vec<TensorSpec>> {
    let mut shards: Vec<Vec<TensorSpec>> = Vec::new();
    let mut filled = 0;
    for tensor in tensors {
        let elements = tensor.elements();
        match shards.last_mut() {
            Some(shard) if filled + elements <= limit => shard.push(tensor),
            _ => {
                shards.push(vec![tensor]);
                filled = 0;
            }
        }
        filled += elements;
    }
    shards
}

/// The two forms that the engine looks for.
fn shard_name(number: usize, of: usize) -> String {
    match of {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{number:05}-of-{of:05}.safetensors"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::safetensors::SafeTensors;
    use sha2::{Digest, Sha256};

    fn tiny(preset: &str) -> CheckpointSpec {
        CheckpointSpec::preset(preset).unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn digest(dir: &Path) -> String {
        let mut digest = Sha256::new();
        for name in names(dir) {
            digest.update(name.as_bytes());
            digest.update(std::fs::read(dir.join(name)).unwrap());
        }
        format!("{:x}", digest.finalize())
    }

    #[test]
    fn safetensors_reads_back_every_tensor_of_every_architecture() {
        for preset in [
            "tiny-llama",
            "tiny-gemma2",
            "tiny-nemo",
            "tiny-qwen3",
            "tiny-mixtral",
            "tiny-6-heads",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let dir = folder.path().join(preset);
            let spec = tiny(preset);
            let written = spec.write(&dir).unwrap();
            assert_eq!(
                names(&dir),
                [
                    "config.json",
                    "model.safetensors",
                    "tokenizer.json",
                    "tokenizer_config.json"
                ]
            );
            let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
            assert_eq!(written.weight_bytes, bytes.len() as u64);
            assert_eq!(written.parameters, spec.parameters().unwrap());
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let expected = layout::tensors(&spec);
            assert_eq!(file.len(), expected.len());
            for tensor in expected {
                let view = file.tensor(&tensor.name).unwrap();
                assert_eq!(view.shape(), tensor.shape, "{}", tensor.name);
                assert_eq!(view.dtype(), ::safetensors::Dtype::F32);
            }
        }
    }

    #[test]
    fn several_files_hold_the_same_tensors_as_one_and_an_index_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let (one, many) = (folder.path().join("one"), folder.path().join("many"));
        let spec = tiny("tiny-llama");
        spec.write(&one).unwrap();
        let written = spec
            .write_sharded(&many, 200_000, |_, _| ControlFlow::Continue(()))
            .unwrap();
        assert!(written.weight_files.len() > 3);
        assert_eq!(
            written.weight_files[1],
            format!("model-00002-of-{:05}.safetensors", written.weight_files.len())
        );

        let whole = std::fs::read(one.join("model.safetensors")).unwrap();
        let whole = SafeTensors::deserialize(&whole).unwrap();
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(many.join("model.safetensors.index.json")).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], spec.parameters().unwrap() * 4);
        let mut seen = 0;
        for name in &written.weight_files {
            let bytes = std::fs::read(many.join(name)).unwrap();
            for (tensor, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                assert_eq!(view.data(), whole.tensor(&tensor).unwrap().data(), "{tensor}");
                assert_eq!(index["weight_map"][&tensor], name.as_str());
                seen += 1;
            }
        }
        assert_eq!(seen, whole.len());
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, seed| {
            let dir = folder.path().join(name);
            CheckpointSpec {
                seed,
                outliers: 2,
                ..tiny("tiny-qwen3")
            }
            .write(&dir)
            .unwrap();
            digest(&dir)
        };
        let first = write("a", 7);
        assert_eq!(first, write("b", 7));
        assert_ne!(first, write("c", 8));
    }

    #[test]
    fn half_precision_weights_are_the_rounded_f32_weights() {
        let folder = tempfile::tempdir().unwrap();
        let read = |dtype| {
            let dir = folder.path().join(format!("{dtype:?}"));
            CheckpointSpec {
                dtype,
                ..tiny("tiny-llama")
            }
            .write(&dir)
            .unwrap();
            std::fs::read(dir.join("model.safetensors")).unwrap()
        };
        let (full, half) = (read(crate::codec::Dtype::F32), read(crate::codec::Dtype::Bf16));
        let (full, half) = (
            SafeTensors::deserialize(&full).unwrap(),
            SafeTensors::deserialize(&half).unwrap(),
        );
        let name = "model.layers.1.mlp.down_proj.weight";
        let (full, half) = (full.tensor(name).unwrap(), half.tensor(name).unwrap());
        assert_eq!(half.dtype(), ::safetensors::Dtype::BF16);
        for (full, half) in full.data().chunks_exact(4).zip(half.data().chunks_exact(2)) {
            let full = f32::from_le_bytes([full[0], full[1], full[2], full[3]]);
            assert_eq!(half::bf16::from_f32(full).to_le_bytes(), half);
        }
    }

    #[test]
    fn an_empty_folder_is_used_and_anything_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new").join("model");
        std::fs::create_dir_all(&dir).unwrap();
        tiny("tiny-llama").write(&dir).unwrap();
        let before = digest(&dir);
        let error = CheckpointSpec {
            seed: 3,
            ..tiny("tiny-llama")
        }
        .write(&dir)
        .unwrap_err();
        assert!(matches!(error, CheckpointError::Exists { .. }), "{error}");
        assert_eq!(digest(&dir), before);

        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(
            tiny("tiny-llama").write(&file),
            Err(CheckpointError::Exists { .. })
        ));
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
        // No temporary folder stays behind.
        assert_eq!(names(folder.path()), ["file", "new"]);
        assert_eq!(names(dir.parent().unwrap()), ["model"]);
    }

    #[test]
    fn a_refused_shape_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a").join("b");
        CheckpointSpec {
            kv_heads: 5,
            ..tiny("tiny-llama")
        }
        .write(&dir)
        .unwrap_err();
        let missing = CheckpointSpec {
            tokenizer: Some(folder.path().join("none.json")),
            ..tiny("tiny-llama")
        };
        assert!(missing.write(&dir).unwrap_err().to_string().contains("none.json"));
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn progress_ends_at_the_number_of_parameters() {
        let folder = tempfile::tempdir().unwrap();
        let spec = tiny("tiny-mixtral");
        let mut calls: Vec<(u64, u64)> = Vec::new();
        let note = |done, all| {
            calls.push((done, all));
            ControlFlow::Continue(())
        };
        spec.write_with_progress(&folder.path().join("m"), note).unwrap();
        let parameters = spec.parameters().unwrap();
        assert_eq!(calls.last(), Some(&(parameters, parameters)));
        assert!(calls.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn a_cancelled_checkpoint_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let half = |done, all| {
            if done > all / 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let error = tiny("tiny-llama")
            .write_with_progress(&folder.path().join("m"), half)
            .unwrap_err();
        assert!(matches!(error, CheckpointError::Cancelled));
        assert_eq!(names(folder.path()), [""; 0]);
    }
}
