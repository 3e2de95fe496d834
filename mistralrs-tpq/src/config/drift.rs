//! The section `drift`: what happens when partial sums leave what was calibrated.

use std::path::{Path, PathBuf};

use serde_yaml::Value;

use super::codec::CodecPlan;
use super::defaults;
use super::error::ConfigError;
use super::plan;
use super::raw::Section;

pub(super) const KEYS: [&str; 8] = [
    "policy",
    "groups",
    "fallback_codec",
    "report_after_tokens",
    "clip_ratio",
    "noise_ratio",
    "learn_tokens",
    "write_manifest",
];

/// Of one layer group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DriftPolicy {
    /// Not watched.
    Off,
    /// Log and metrics.
    Warn,
    /// Sent without calibrated ranges until the group recovers.
    Fallback,
    /// New ranges are learned from what the ranks see.
    Recalibrate,
}

/// What a group in [`DriftPolicy::Fallback`] is sent with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FallbackCodec {
    #[default]
    Dynamic,
    None,
}

/// Layers that are judged together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftGroup {
    /// `*` stands for any characters, none included.
    pub layers: String,
    pub policy: DriftPolicy,
}

#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DriftPlan {
    /// In the order of the file; a layer belongs to the first that matches. The last one matches all layers.
    pub groups: Vec<DriftGroup>,
    pub fallback_codec: FallbackCodec,
    /// Tokens that must look drifted in a row before anything is done.
    pub report_after_tokens: u64,
    /// Above 1: clipped values over those that calibration leads to expect.
    pub clip_ratio: f64,
    /// Above 1: quantization noise over what calibration leads to expect.
    pub noise_ratio: f64,
    /// Tokens that new ranges are learned from.
    pub learn_tokens: u64,
    /// A folder for learned manifests. Rank 0 alone writes there; other ranks ignore it.
    pub write_manifest: Option<PathBuf>,
}

impl DriftPolicy {
    const ALL: [Self; 4] = [Self::Off, Self::Warn, Self::Fallback, Self::Recalibrate];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Fallback => "fallback",
            Self::Recalibrate => "recalibrate",
        }
    }

    /// Whether it ever changes what a layer is sent with.
    pub const fn acts(self) -> bool {
        matches!(self, Self::Fallback | Self::Recalibrate)
    }
}

impl FallbackCodec {
    const ALL: [Self; 2] = [Self::Dynamic, Self::None];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::None => "none",
        }
    }
}

impl DriftPlan {
    /// # Errors
    /// Besides wrong values: a policy that does something about ranges, with a codec that has none.
    pub(super) fn parse(section: &Section<'_>, codec: &CodecPlan, origin: &Path) -> Result<Self, ConfigError> {
        let policies = DriftPolicy::ALL.map(|policy| (policy.name(), policy));
        let codecs = FallbackCodec::ALL.map(|codec| (codec.name(), codec));
        let mut groups = groups(section, &policies)?;
        groups.push(DriftGroup {
            layers: "*".to_owned(),
            policy: section.choice("policy", &policies)?.unwrap_or(DriftPolicy::Warn),
        });
        check_codec(section, &groups, codec)?;
        let tokens = |key, default| {
            let tokens = section.integer(key, defaults::DRIFT_TOKENS_LIMITS.0, defaults::DRIFT_TOKENS_LIMITS.1)?;
            Ok::<_, ConfigError>(tokens.unwrap_or(default))
        };
        Ok(Self {
            groups,
            fallback_codec: section.choice("fallback_codec", &codecs)?.unwrap_or_default(),
            report_after_tokens: tokens("report_after_tokens", defaults::DRIFT_REPORT_AFTER_TOKENS)?,
            clip_ratio: ratio(section, "clip_ratio", defaults::DRIFT_CLIP_RATIO)?,
            noise_ratio: ratio(section, "noise_ratio", defaults::DRIFT_NOISE_RATIO)?,
            learn_tokens: tokens("learn_tokens", defaults::DRIFT_LEARN_TOKENS)?,
            write_manifest: plan::path(section, "write_manifest", "the path of a folder", origin)?,
        })
    }

    /// Nothing is watched: for commands that measure one codec as it is.
    #[must_use]
    pub fn off(mut self) -> Self {
        self.groups.iter_mut().for_each(|group| group.policy = DriftPolicy::Off);
        self
    }

