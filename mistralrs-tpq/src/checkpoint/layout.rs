//! Every tensor of a checkpoint: name, shape, and how its values are drawn.
//!
//! Read from the engine's loaders (mistralrs-core 0.8.1, `src/models/{llama,gemma2,mistral,qwen3,mixtral}.rs`). A matrix is
//! `[out, in]`, row-major.

use super::spec::{Architecture, CheckpointSpec};
use super::CheckpointError;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorSpec {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) fill: Fill,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fill {
    Constant(f32),
    Normal {
        std: f32,
    },
    /// As `Normal`, with the rows of the outlier features enlarged: a matrix whose output joins the residual stream.
    Residual {
        std: f32,
    },
}

/// GPT-2's initialisation: 0.02 everywhere, and matrices that write to the residual stream divided by the square root of their
/// number, so that the stream does not grow with depth.
const STD: f32 = 0.02;

impl TensorSpec {
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}

impl CheckpointSpec {
    /// Values in all tensors; a tied output matrix counts once.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn parameters(&self) -> Result<u64, CheckpointError> {
        self.validate()?;
        Ok(tensors(self).iter().map(TensorSpec::elements).sum())
    }
}

/// In the order of the data path. Of a valid `spec`.
pub(super) fn tensors(spec: &CheckpointSpec) -> Vec<TensorSpec> {
    let mut list = List {
        spec,
        tensors: Vec::new(),
    };
    list.normal("model.embed_tokens.weight", [spec.vocab, spec.hidden]);
    for layer in 0..spec.layers {
        list.attention(&format!("model.layers.{layer}.self_attn"));
        list.mlp(&format!("model.layers.{layer}"));
        list.layer_norms(&format!("model.layers.{layer}"));
    }
    list.norm("model.norm.weight", spec.hidden);
    if !spec.tie_embeddings {
        list.normal("lm_head.weight", [spec.vocab, spec.hidden]);
    }
    list.tensors
}

struct List<'a> {
    spec: &'a CheckpointSpec,
    tensors: Vec<TensorSpec>,
}

