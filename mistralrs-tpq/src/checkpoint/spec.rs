//! Shape of a checkpoint, and what the loaders accept of it.

use std::path::PathBuf;

use rand::seq::index;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::tokenizer::GENERATED_TOKENS;
use super::CheckpointError;
use crate::codec::Dtype;

/// Which of the engine's loaders reads the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    Llama,
    Gemma2,
    Mistral,
    Qwen3,
    Mixtral,
}

/// A mixture-of-experts MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    pub count: usize,
    /// Experts that each token visits.
    pub top_k: usize,
}

/// What to write. Sizes are in elements and named as in `config.json`; see [`PRESETS`](super::PRESETS) for known models.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointSpec {
    pub architecture: Architecture,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// `hidden / heads` where `None`. The Llama and Mixtral loaders know no other.
    pub head_dim: Option<usize>,
    pub vocab: usize,
    /// For Mixtral, and only there.
    pub experts: Option<Experts>,
    /// Of the weights on disk.
    pub dtype: Dtype,
    /// The same seed and shape give the same bytes, on every platform.
    pub seed: u64,
    /// The output matrix is the embedding. Always so in Gemma 2.
    pub tie_embeddings: bool,
    pub max_position: usize,
    pub rope_theta: f64,
    /// Features whose rows are `OUTLIER_GAIN` times larger in every matrix that writes to the residual stream: the same
    /// features in every layer, as in trained models, so that a quantizer has something to select.
    pub outliers: usize,
    /// `tokenizer.json` to copy, with its `tokenizer_config.json` where there is one. `None`: a byte-level one is made.
    pub tokenizer: Option<PathBuf>,
}

/// Weight ratio of an outlier feature to the others. Trained Llama models show ratios of 10 to 100 between the largest and the
/// median range of a partial sum; 20 is clear of chance at any width.
pub const OUTLIER_GAIN: f32 = 20.0;

/// Far above any model; they keep every product of sizes below 2^64.
const LIMITS: [(&str, usize); 9] = [
    ("hidden_size", 1 << 18),
    ("intermediate_size", 1 << 20),
    ("num_hidden_layers", 1 << 9),
    ("num_attention_heads", 1 << 12),
    ("num_key_value_heads", 1 << 12),
    ("head_dim", 1 << 12),
    ("vocab_size", 1 << 22),
    ("num_local_experts", 1 << 9),
    ("max_position_embeddings", 1 << 24),
];

impl Architecture {
    pub const ALL: [Self; 5] = [Self::Llama, Self::Gemma2, Self::Mistral, Self::Qwen3, Self::Mixtral];

    /// As on the command line: `llama`, `gemma2`, `mistral`, `qwen3`, `mixtral`. Also `model_type` in config.json.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Gemma2 => "gemma2",
            Self::Mistral => "mistral",
            Self::Qwen3 => "qwen3",
            Self::Mixtral => "mixtral",
        }
    }

    /// `architectures[0]` in config.json; the engine picks its loader by it.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Mixtral => "MixtralForCausalLM",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name)
    }

    /// Base of the rotary embedding in the family's first models.
    pub const fn rope_theta(self) -> f64 {
        match self {
            Self::Llama | Self::Gemma2 | Self::Mistral => 10_000.0,
            Self::Qwen3 | Self::Mixtral => 1_000_000.0,
        }
    }

    /// Whether the loader derives the head size from `hidden_size` and ignores `head_dim`.
    const fn derives_head_dim(self) -> bool {
        matches!(self, Self::Llama | Self::Mixtral)
    }
}

