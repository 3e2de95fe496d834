//! `manifest.yaml` as text. Written by hand rather than by a serializer: outliers belong on one line, and a file that
//! people edit needs its comments.

use super::digest::Digest;
use super::error::ManifestError;
use super::layer::{check_features, check_name, Layer, Priority, Summary};
use super::{check_header, Header, Manifest, CURVES_FILE, FORMAT, MAX_LAYERS, SCALES_FILE};
use crate::codec::Dtype;
use serde::de::DeserializeOwned;
use serde::Deserialize;
use std::collections::HashSet;
use std::fmt::Write;

/// The YAML before the scales are read.
pub(super) struct Parsed {
    pub(super) header: Header,
    pub(super) scales: Digest,
    pub(super) curves: Option<Digest>,
    pub(super) layers: Vec<ParsedLayer>,
}

pub(super) struct ParsedLayer {
    pub(super) name: String,
    pub(super) features: usize,
    pub(super) outliers: Vec<u32>,
    pub(super) summary: Summary,
    pub(super) priority: Option<Priority>,
}

const COMMENT: &str = "\
# What `tpq calibrate` measured; tpq.yaml names this file as `codec.manifest`.
# `outliers` are the features sent as BF16. You may edit the lists (ascending, no index twice): every rank needs the same
# copy, and refuses a peer that has another. The ranges themselves are in the scales file, which is not to be edited.
# `summary` is for readers: from calibration, not updated by an edit.
";

/// The file's text, the same for equal manifests.
pub(super) fn render(manifest: &Manifest) -> String {
    let mut out = String::from(COMMENT);
    // Writing to a String cannot fail.
    let _ = render_into(&mut out, manifest);
    out
}

fn render_into(out: &mut String, manifest: &Manifest) -> std::fmt::Result {
    let Header {
        model,
        dtype,
        world_size,
        corpus,
        sequences,
        tokens,
        ema,
    } = manifest.header();
    writeln!(out, "format: {FORMAT}")?;
    writeln!(out, "model: \"{model}\"")?;
    writeln!(out, "dtype: {}", dtype.name())?;
    writeln!(out, "world_size: {world_size}")?;
    writeln!(
        out,
        "calibration: {{corpus: \"{corpus}\", sequences: {sequences}, tokens: {tokens}, ema: {ema:?}}}"
    )?;
    writeln!(
        out,
        "scales: {{file: {SCALES_FILE}, sha256: \"{}\"}}",
        manifest.scales_digest()
    )?;
    if let Some(curves) = manifest.curves {
        writeln!(out, "curves: {{file: {CURVES_FILE}, sha256: \"{curves}\"}}")?;
    }
    writeln!(out, "layers:")?;
    manifest.layers().iter().try_for_each(|layer| render_layer(out, layer))
}

