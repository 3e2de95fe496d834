//! A digest of the model on disk, cheap enough to take at every start.
//!
//! Covered: `config.json`, and of each weight file its name, length, safetensors header (names, shapes, dtypes,
//! offsets) and 64 samples of 4 KiB. A fine-tune of the same architecture differs in the samples. Reading 13 GB in full
//! would cost a minute for no practical gain.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

const SAMPLES: u64 = 64;
const SAMPLE_BYTES: u64 = 4096;
/// A header longer than this is not hashed past it; real ones are below 1 MiB.
const HEADER_LIMIT: u64 = 16 << 20;

/// SHA-256 over `config` (text of config.json) and `weight_files`, independent of their order and folder.
///
/// # Errors
/// A weight file that cannot be read, by path.
pub fn model_fingerprint(config: &str, weight_files: &[PathBuf]) -> Result<[u8; 32]> {
    let mut files: Vec<_> = weight_files.iter().map(|path| (file_name(path), path)).collect();
    files.sort();
    let mut digest = Sha256::new();
    digest.update(b"tpq-model-1");
    add(&mut digest, config.trim().as_bytes());
    for (name, path) in files {
        add(&mut digest, name.as_bytes());
        add_file(&mut digest, path).with_context(|| format!("cannot read weights {}", path.display()))?;
    }
    Ok(digest.finalize().into())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Length first, so that neighbouring fields cannot run into each other.
fn add(digest: &mut Sha256, bytes: &[u8]) {
    digest.update((bytes.len() as u64).to_le_bytes());
    digest.update(bytes);
}

fn add_file(digest: &mut Sha256, path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    digest.update(len.to_le_bytes());
    let mut prefix = [0u8; 8];
    let header = match file.read_exact(&mut prefix) {
        Ok(()) => u64::from_le_bytes(prefix).min(HEADER_LIMIT).min(len.saturating_sub(8)),
        Err(_) => 0,
    };
    let mut buffer = vec![0; header as usize];
    file.read_exact(&mut buffer)?;
    add(digest, &buffer);

    let data = 8 + header;
    let span = len.saturating_sub(data);
    for sample in 0..SAMPLES {
        let start = data + span / SAMPLES * sample;
        let size = SAMPLE_BYTES.min(len.saturating_sub(start));
        file.seek(SeekFrom::Start(start))?;
        buffer.resize(size as usize, 0);
        file.read_exact(&mut buffer)?;
        add(digest, &buffer);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn the_fingerprint_sees_config_names_and_weights_but_not_folders_or_order() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let weights: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let a = write(one.path(), "a.safetensors", &weights);
        let b = write(one.path(), "b.safetensors", &weights[..1000]);
        let base = model_fingerprint("{}", &[a.clone(), b.clone()]).unwrap();
        assert_eq!(base, model_fingerprint("{}\n", &[b.clone(), a.clone()]).unwrap());
        let moved = [
            write(two.path(), "a.safetensors", &weights),
            write(two.path(), "b.safetensors", &weights[..1000]),
        ];
        assert_eq!(base, model_fingerprint("{}", &moved).unwrap());

        assert_ne!(base, model_fingerprint("{\"a\":1}", &[a.clone(), b.clone()]).unwrap());
        assert_ne!(base, model_fingerprint("{}", &[a]).unwrap());
        let mut tuned = weights;
        let last = tuned.len() - 1;
        for byte in &mut tuned[last - 3000..] {
            *byte ^= 1;
        }
        let tuned = write(two.path(), "a.safetensors", &tuned);
        assert_ne!(base, model_fingerprint("{}", &[tuned, b]).unwrap());
    }

    #[test]
    fn a_missing_weight_file_is_named() {
        let error = model_fingerprint("{}", &[PathBuf::from("/nowhere/x.safetensors")]).unwrap_err();
        assert!(format!("{error:#}").contains("x.safetensors"), "{error:#}");
    }
}
