//! Errors of a manifest: a file of the user's that is damaged, edited into something impossible, or for another model.

use super::digest::Digest;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    #[error("cannot read {}: {source}{}", path.display(), calibrate_hint(source))]
    Read { path: PathBuf, source: std::io::Error },

    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },

    #[error("{}: {source}", path.display())]
    InFile { path: PathBuf, source: Box<ManifestError> },

    #[error("not a manifest: {message}")]
    Syntax { message: String },

    #[error("`{key}` is {got}, expected {expected}")]
    Value { key: String, got: String, expected: String },

    #[error("{bytes} bytes, expected at most {limit} for the layers the manifest lists")]
    TooLarge { bytes: u64, limit: u64 },

    #[error(
        "the file has SHA-256 {got} ({bytes} bytes), the manifest expects {expected}: it is truncated or altered. \
         Copy the files again from where they were calibrated"
    )]
    ScalesDigest { expected: Digest, got: Digest, bytes: u64 },

    #[error("not a safetensors file: {message}")]
    ScalesFormat { message: String },

    #[error("no scales for layer {layer}, which the manifest lists")]
    MissingScales { layer: String },

    #[error("scales for {layer}, which the manifest does not list: a layer was removed from it or renamed in it")]
    UnlistedScales { layer: String },

    #[error("scales of layer {layer} have dtype {got}, expected F32")]
    ScalesDtype { layer: String, got: String },

    /// `[world size, features]`
    #[error("layer {layer} has ranges of shape {got:?}, expected {expected:?} (ranks, features)")]
    Shape {
        layer: String,
        expected: Vec<usize>,
        got: Vec<usize>,
    },

    #[error(
        "layer {layer}, rank {rank}, feature {feature} has range {got}, expected a finite number that is not negative"
    )]
    Range {
        layer: String,
        rank: usize,
        feature: usize,
        got: f32,
    },

    #[error("layer {layer}, rank {rank}, feature {feature}: an error or step of `rd` is negative or not finite")]
    Curve { layer: String, rank: usize, feature: usize },

    #[error(
        "layer {layer}: the shape of its magnitudes is no list of {} numbers that are not negative",
        crate::codec::SHAPE_LEN
    )]
    MagnitudeShape { layer: String },

    #[error(
        "the manifest has no error curves of layer {layer}, which `rd` needs: calibrate again with this version of tpq"
    )]
    NoCurves { layer: String },

    #[error(
        "the manifest has no priority of layer {layer}, which `budget_scope: model` needs: calibrate with --sensitivity"
    )]
    NoPriority { layer: String },

    #[error("layer {layer}: outlier {got} follows {previous}, expected indices in ascending order")]
    OutliersUnsorted { layer: String, previous: u32, got: u32 },

    #[error("layer {layer}: outlier {index} is listed twice")]
    OutlierDuplicate { layer: String, index: u32 },

    #[error("layer {layer}: outlier {got} does not exist, expected indices below {features}, the number of features")]
    OutlierOutOfRange { layer: String, got: u64, features: usize },

    #[error("layer {layer} is listed twice")]
    DuplicateLayer { layer: String },

    #[error("the manifest has no layer {layer}{}", nearest.as_ref().map_or_else(String::new, |name| format!("; nearest: {name}")))]
    MissingLayer { layer: String, nearest: Option<String> },

    #[error("the manifest is for another {field}: it has {manifest}, the running model has {running}; {remedy}")]
    Mismatch {
        field: &'static str,
        manifest: String,
        running: String,
        remedy: &'static str,
    },
}

fn calibrate_hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => " (`tpq calibrate` makes one for your model)",
        _ => "",
    }
}
