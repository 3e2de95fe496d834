//! What calibration found out about one model: `manifest.yaml` (per-layer outliers and a summary, for people) and
//! `scales.safetensors` beside it (per layer and rank the static range of every feature, for the codec).
//!
//! A calibration for `rd` adds `curves.safetensors`: per layer, rank and feature the error at each number of bits.
//!
//! The YAML carries the digests of both but none of itself, so people can edit the outlier lists; peers compare
//! [`Manifest::digest`], which covers both files, so a rank with an unedited copy is refused.
//!
//! Size for a model of 32 layers, hidden size 4096, four ranks: 64 sites x 4 x 4096 x 4 bytes = 4 MiB of scales, and a YAML of
//! 64 x 64 outlier indices, about 40 KiB.
//!
//! A [`Manifest`] is valid by construction: names are unique, ranges are finite and not negative, outliers ascend and are
//! in range.

mod curves;
mod digest;
mod error;
mod layer;
mod scales;
mod store;
mod text;

pub use digest::{BadDigest, Digest};
pub use error::ManifestError;
pub use layer::{Layer, Priority, Summary};

use crate::codec::Dtype;
use crate::config::defaults::MAX_WORLD_SIZE;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;

/// The only `format` this version reads and writes.
pub const FORMAT: u64 = 1;
/// File names inside a manifest's folder.
pub const MANIFEST_FILE: &str = "manifest.yaml";
pub const SCALES_FILE: &str = "scales.safetensors";
pub const CURVES_FILE: &str = "curves.safetensors";
/// More reduce sites than any model has; bounds what a file can make us allocate.
pub const MAX_LAYERS: usize = 1 << 14;

/// What was calibrated, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Of the model's weights and configuration.
    pub model: Digest,
    /// Of the partial sums that were observed.
    pub dtype: Dtype,
    pub world_size: usize,
    /// Of the calibration text.
    pub corpus: Digest,
    pub sequences: u64,
    /// Tokens of each sequence.
    pub tokens: u64,
    /// The EMA factor, in (0, 1).
    pub ema: f64,
}

/// What a running model needs a manifest to be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub fingerprint: Digest,
    pub dtype: Dtype,
    pub world_size: usize,
}

/// Header and layers that fit together.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    header: Header,
    layers: Vec<Layer>,
    /// Of the bytes of the scales file.
    scales: Digest,
    /// Of the bytes of the curves file, if there is one.
    curves: Option<Digest>,
    by_name: HashMap<String, usize>,
}

impl Manifest {
    /// Puts calibrated layers together.
    ///
    /// # Errors
    /// A header out of range, no layers or too many, a name twice, a layer calibrated for another world size.
    pub fn new(header: Header, layers: Vec<Layer>) -> Result<Self, ManifestError> {
        let mut manifest = Self::index(header, layers, Digest([0; 32]))?;
        manifest.scales = Digest::of(&scales::to_bytes(&manifest)?);
        if manifest.layers.iter().all(|layer| !layer.curves().is_empty()) {
            manifest.curves = Some(Digest::of(&curves::to_bytes(&manifest.layers)?));
        }
        Ok(manifest)
    }

    fn index(header: Header, layers: Vec<Layer>, scales: Digest) -> Result<Self, ManifestError> {
        check_header(&header)?;
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(value("layers", layers.len(), format!("1 to {MAX_LAYERS} layers")));
        }
        let mut by_name = HashMap::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            if layer.world_size() != header.world_size {
                return Err(ManifestError::Shape {
                    layer: layer.name().to_owned(),
                    expected: vec![header.world_size, layer.features()],
                    got: vec![layer.world_size(), layer.features()],
                });
            }
            if by_name.insert(layer.name().to_owned(), index).is_some() {
                return Err(ManifestError::DuplicateLayer {
                    layer: layer.name().to_owned(),
                });
            }
        }
        Ok(Self {
            header,
            layers,
            scales,
            curves: None,
            by_name,
        })
    }

    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// In the order of the file, which is the order of the model.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub fn layer(&self, name: &str) -> Option<&Layer> {
        self.by_name.get(name).map(|index| &self.layers[*index])
    }

    /// The layer the running model calls `name`, with rows of `features` values.
    ///
    /// # Errors
    /// No such layer (with the nearest name there is), or one of another width.
    pub fn require(&self, name: &str, features: usize) -> Result<&Layer, ManifestError> {
        let layer = self.layer(name).ok_or_else(|| ManifestError::MissingLayer {
            layer: name.to_owned(),
            nearest: crate::config::nearest(name, self.layers.iter().map(Layer::name)).map(str::to_owned),
        })?;
        if layer.features() != features {
            return Err(ManifestError::Shape {
                layer: name.to_owned(),
                expected: vec![self.header.world_size, features],
                got: vec![self.header.world_size, layer.features()],
            });
        }
        Ok(layer)
    }

    /// Compares the header with the running model.
    ///
    /// # Errors
    /// The first of model, dtype and world size that differs, with both values.
    pub fn check_matches(&self, expected: &Expected) -> Result<(), ManifestError> {
        let Header {
            model,
            dtype,
            world_size,
            ..
        } = self.header;
        let mismatch = |field, manifest: String, running: String, remedy| {
            Err(ManifestError::Mismatch {
                field,
                manifest,
                running,
                remedy,
            })
        };
        if model != expected.fingerprint {
            let remedy = "calibrate this model with `tpq calibrate`, or load the model the manifest was made for";
            return mismatch(
                "model fingerprint",
                model.to_string(),
                expected.fingerprint.to_string(),
                remedy,
            );
        }
        if dtype != expected.dtype {
            let remedy = "run with the manifest's dtype, or calibrate again in this one";
            return mismatch(
                "dtype",
                dtype.name().to_owned(),
                expected.dtype.name().to_owned(),
                remedy,
            );
        }
        if world_size != expected.world_size {
            let remedy = "a rank's partial sums depend on how many ranks there are: run on as many as the manifest \
                          names, or calibrate again";
            return mismatch(
                "world size",
                world_size.to_string(),
                expected.world_size.to_string(),
                remedy,
            );
        }
        Ok(())
    }

    /// SHA-256 over what the YAML says and the scales it names: what peers compare. Comments, key order and spacing do
    /// not count; an edited outlier list does.
    pub fn digest(&self) -> Digest {
        Digest(Sha256::digest(text::render(self).as_bytes()).into())
    }

    /// Digest of the scales file alone.
    pub const fn scales_digest(&self) -> Digest {
        self.scales
    }
}

fn check_header(header: &Header) -> Result<(), ManifestError> {
    if !(1..=MAX_WORLD_SIZE).contains(&header.world_size) {
        return Err(value("world_size", header.world_size, format!("1 to {MAX_WORLD_SIZE}")));
    }
    if !(header.ema > 0.0 && header.ema < 1.0) {
        return Err(value(
            "calibration.ema",
            header.ema,
            "a number above 0 and below 1".to_owned(),
        ));
    }
    Ok(())
}

fn value(key: &str, got: impl ToString, expected: String) -> ManifestError {
    ManifestError::Value {
        key: key.to_owned(),
        got: got.to_string(),
        expected,
    }
}

/// `layers.2` before `layers.10`: numbers compare as numbers.
pub(crate) fn natural(name: &str) -> Vec<(String, u64)> {
    name.split('.')
        .map(|part| {
            (
                part.parse::<u64>().map_or(part.to_owned(), |_| String::new()),
                part.parse().unwrap_or(0),
            )
        })
        .collect()
}
