//! What may be exchanged: the configured codec and the lossless one, with their manifests.

use std::sync::Arc;

use anyhow::Result;

use crate::calibrate::{control_outliers, entropy_tables, rd_tables};
use crate::codec::{Codec, Dynamic, NoCodec, Paper, PaperTables, Rd, RdEntropy};
use crate::config::defaults::RD_BITS_LIMITS;
use crate::config::{BudgetScope, CodecPlan};
use crate::manifest::{Layer, Manifest, ManifestError};

/// One way to exchange, selectable at run time on all ranks at one step boundary.
#[derive(Debug)]
pub struct CodecChoice {
    pub label: String,
    pub codec: CodecPlan,
    pub manifest: Option<Manifest>,
}

impl CodecChoice {
    /// Loads the manifest that `codec` names.
    ///
    /// # Errors
    /// A manifest that cannot be read or does not hold together.
    pub fn load(label: &str, codec: CodecPlan) -> Result<Self> {
        let manifest = codec.manifest().map(Manifest::load).transpose()?;
        Ok(Self {
            label: label.to_owned(),
            codec,
            manifest,
        })
    }

    /// The codec for one layer of `features` features.
    ///
    /// # Errors
    /// A layer that the manifest does not describe as the codec needs it.
    pub(super) fn for_layer(&self, layer: &str, features: usize) -> Result<Arc<dyn Codec>> {
        match (&self.codec, &self.manifest) {
            (CodecPlan::Dynamic, _) => Ok(Arc::new(Dynamic::new(features))),
            (CodecPlan::Paper { .. }, Some(manifest)) => {
                let layer = manifest.require(layer, features)?;
                paper(layer, layer.outliers().to_vec())
            }
            (CodecPlan::Control { control, .. }, Some(manifest)) => {
                let layer = manifest.require(layer, features)?;
                paper(layer, control_outliers(layer, *control)?)
            }
            (
                CodecPlan::Rd {
                    bits, entropy, scope, ..
                },
                Some(manifest),
            ) => {
                let layer = manifest.require(layer, features)?;
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
            _ => Ok(Arc::new(NoCodec::new(features))),
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
