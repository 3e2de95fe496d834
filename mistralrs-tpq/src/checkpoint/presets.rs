//! Shapes of published models (from their config.json), and tiny ones of the same families for tests.

use super::spec::{Architecture, CheckpointSpec, Experts};
use super::CheckpointError;
use crate::codec::Dtype;

/// A named shape.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Preset {
    pub name: &'static str,
    /// What it is, for lists.
    pub about: &'static str,
    architecture: Architecture,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    /// Query heads, KV heads.
    heads: (usize, usize),
    head_dim: Option<usize>,
    vocab: usize,
    tied: bool,
    max_position: usize,
    /// `None`: the architecture's.
    rope_theta: Option<f64>,
}

const BASE: Preset = Preset {
    name: "",
    about: "",
    architecture: Architecture::Llama,
    hidden: 128,
    intermediate: 256,
    layers: 2,
    heads: (8, 4),
    // Not 128 / 8: only then a test notices a loader or an exchange that confuses the two widths.
    head_dim: Some(32),
    vocab: 320,
    tied: false,
    max_position: 512,
    rope_theta: None,
};

/// All presets. Each also exists with `-<N>l` appended: the same width with N layers.
pub const PRESETS: &[Preset] = &[
    // Four ranks share two KV heads here: the engine replicates them. It does so by hidden / heads, which is why the
    // families with a head size of their own have a KV head for each of four ranks.
    Preset {
        name: "tiny-llama",
        about: "8 heads, 2 KV heads",
        heads: (8, 2),
        head_dim: None,
        ..BASE
    },
    Preset {
        name: "tiny-gemma2",
        about: "head size of its own, tied embeddings",
        architecture: Architecture::Gemma2,
        tied: true,
        ..BASE
    },
    Preset {
        name: "tiny-nemo",
        about: "head size of its own",
        architecture: Architecture::Mistral,
        ..BASE
    },
    Preset {
        name: "tiny-qwen3",
        about: "query and key norms",
        architecture: Architecture::Qwen3,
        ..BASE
    },
    Preset {
        name: "tiny-mixtral",
        about: "4 experts, top 2",
        architecture: Architecture::Mixtral,
        head_dim: None,
        ..BASE
    },
    Preset {
        name: "tiny-6-heads",
        about: "Llama that divides by 2, 3 and 6",
        hidden: 96,
        intermediate: 192,
        heads: (6, 6),
        head_dim: None,
        ..BASE
    },
    llama("llama-2-7b", (4096, 11008, 32), (32, 32), (32000, 4096), 10_000.0),
    llama("llama-2-13b", (5120, 13824, 40), (40, 40), (32000, 4096), 10_000.0),
    llama("llama-2-70b", (8192, 28672, 80), (64, 8), (32000, 4096), 10_000.0),
    llama("llama-3-8b", (4096, 14336, 32), (32, 8), (128256, 8192), 500_000.0),
    gemma2("gemma-2-2b", (2304, 9216, 26), (8, 4), 256),
    gemma2("gemma-2-9b", (3584, 14336, 42), (16, 8), 256),
    gemma2("gemma-2-27b", (4608, 36864, 46), (32, 16), 128),
    Preset {
        name: "mistral-7b",
        vocab: 32000,
        max_position: 32768,
        ..large(Architecture::Mistral, (4096, 14336, 32), (32, 8))
    },
    Preset {
        name: "mistral-nemo-12b",
        head_dim: Some(128),
        vocab: 131_072,
        max_position: 131_072,
        rope_theta: Some(1_000_000.0),
        ..large(Architecture::Mistral, (5120, 14336, 40), (32, 8))
    },
    Preset {
        name: "qwen3-0.6b",
        head_dim: Some(128),
        vocab: 151_936,
        tied: true,
        max_position: 40960,
        ..large(Architecture::Qwen3, (1024, 3072, 28), (16, 8))
    },
    Preset {
        name: "qwen3-8b",
        head_dim: Some(128),
        vocab: 151_936,
        max_position: 40960,
        ..large(Architecture::Qwen3, (4096, 12288, 36), (32, 8))
    },
    Preset {
        name: "mixtral-8x7b",
        vocab: 32000,
        max_position: 32768,
        ..large(Architecture::Mixtral, (4096, 14336, 32), (32, 8))
    },
];

/// `(hidden, intermediate, layers)`, `(heads, KV heads)`.
const fn large(architecture: Architecture, size: (usize, usize, usize), heads: (usize, usize)) -> Preset {
    Preset {
        about: "BF16",
        architecture,
        hidden: size.0,
        intermediate: size.1,
        layers: size.2,
        heads,
        head_dim: None,
        ..BASE
    }
}