impl List<'_> {
    fn attention(&mut self, prefix: &str) {
        let CheckpointSpec {
            hidden,
            heads,
            kv_heads,
            ..
        } = *self.spec;
        let width = self.spec.head_width();
        self.normal(&format!("{prefix}.q_proj.weight"), [heads * width, hidden]);
        self.normal(&format!("{prefix}.k_proj.weight"), [kv_heads * width, hidden]);
        self.normal(&format!("{prefix}.v_proj.weight"), [kv_heads * width, hidden]);
        self.residual(&format!("{prefix}.o_proj.weight"), [hidden, heads * width]);
        if self.spec.architecture == Architecture::Qwen3 {
            self.norm(&format!("{prefix}.q_norm.weight"), width);
            self.norm(&format!("{prefix}.k_norm.weight"), width);
        }
    }

    fn mlp(&mut self, layer: &str) {
        let CheckpointSpec {
            hidden, intermediate, ..
        } = *self.spec;
        let Some(experts) = self.spec.experts else {
            self.normal(&format!("{layer}.mlp.gate_proj.weight"), [intermediate, hidden]);
            self.normal(&format!("{layer}.mlp.up_proj.weight"), [intermediate, hidden]);
            self.residual(&format!("{layer}.mlp.down_proj.weight"), [hidden, intermediate]);
            return;
        };
        self.normal(
            &format!("{layer}.block_sparse_moe.gate.weight"),
            [experts.count, hidden],
        );
        for expert in 0..experts.count {
            let prefix = format!("{layer}.block_sparse_moe.experts.{expert}");
            self.normal(&format!("{prefix}.w1.weight"), [intermediate, hidden]);
            self.residual(&format!("{prefix}.w2.weight"), [hidden, intermediate]);
            self.normal(&format!("{prefix}.w3.weight"), [intermediate, hidden]);
        }
    }

    fn layer_norms(&mut self, layer: &str) {
        let names: &[&str] = match self.spec.architecture {
            Architecture::Gemma2 => &[
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            ],
            _ => &["input_layernorm", "post_attention_layernorm"],
        };
        for name in names {
            self.norm(&format!("{layer}.{name}.weight"), self.spec.hidden);
        }
    }

    /// A norm that changes nothing. Gemma's multiplies by 1 + weight.
    fn norm(&mut self, name: &str, width: usize) {
        let neutral = if self.spec.architecture == Architecture::Gemma2 {
            0.0
        } else {
            1.0
        };
        self.push(name, vec![width], Fill::Constant(neutral));
    }

    fn normal(&mut self, name: &str, shape: [usize; 2]) {
        self.push(name, shape.to_vec(), Fill::Normal { std: STD });
    }

    fn residual(&mut self, name: &str, shape: [usize; 2]) {
        let std = STD / (2.0 * self.spec.layers as f32).sqrt();
        self.push(name, shape.to_vec(), Fill::Residual { std });
    }

    fn push(&mut self, name: &str, shape: Vec<usize>, fill: Fill) {
        self.tensors.push(TensorSpec {
            name: name.to_owned(),
            shape,
            fill,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and shapes without the layers above 0.
    fn first_layer(preset: &str) -> Vec<(String, Vec<usize>)> {
        let spec = CheckpointSpec {
            layers: 1,
            ..CheckpointSpec::preset(preset).unwrap()
        };
        tensors(&spec)
            .into_iter()
            .map(|tensor| (tensor.name, tensor.shape))
            .collect()
    }

    fn expect(preset: &str, expected: &[(&str, &[usize])]) {
        let mut got = first_layer(preset);
        let mut expected: Vec<_> = expected
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), shape.to_vec()))
            .collect();
        got.sort();
        expected.sort();
        assert_eq!(got, expected, "{preset}");
    }

    #[test]
    fn llama_has_the_tensors_its_loader_reads() {
        expect(
            "tiny-llama",
            &[
                ("model.embed_tokens.weight", &[320, 128]),
                ("model.layers.0.self_attn.q_proj.weight", &[128, 128]),
                ("model.layers.0.self_attn.k_proj.weight", &[32, 128]),
                ("model.layers.0.self_attn.v_proj.weight", &[32, 128]),
                ("model.layers.0.self_attn.o_proj.weight", &[128, 128]),
                ("model.layers.0.mlp.gate_proj.weight", &[256, 128]),
                ("model.layers.0.mlp.up_proj.weight", &[256, 128]),
                ("model.layers.0.mlp.down_proj.weight", &[128, 256]),
                ("model.layers.0.input_layernorm.weight", &[128]),
                ("model.layers.0.post_attention_layernorm.weight", &[128]),
                ("model.norm.weight", &[128]),
                ("lm_head.weight", &[320, 128]),
            ],
        );
    }

    #[test]
    fn heads_wider_than_hidden_over_heads_give_matrices_that_are_not_square() {
        let nemo = first_layer("tiny-nemo");
        let shape = |name: &str| nemo.iter().find(|(n, _)| n.ends_with(name)).unwrap().1.clone();
        assert_eq!(shape("q_proj.weight"), [256, 128]);
        assert_eq!(shape("k_proj.weight"), [128, 128]);
        assert_eq!(shape("o_proj.weight"), [128, 256]);
    }

    #[test]
    fn gemma2_has_four_norms_a_layer_that_start_at_zero_and_no_output_matrix() {
        let spec = CheckpointSpec::preset("tiny-gemma2").unwrap();
        let tensors = tensors(&spec);
        let norms: Vec<&TensorSpec> = tensors.iter().filter(|tensor| tensor.shape.len() == 1).collect();
        assert_eq!(norms.len(), 4 * spec.layers + 1);
        assert!(norms.iter().all(|tensor| tensor.fill == Fill::Constant(0.0)));
        assert!(norms
            .iter()
            .any(|tensor| tensor.name == "model.layers.1.pre_feedforward_layernorm.weight"));
        assert!(tensors.iter().all(|tensor| tensor.name != "lm_head.weight"));
    }

    #[test]
    fn qwen3_norms_queries_and_keys_by_head() {
        let tensors = first_layer("tiny-qwen3");
        for name in ["q_norm", "k_norm"] {
            let name = format!("model.layers.0.self_attn.{name}.weight");
            assert!(tensors.contains(&(name, vec![32])));
        }
    }

    #[test]
    fn mixtral_has_a_gate_and_three_matrices_an_expert_instead_of_the_mlp() {
        let tensors = first_layer("tiny-mixtral");
        let moe = "model.layers.0.block_sparse_moe";
        assert!(tensors.contains(&(format!("{moe}.gate.weight"), vec![4, 128])));
        for expert in 0..4 {
            assert!(tensors.contains(&(format!("{moe}.experts.{expert}.w1.weight"), vec![256, 128])));
            assert!(tensors.contains(&(format!("{moe}.experts.{expert}.w2.weight"), vec![128, 256])));
            assert!(tensors.contains(&(format!("{moe}.experts.{expert}.w3.weight"), vec![256, 128])));
        }
        assert!(tensors.iter().all(|(name, _)| !name.contains(".mlp.")));
    }

    #[test]
    fn only_matrices_that_write_to_the_residual_stream_carry_outliers() {
        for preset in ["tiny-llama", "tiny-gemma2", "tiny-nemo", "tiny-qwen3", "tiny-mixtral"] {
            for tensor in tensors(&CheckpointSpec::preset(preset).unwrap()) {
                let writes = ["o_proj.weight", "down_proj.weight", "w2.weight"]
                    .iter()
                    .any(|end| tensor.name.ends_with(end));
                assert_eq!(matches!(tensor.fill, Fill::Residual { .. }), writes, "{}", tensor.name);
            }
        }
    }
}
