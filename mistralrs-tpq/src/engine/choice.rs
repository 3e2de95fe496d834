//! What may be exchanged: the configured codec and the lossless one, with their manifests.

use std::sync::Arc;

use anyhow::Result;

use crate::calibrate::codec_for;
use crate::codec::Codec;
use crate::config::CodecPlan;
use crate::manifest::Manifest;

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
        codec_for(&self.codec, self.manifest.as_ref(), layer, features)
    }
}