fn render_layer(out: &mut String, layer: &Layer) -> std::fmt::Result {
    let Summary {
        min,
        median,
        max,
        spread,
        expected_sqnr_db,
    } = layer.summary();
    writeln!(out, "- name: \"{}\"", layer.name())?;
    writeln!(out, "  features: {}", layer.features())?;
    let outliers: Vec<String> = layer.outliers().iter().map(u32::to_string).collect();
    writeln!(out, "  outliers: [{}]", outliers.join(", "))?;
    writeln!(
        out,
        "  summary: {{range: {{min: {min:?}, median: {median:?}, max: {max:?}}}, spread: {spread:?}, \
         expected_sqnr_db: {expected_sqnr_db:?}}}"
    )?;
    match layer.priority() {
        None => Ok(()),
        Some(Priority {
            sensitivity,
            extra_bits,
        }) => writeln!(
            out,
            "  priority: {{sensitivity: {sensitivity:?}, extra_bits: {extra_bits:?}}}"
        ),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    /// Checked before the rest is read.
    #[serde(rename = "format")]
    _format: u64,
    model: String,
    dtype: String,
    world_size: usize,
    calibration: RawCalibration,
    scales: RawScales,
    curves: Option<RawScales>,
    layers: Vec<RawLayer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCalibration {
    corpus: String,
    sequences: u64,
    tokens: u64,
    ema: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScales {
    file: String,
    sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLayer {
    name: String,
    features: usize,
    outliers: Vec<u64>,
    summary: RawSummary,
    priority: Option<RawPriority>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPriority {
    sensitivity: f32,
    extra_bits: f32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSummary {
    range: RawRange,
    spread: f32,
    expected_sqnr_db: f32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    min: f32,
    median: f32,
    max: f32,
}

pub(super) fn parse(text: &str) -> Result<Parsed, ManifestError> {
    // A later format may have other keys; its number deserves the message, not its first new key.
    #[derive(Deserialize)]
    struct FormatOnly {
        format: u64,
    }
    let FormatOnly { format } = from_yaml(text)?;
    if format != FORMAT {
        return Err(value(
            "format",
            format,
            format!("{FORMAT}, the only one this version of tpq reads"),
        ));
    }
    let raw: RawManifest = from_yaml(text)?;
    let scales = beside("scales", &raw.scales, SCALES_FILE)?;
    let curves = raw
        .curves
        .map(|curves| beside("curves", &curves, CURVES_FILE))
        .transpose()?;
    let header = Header {
        model: digest("model", &raw.model)?,
        dtype: dtype(&raw.dtype)?,
        world_size: raw.world_size,
        corpus: digest("calibration.corpus", &raw.calibration.corpus)?,
        sequences: raw.calibration.sequences,
        tokens: raw.calibration.tokens,
        ema: raw.calibration.ema,
    };
    check_header(&header)?;
    if raw.layers.is_empty() || raw.layers.len() > MAX_LAYERS {
        return Err(value("layers", raw.layers.len(), format!("1 to {MAX_LAYERS} layers")));
    }
    // Before the scales are looked at, where the second of the two would seem to have none.
    let mut names = HashSet::new();
    if let Some(twice) = raw.layers.iter().find(|layer| !names.insert(layer.name.as_str())) {
        check_name(&twice.name)?;
        return Err(ManifestError::DuplicateLayer {
            layer: twice.name.clone(),
        });
    }
    let layers = raw.layers.into_iter().map(layer).collect::<Result<_, _>>()?;
    Ok(Parsed {
        header,
        scales,
        curves,
        layers,
    })
}

/// The digest of a file whose name is fixed.
fn beside(key: &str, raw: &RawScales, name: &str) -> Result<Digest, ManifestError> {
    if raw.file != name {
        let got = format!("`{}`", brief(&raw.file));
        return Err(value(
            &format!("{key}.file"),
            got,
            format!("{name}, beside the manifest"),
        ));
    }
    digest(&format!("{key}.sha256"), &raw.sha256)
}

fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T, ManifestError> {
    serde_yaml::from_str(text).map_err(|error| ManifestError::Syntax {
        message: error.to_string(),
    })
}

fn layer(raw: RawLayer) -> Result<ParsedLayer, ManifestError> {
    let RawLayer {
        name,
        features,
        outliers,
        summary,
        priority,
    } = raw;
    check_name(&name)?;
    check_features(&name, features)?;
    let outliers = outliers
        .into_iter()
        .map(|index| match u32::try_from(index) {
            Ok(index) => Ok(index),
            Err(_) => Err(ManifestError::OutlierOutOfRange {
                layer: name.clone(),
                got: index,
                features,
            }),
        })
        .collect::<Result<_, _>>()?;
    let RawSummary {
        range: RawRange { min, median, max },
        spread,
        expected_sqnr_db,
    } = summary;
    for (key, number) in [
        ("range.min", min),
        ("range.median", median),
        ("range.max", max),
        ("spread", spread),
        ("expected_sqnr_db", expected_sqnr_db),
    ] {
        if !number.is_finite() {
            return Err(value(
                &format!("summary.{key} of layer {name}"),
                number,
                "a finite number".to_owned(),
            ));
        }
    }
    Ok(ParsedLayer {
        name,
        features,
        outliers,
        summary: Summary {
            min,
            median,
            max,
            spread,
            expected_sqnr_db,
        },
        priority: priority.map(|priority| Priority {
            sensitivity: priority.sensitivity,
            extra_bits: priority.extra_bits,
        }),
    })
}

fn digest(key: &str, text: &str) -> Result<Digest, ManifestError> {
    text.parse().map_err(|_| {
        value(
            key,
            format!("`{}`", brief(text)),
            "64 hexadecimal digits, a SHA-256".to_owned(),
        )
    })
}

fn dtype(text: &str) -> Result<Dtype, ManifestError> {
    [Dtype::F32, Dtype::Bf16, Dtype::F16]
        .into_iter()
        .find(|dtype| dtype.name() == text)
        .ok_or_else(|| value("dtype", format!("`{}`", brief(text)), "f32, bf16 or f16".to_owned()))
}

fn brief(text: &str) -> String {
    text.escape_debug().take(80).collect()
}

fn value(key: &str, got: impl ToString, expected: String) -> ManifestError {
    super::value(key, got, expected)
}
