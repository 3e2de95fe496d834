//! `config.json`, with the keys that each loader of mistral.rs 0.8.1 requires.

use serde::Serialize;

use super::spec::{Architecture, CheckpointSpec};
use super::tokenizer;
use crate::codec::Dtype;

/// Keys in the order of the file. A struct rather than a JSON map: the engine's build lets maps keep their insertion order
/// and ours sorts them, and the model's fingerprint covers this text.
#[derive(Debug, Serialize)]
struct Config {
    architectures: [&'static str; 1],
    model_type: &'static str,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_act: &'static str,
    rms_norm_eps: f64,
    rope_theta: f64,
    tie_word_embeddings: bool,
    attention_bias: bool,
    sliding_window: Option<usize>,
    #[serde(flatten)]
    family: Family,
    #[serde(flatten)]
    special_tokens: Option<SpecialTokens>,
    torch_dtype: &'static str,
}

/// Keys of one architecture.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Family {
    Plain {},
    Gemma2 {
        hidden_activation: &'static str,
        query_pre_attn_scalar: usize,
        attn_logit_softcapping: f64,
        final_logit_softcapping: f64,
    },
    Qwen3 {
        max_window_layers: usize,
        use_sliding_window: bool,
    },
    Mixtral {
        num_local_experts: usize,
        num_experts_per_tok: usize,
    },
}

/// Known only of a tokenizer that was made here.
#[derive(Debug, Serialize)]
struct SpecialTokens {
    bos_token_id: u32,
    eos_token_id: u32,
}

/// Text of config.json, of a valid `spec`.
pub(super) fn text(spec: &CheckpointSpec) -> String {
    let architecture = spec.architecture;
    let config = Config {
        architectures: [architecture.class()],
        model_type: architecture.name(),
        hidden_size: spec.hidden,
        intermediate_size: spec.intermediate,
        num_hidden_layers: spec.layers,
        num_attention_heads: spec.heads,
        num_key_value_heads: spec.kv_heads,
        // Gemma 2's loader has no default.
        head_dim: (architecture == Architecture::Gemma2)
            .then(|| spec.head_width())
            .or(spec.head_dim),
        vocab_size: spec.vocab,
        max_position_embeddings: spec.max_position,
        hidden_act: if architecture == Architecture::Gemma2 {
            GEMMA_ACTIVATION
        } else {
            "silu"
        },
        rms_norm_eps: match architecture {
            Architecture::Gemma2 | Architecture::Qwen3 => 1e-6,
            _ => 1e-5,
        },
        rope_theta: spec.rope_theta,
        tie_word_embeddings: spec.tie_embeddings,
        attention_bias: false,
        sliding_window: (architecture == Architecture::Gemma2).then(|| GEMMA_WINDOW.min(spec.max_position)),
        family: family(spec),
        special_tokens: spec.tokenizer.is_none().then_some(SpecialTokens {
            bos_token_id: tokenizer::BOS_ID,
            eos_token_id: tokenizer::EOS_ID,
        }),
        torch_dtype: match spec.dtype {
            Dtype::F32 => "float32",
            Dtype::Bf16 => "bfloat16",
            Dtype::F16 => "float16",
        },
    };
    let mut text = serde_json::to_string_pretty(&config).unwrap_or_else(|_| unreachable!("plain fields serialize"));
    text.push('\n');
    text
}

const GEMMA_ACTIVATION: &str = "gelu_pytorch_tanh";
const GEMMA_WINDOW: usize = 4096;

fn family(spec: &CheckpointSpec) -> Family {
    match (spec.architecture, spec.experts) {
        (Architecture::Gemma2, _) => Family::Gemma2 {
            hidden_activation: GEMMA_ACTIVATION,
            query_pre_attn_scalar: spec.head_width(),
            attn_logit_softcapping: 50.0,
            final_logit_softcapping: 30.0,
        },
        (Architecture::Qwen3, _) => Family::Qwen3 {
            max_window_layers: spec.layers,
            use_sliding_window: false,
        },
        (_, Some(experts)) => Family::Mixtral {
            num_local_experts: experts.count,
            num_experts_per_tok: experts.top_k,
        },
        _ => Family::Plain {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn config(preset: &str) -> Value {
        serde_json::from_str(&text(&CheckpointSpec::preset(preset).unwrap())).unwrap()
    }

    /// Fields without `Option` and without a serde default in the `Config` of each model file, plus `architectures`.
    #[test]
    fn each_loader_finds_the_keys_it_requires() {
        let common = [
            "architectures",
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "hidden_act",
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
        ];
        let own: [(&str, &[&str]); 5] = [
            ("tiny-llama", &[]),
            (
                "tiny-gemma2",
                &["attention_bias", "head_dim", "sliding_window", "query_pre_attn_scalar"],
            ),
            ("tiny-nemo", &["head_dim"]),
            ("tiny-qwen3", &["head_dim", "max_window_layers", "use_sliding_window"]),
            ("tiny-mixtral", &["num_experts_per_tok", "num_local_experts"]),
        ];
        for (preset, own) in own {
            let config = config(preset);
            for key in common.iter().chain(own) {
                assert!(config.get(key).is_some_and(|value| !value.is_null()), "{preset}: {key}");
            }
        }
    }

    #[test]
    fn numbers_are_those_of_the_shape() {
        let nemo = config("mistral-nemo-12b");
        assert_eq!(nemo["architectures"][0], "MistralForCausalLM");
        assert_eq!(nemo["head_dim"], 128);
        assert_eq!(nemo["num_key_value_heads"], 8);
        assert_eq!(nemo["torch_dtype"], "bfloat16");
        assert_eq!(nemo["sliding_window"], Value::Null);
        assert_eq!(nemo["rope_theta"], 1_000_000.0);
        assert!(config("tiny-llama").get("head_dim").is_none());
        assert_eq!(config("tiny-gemma2")["sliding_window"], 512);
        assert_eq!(config("mixtral-8x7b")["num_local_experts"], 8);
    }

    #[test]
    fn special_tokens_of_a_foreign_tokenizer_are_not_claimed() {
        let spec = CheckpointSpec {
            tokenizer: Some("t.json".into()),
            ..CheckpointSpec::preset("tiny-llama").unwrap()
        };
        assert!(!text(&spec).contains("eos_token_id"));
        assert_eq!(config("tiny-llama")["eos_token_id"], 1);
    }
}