impl CheckpointSpec {
    /// Width of one attention head, as the loaders compute it.
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden / self.heads.max(1))
    }

    /// The features that `outliers` enlarges, ascending; the same for the same seed.
    pub fn outlier_features(&self) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut features = index::sample(&mut rng, self.hidden, self.outliers.min(self.hidden)).into_vec();
        features.sort_unstable();
        features
    }

    /// Checks that the engine's loader of this architecture can read a checkpoint of this shape.
    ///
    /// # Errors
    /// The first size that is zero, too large, or does not go with another.
    pub fn validate(&self) -> Result<(), CheckpointError> {
        self.check_limits()?;
        self.check_heads()?;
        self.check_experts()?;
        if self.architecture == Architecture::Gemma2 && !self.tie_embeddings {
            return Err(CheckpointError::value(
                "tie_word_embeddings",
                false,
                "true: Gemma 2 has no output matrix of its own",
            ));
        }
        if self.tokenizer.is_none() && self.vocab < GENERATED_TOKENS {
            let expected = format!("at least {GENERATED_TOKENS}: 256 bytes and the special tokens");
            return Err(CheckpointError::value("vocab_size", self.vocab, expected));
        }
        if self.outliers >= self.hidden {
            let expected = format!("fewer than `hidden_size`, which is {}", self.hidden);
            return Err(CheckpointError::value("outliers", self.outliers, expected));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return Err(CheckpointError::value(
                "rope_theta",
                self.rope_theta,
                "a finite number above 1, such as 10000",
            ));
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), CheckpointError> {
        let sizes = [
            self.hidden,
            self.intermediate,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim.unwrap_or(1),
            self.vocab,
            self.experts.map_or(1, |experts| experts.count),
            self.max_position,
        ];
        for ((key, limit), got) in LIMITS.into_iter().zip(sizes) {
            if !(1..=limit).contains(&got) {
                return Err(CheckpointError::value(key, got, format!("from 1 to {limit}")));
            }
        }
        Ok(())
    }

    fn check_heads(&self) -> Result<(), CheckpointError> {
        let Self {
            hidden,
            heads,
            kv_heads,
            ..
        } = *self;
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of `num_attention_heads`, which is {heads}");
            return Err(CheckpointError::value("num_key_value_heads", kv_heads, expected));
        }
        let derived = hidden % heads == 0;
        match self.head_dim {
            None if !derived => {
                let expected = format!("a divisor of `hidden_size`, which is {hidden}, where `head_dim` is not given");
                return Err(CheckpointError::value("num_attention_heads", heads, expected));
            }
            Some(head_dim) if self.architecture.derives_head_dim() && head_dim * heads != hidden => {
                let expected = format!(
                    "`hidden_size` / `num_attention_heads` ({hidden} / {heads}): the {} loader knows no other",
                    self.architecture.name()
                );
                return Err(CheckpointError::value("head_dim", head_dim, expected));
            }
            _ => {}
        }
        if !self.head_width().is_multiple_of(2) {
            return Err(CheckpointError::value(
                "head_dim",
                self.head_width(),
                "an even number: rotary embeddings turn pairs",
            ));
        }
        Ok(())
    }

    fn check_experts(&self) -> Result<(), CheckpointError> {
        match (self.architecture, self.experts) {
            (Architecture::Mixtral, None) => Err(CheckpointError::value(
                "num_local_experts",
                "absent",
                "a number of experts for mixtral, such as 8",
            )),
            (Architecture::Mixtral, Some(Experts { count, top_k })) if !(1..=count).contains(&top_k) => {
                let expected = format!("from 1 to `num_local_experts`, which is {count}");
                Err(CheckpointError::value("num_experts_per_tok", top_k, expected))
            }
            (Architecture::Mixtral, Some(_)) | (_, None) => Ok(()),
            (other, Some(experts)) => {
                let expected = format!("none: {} has no experts", other.name());
                Err(CheckpointError::value("num_local_experts", experts.count, expected))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(name: &str) -> CheckpointSpec {
        CheckpointSpec::preset(name).unwrap()
    }

    #[test]
    fn a_shape_that_no_loader_takes_is_refused_with_the_key() {
        let llama = tiny("tiny-llama");
        let cases: [(CheckpointSpec, &str); 11] = [
            (
                CheckpointSpec {
                    hidden: 0,
                    ..llama.clone()
                },
                "hidden_size",
            ),
            (
                CheckpointSpec {
                    layers: 1 << 20,
                    ..llama.clone()
                },
                "num_hidden_layers",
            ),
            (
                CheckpointSpec {
                    kv_heads: 3,
                    ..llama.clone()
                },
                "num_key_value_heads",
            ),
            (
                CheckpointSpec {
                    heads: 12,
                    kv_heads: 2,
                    ..llama.clone()
                },
                "num_attention_heads",
            ),
            (
                CheckpointSpec {
                    head_dim: Some(32),
                    ..llama.clone()
                },
                "head_dim",
            ),
            (
                CheckpointSpec {
                    head_dim: Some(33),
                    ..tiny("tiny-nemo")
                },
                "head_dim",
            ),
            (
                CheckpointSpec {
                    vocab: 200,
                    ..llama.clone()
                },
                "vocab_size",
            ),
            (
                CheckpointSpec {
                    outliers: 128,
                    ..llama.clone()
                },
                "outliers",
            ),
            (
                CheckpointSpec {
                    tie_embeddings: false,
                    ..tiny("tiny-gemma2")
                },
                "tie_word_embeddings",
            ),
            (
                CheckpointSpec {
                    experts: None,
                    ..tiny("tiny-mixtral")
                },
                "num_local_experts",
            ),
            (
                CheckpointSpec {
                    experts: Some(Experts { count: 4, top_k: 5 }),
                    ..tiny("tiny-mixtral")
                },
                "num_experts_per_tok",
            ),
        ];
        for (spec, key) in cases {
            let error = spec.validate().unwrap_err();
            assert!(error.to_string().starts_with(&format!("`{key}` is ")), "{error}");
            assert!(error.is_usage());
        }
        assert!(CheckpointSpec {
            experts: Some(Experts { count: 4, top_k: 2 }),
            ..llama
        }
        .validate()
        .is_err());
    }

    #[test]
    fn outlier_features_are_distinct_and_follow_the_seed() {
        let spec = CheckpointSpec {
            outliers: 5,
            ..tiny("tiny-llama")
        };
        let features = spec.outlier_features();
        assert_eq!(features.len(), 5);
        assert!(features.windows(2).all(|pair| pair[0] < pair[1]) && features[4] < spec.hidden);
        assert_eq!(features, spec.outlier_features());
        assert_ne!(
            features,
            CheckpointSpec {
                seed: spec.seed + 1,
                ..spec
            }
            .outlier_features()
        );
    }
}
