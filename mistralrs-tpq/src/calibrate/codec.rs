//! The codec that a configuration makes of one calibrated layer.

use std::sync::Arc;

use anyhow::Result;

use super::{control_outliers, entropy_tables, rd_tables};
use crate::codec::{Codec, Dynamic, NoCodec, Paper, PaperTables, Rd, RdEntropy};
use crate::config::defaults::RD_BITS_LIMITS;
use crate::config::{BudgetScope, CodecPlan};
use crate::manifest::{Layer, Manifest, ManifestError};

/// The codec of `plan` for the layer `name` of `features` features.
///
/// # Errors
/// A layer that the manifest does not describe as the codec needs it.
pub fn codec_for(plan: &CodecPlan, manifest: Option<&Manifest>, name: &str, features: usize) -> Result<Arc<dyn Codec>> {
    match (plan, manifest) {
        (CodecPlan::Dynamic, _) => Ok(Arc::new(Dynamic::new(features))),
        (CodecPlan::None, _) | (_, None) => Ok(Arc::new(NoCodec::new(features))),
        (_, Some(manifest)) => layer_codec(plan, manifest.require(name, features)?),
    }
}

/// As [`codec_for`], of a calibrated layer.
///
/// # Errors
/// A layer without what the codec needs.
pub fn layer_codec(plan: &CodecPlan, layer: &Layer) -> Result<Arc<dyn Codec>> {
    let features = layer.features();
    match plan {
        CodecPlan::None => Ok(Arc::new(NoCodec::new(features))),
        CodecPlan::Dynamic => Ok(Arc::new(Dynamic::new(features))),
        CodecPlan::Paper { .. } => paper(layer, layer.outliers().to_vec()),
        CodecPlan::Control { control, .. } => paper(layer, control_outliers(layer, *control)?),
        CodecPlan::Rd {
            bits, entropy, scope, ..
        } => {
            let bits = budget(layer, *bits, *scope)?;
            if layer.curves().is_empty() {
                let layer = layer.name().to_owned();
                return Err(ManifestError::NoCurves { layer }.into());
            }
            if !entropy {
                return Ok(Arc::new(Rd::new(rd_tables(layer.curves(), features, bits)?)));
            }
            let tables = entropy_tables(layer.curves(), layer.shape(), features, bits)?;
            Ok(Arc::new(RdEntropy::new(tables)))
        }
    }
}

/// Average bits a value of this layer.
fn budget(layer: &Layer, bits: f64, scope: BudgetScope) -> Result<f64> {
    match (scope, layer.priority()) {
        (BudgetScope::Model, Some(priority)) => Ok((bits + f64::from(priority.extra_bits)).max(RD_BITS_LIMITS.0)),
        (BudgetScope::Model, None) => {
            let layer = layer.name().to_owned();
            Err(ManifestError::NoPriority { layer }.into())
        }
        (_, _) => Ok(bits),
    }
}

fn paper(layer: &Layer, outliers: Vec<u32>) -> Result<Arc<dyn Codec>> {
    let ranges = layer.ranges().chunks_exact(layer.features());
    let tables = PaperTables::new(ranges.map(<[f32]>::to_vec).collect(), outliers)?;
    Ok(Arc::new(Paper::new(tables)))
}