/// `text`: `(vocab, max_position)`.
const fn llama(
    name: &'static str,
    size: (usize, usize, usize),
    heads: (usize, usize),
    text: (usize, usize),
    rope_theta: f64,
) -> Preset {
    let shape = large(Architecture::Llama, size, heads);
    Preset {
        name,
        vocab: text.0,
        max_position: text.1,
        rope_theta: Some(rope_theta),
        ..shape
    }
}

const fn gemma2(name: &'static str, size: (usize, usize, usize), heads: (usize, usize), head_dim: usize) -> Preset {
    let shape = large(Architecture::Gemma2, size, heads);
    Preset {
        name,
        head_dim: Some(head_dim),
        vocab: 256_000,
        tied: true,
        max_position: 8192,
        ..shape
    }
}

impl Preset {
    /// With seed 0, no outliers and a generated tokenizer; tiny ones in F32, the others in BF16.
    pub fn spec(&self) -> CheckpointSpec {
        let tiny = self.name.starts_with("tiny-");
        CheckpointSpec {
            architecture: self.architecture,
            hidden: self.hidden,
            intermediate: self.intermediate,
            layers: self.layers,
            heads: self.heads.0,
            kv_heads: self.heads.1,
            head_dim: self.head_dim,
            vocab: self.vocab,
            experts: (self.architecture == Architecture::Mixtral).then_some(Experts {
                count: if tiny { 4 } else { 8 },
                top_k: 2,
            }),
            dtype: if tiny { Dtype::F32 } else { Dtype::Bf16 },
            seed: 0,
            tie_embeddings: self.tied,
            max_position: self.max_position,
            rope_theta: self.rope_theta.unwrap_or(self.architecture.rope_theta()),
            outliers: 0,
            tokenizer: None,
        }
    }
}

impl CheckpointSpec {
    /// The preset of this name, or with `-<N>l` appended, of its width with N layers: `llama-2-7b-4l`.
    ///
    /// # Errors
    /// A name that is no preset; the nearest one is named.
    pub fn preset(name: &str) -> Result<Self, CheckpointError> {
        let find = |name: &str| PRESETS.iter().find(|preset| preset.name == name).map(Preset::spec);
        let shortened = || {
            let (base, layers) = name.strip_suffix('l')?.rsplit_once('-')?;
            let layers = layers.parse().ok()?;
            find(base).map(|spec| Self { layers, ..spec })
        };
        find(name)
            .or_else(shortened)
            .ok_or_else(|| CheckpointError::UnknownPreset {
                name: name.to_owned(),
                nearest: nearest(name),
                known: PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", "),
            })
    }
}

/// 0.8 joins `llama-7b` and `llama-2-7b`, but not `bert` and anything.
fn nearest(name: &str) -> Option<String> {
    PRESETS
        .iter()
        .map(|preset| (strsim::jaro_winkler(name, preset.name), preset.name))
        .filter(|(score, _)| *score >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid_and_has_a_name_of_its_own() {
        for (i, preset) in PRESETS.iter().enumerate() {
            preset
                .spec()
                .validate()
                .unwrap_or_else(|error| panic!("{}: {error}", preset.name));
            assert!(!preset.about.is_empty());
            assert!(
                PRESETS[..i].iter().all(|other| other.name != preset.name),
                "{}",
                preset.name
            );
        }
    }

    #[test]
    fn parameter_counts_are_those_of_the_published_models() {
        let known = [
            ("llama-2-7b", 6_738_415_616),
            ("llama-2-13b", 13_015_864_320),
            ("llama-2-70b", 68_976_648_192),
            ("llama-3-8b", 8_030_261_248),
            ("gemma-2-2b", 2_614_341_888),
            ("gemma-2-9b", 9_241_705_984),
            ("gemma-2-27b", 27_227_128_320),
            ("mistral-7b", 7_241_732_096),
            ("mistral-nemo-12b", 12_247_782_400),
            ("qwen3-8b", 8_190_735_360),
            ("mixtral-8x7b", 46_702_792_704),
        ];
        for (name, parameters) in known {
            assert_eq!(
                CheckpointSpec::preset(name).unwrap().parameters().unwrap(),
                parameters,
                "{name}"
            );
        }
    }

    #[test]
    fn a_suffix_sets_the_number_of_layers() {
        let full = CheckpointSpec::preset("llama-2-7b").unwrap();
        let cut = CheckpointSpec::preset("llama-2-7b-4l").unwrap();
        assert_eq!(cut, CheckpointSpec { layers: 4, ..full });
        assert!(CheckpointSpec::preset("llama-2-7b-l").is_err());
    }

    #[test]
    fn an_unknown_preset_is_refused_with_the_nearest() {
        let message = CheckpointSpec::preset("llama-7b").unwrap_err().to_string();
        assert!(
            message.contains("did you mean `llama-2-7b`?") && message.contains("tiny-mixtral"),
            "{message}"
        );
        assert!(!CheckpointSpec::preset("xyz")
            .unwrap_err()
            .to_string()
            .contains("did you mean"));
    }
}