    pub fn is_off(&self) -> bool {
        self.groups.iter().all(|group| group.policy == DriftPolicy::Off)
    }

    /// The group of a layer, as an index of `groups`.
    pub fn group_of(&self, layer: &str) -> usize {
        let matching = self.groups.iter().position(|group| matches(&group.layers, layer));
        matching.unwrap_or(self.groups.len().saturating_sub(1))
    }

    /// What all ranks must share; goes into the policy digest.
    pub(super) fn canonical(&self) -> String {
        let groups: Vec<String> = self
            .groups
            .iter()
            .map(|group| format!("{}={}", group.layers, group.policy.name()))
            .collect();
        format!(
            "drift={}\nfallback_codec={}\nreport_after_tokens={}\nclip_ratio={}\nnoise_ratio={}\nlearn_tokens={}\n",
            groups.join(" "),
            self.fallback_codec.name(),
            self.report_after_tokens,
            self.clip_ratio,
            self.noise_ratio,
            self.learn_tokens,
        )
    }
}

fn check_codec(section: &Section<'_>, groups: &[DriftGroup], codec: &CodecPlan) -> Result<(), ConfigError> {
    let Some(at) = groups.iter().position(|group| group.policy.acts()) else {
        return Ok(());
    };
    if codec.manifest().is_some() {
        return Ok(());
    }
    let key = match at + 1 == groups.len() {
        true => "policy".to_owned(),
        false => format!("groups[{at}].policy"),
    };
    let expected = format!(
        "off or warn: `codec.kind: {}` has no calibrated ranges that text could leave (paper and rd have)",
        codec.name()
    );
    Err(section.wrong_text(&key, &format!("`{}`", groups[at].policy.name()), &expected))
}

fn groups(section: &Section<'_>, policies: &[(&str, DriftPolicy)]) -> Result<Vec<DriftGroup>, ConfigError> {
    const EXPECTED: &str = "a list of groups, each with `layers` and `policy`";
    let items = match section.get("groups") {
        None => return Ok(Vec::new()),
        Some(Value::Sequence(items)) if items.len() <= defaults::DRIFT_GROUPS_LIMIT => items,
        Some(other) => return Err(section.wrong("groups", other, EXPECTED)),
    };
    let group = |(index, item)| {
        let item = section.item("groups", index, item, &["layers", "policy"], EXPECTED)?;
        let layers = match item.get("layers") {
            Some(Value::String(pattern)) if is_pattern(pattern) => pattern.clone(),
            Some(other) => {
                return Err(item.wrong("layers", other, "a pattern of layer names, such as \"*.mlp.down_proj\""))
            }
            None => return Err(item.missing("layers", "say which layers the group has, such as \"*.mlp.down_proj\"")),
        };
        let policy = item.choice("policy", policies)?;
        let policy = policy.ok_or_else(|| item.missing("policy", "choose off, warn, fallback or recalibrate"))?;
        Ok(DriftGroup { layers, policy })
    };
    items.iter().enumerate().map(group).collect()
}

fn ratio(section: &Section<'_>, key: &str, default: f64) -> Result<f64, ConfigError> {
    let (min, max) = defaults::DRIFT_RATIO_LIMITS;
    match section.get(key) {
        None => Ok(default),
        Some(value) => match value.as_f64().filter(|ratio| (min..=max).contains(ratio)) {
            Some(ratio) => Ok(ratio),
            None => Err(section.wrong(key, value, &format!("a ratio from {min} to {max}"))),
        },
    }
}

/// Only what layer names consist of, so that a pattern needs no escape in a log or metric.
fn is_pattern(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b'*');
    (1..=256).contains(&text.len()) && text.bytes().all(plain)
}

/// Whether `name` is `pattern` with something, or nothing, for each `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        let name = "model.layers.12.mlp.down_proj";
        for pattern in [
            "*",
            name,
            "*.mlp.down_proj",
            "model.*",
            "model.layers.1*.mlp.*",
            "*layers*mlp*",
            "**proj",
        ] {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in [
            "",
            "mlp",
            "*.mlp",
            "model.layers.1.*",
            "*o_proj",
            "*down_proj*proj",
            "layers*",
        ] {
            assert!(!matches(pattern, name), "{pattern}");
        }
    }
}
