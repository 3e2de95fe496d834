//! The `codec` section.

use super::defaults;
use super::error::ConfigError;
use super::plan;
use super::raw::Section;
use std::path::{Path, PathBuf};

pub(super) const KEYS: [&str; 5] = ["kind", "manifest", "bits", "entropy", "budget_scope"];

#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum CodecPlan {
    /// Raw values: the lossless reference.
    None,
    /// Static int4 with BF16 outliers; the manifest's path is absolute or relative to the working directory.
    Paper { manifest: PathBuf },
    /// Groups of 32 with their own scale, no calibration.
    Dynamic,
    /// Bits by feature under an average of `bits` a value, side information included.
    Rd {
        manifest: PathBuf,
        bits: f64,
        entropy: bool,
        scope: BudgetScope,
    },
    /// A negative control of `paper`; no file sets it.
    Control { manifest: PathBuf, control: Control },
}

/// What the budget of `rd` is an average of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BudgetScope {
    /// Each layer by itself.
    #[default]
    Layer,
    /// The model: layers whose noise moves the logits more get more, as the manifest says.
    Model,
}

impl CodecPlan {
    /// As in the file, and in the hello.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Paper { .. } | Self::Control { .. } => "paper",
            Self::Dynamic => "dynamic",
            Self::Rd { entropy: false, .. } => "rd",
            Self::Rd { entropy: true, .. } => "rd_entropy",
        }
    }

    pub fn manifest(&self) -> Option<&Path> {
        match self {
            Self::Paper { manifest } | Self::Rd { manifest, .. } | Self::Control { manifest, .. } => Some(manifest),
            Self::None | Self::Dynamic => None,
        }
    }

    /// What ranks must agree on about a codec. Not the manifest's path: each host may keep its copy elsewhere, and the manifest
    /// has a digest of its own.
    pub(super) fn policy(&self) -> String {
        match self {
            Self::Rd { bits, scope, .. } => match scope {
                BudgetScope::Layer => format!("{} {bits}", self.name()),
                BudgetScope::Model => format!("{} {bits} over the model", self.name()),
            },
            Self::Control { control, .. } => format!("{} {}", self.name(), control.name()),
            other => other.name().to_owned(),
        }
    }
}

/// Which features `paper` keeps in BF16 instead of the chosen ones. If a control does as well, the choice is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// None: 4 bits a value.
    AllInt4,
    /// As many, drawn at random.
    Random,
    /// As many, those with the smallest range.
    Smallest,
}

impl Control {
    pub const ALL: [Self; 3] = [Self::AllInt4, Self::Random, Self::Smallest];

    pub const fn name(self) -> &'static str {
        match self {
            Self::AllInt4 => "no outliers",
            Self::Random => "random outliers",
            Self::Smallest => "smallest-range outliers",
        }
    }

    /// As a configuration that is compared.
    pub fn label(self) -> String {
        format!("paper, {}", self.name())
    }
}

pub(super) fn parse(section: &Section<'_>, origin: &Path) -> Result<CodecPlan, ConfigError> {
    #[derive(Clone, Copy)]
    enum Kind {
        None,
        Paper,
        Dynamic,
        Rd,
    }
    let kinds = [
        ("none", Kind::None),
        ("paper", Kind::Paper),
        ("dynamic", Kind::Dynamic),
        ("rd", Kind::Rd),
    ];
    // Read for every kind, so that a bad path is reported before someone switches back to `paper`.
    let manifest = plan::path(section, "manifest", "the path of a manifest.yaml", origin)?;
    let kind = section.choice("kind", &kinds)?.ok_or_else(|| {
        section.missing(
            "kind",
            "choose none, rd or paper (both need a manifest), or dynamic (needs nothing)",
        )
    })?;
    let bits = bits(section)?;
    let entropy = section.boolean("entropy")?.unwrap_or(false);
    let scopes = [("layer", BudgetScope::Layer), ("model", BudgetScope::Model)];
    let scope = section.choice("budget_scope", &scopes)?.unwrap_or_default();
    match (kind, manifest) {
        (Kind::None, _) => Ok(CodecPlan::None),
        (Kind::Dynamic, _) => Ok(CodecPlan::Dynamic),
        (Kind::Paper, Some(manifest)) => Ok(CodecPlan::Paper { manifest }),
        (Kind::Rd, Some(manifest)) => Ok(CodecPlan::Rd {
            manifest,
            bits,
            entropy,
            scope,
        }),
        (Kind::Paper | Kind::Rd, None) => Err(section.missing(
            "manifest",
            "this kind needs the ranges of your model. Make them with `tpq calibrate` and name its manifest.yaml \
             here, or use `kind: dynamic`, which needs none",
        )),
    }
}

fn bits(section: &Section<'_>) -> Result<f64, ConfigError> {
    let (min, max) = defaults::RD_BITS_LIMITS;
    let Some(value) = section.get("bits") else {
        return Ok(defaults::RD_BITS);
    };
    match value.as_f64().filter(|bits| (min..=max).contains(bits)) {
        Some(bits) => Ok(bits),
        None => Err(section.wrong("bits", value, &format!("average bits a value from {min} to {max}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_has_a_policy_of_its_own_and_the_manifest_of_paper() {
        let manifest = PathBuf::from("m.yaml");
        let paper = CodecPlan::Paper {
            manifest: manifest.clone(),
        };
        let mut policies = vec![paper.policy()];
        for control in Control::ALL {
            let manifest = manifest.clone();
            let control = CodecPlan::Control { manifest, control };
            assert_eq!((control.name(), control.manifest()), ("paper", paper.manifest()));
            policies.push(control.policy());
        }
        policies.sort();
        policies.dedup();
        assert_eq!(policies.len(), 4, "{policies:?}");
    }
}
