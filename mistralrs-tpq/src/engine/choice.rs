//! What may be exchanged: the configured codec and the lossless one, with their manifests.

use anyhow::Result;

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
}
