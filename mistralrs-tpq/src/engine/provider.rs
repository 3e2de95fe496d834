//! Rank, world size and reducers for the engine's loaders.

use std::sync::Arc;

use candle_core::{DType, Error, Result};
use mistralrs_quant::{AllReduce, AllReduceProvider, ModelInfo, ReduceSite};

use super::fingerprint::model_fingerprint;
use super::node::Node;
use super::reducer::SiteReducer;
use crate::codec::Dtype;

#[derive(Debug)]
pub(super) struct Provider {
    node: Arc<Node>,
}

impl Provider {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl AllReduceProvider for Provider {
    fn rank(&self) -> usize {
        self.node.rank()
    }

    fn world_size(&self) -> usize {
        self.node.world_size()
    }

    fn prepare(&self, model: &ModelInfo<'_>) -> Result<()> {
        let dtype = model_dtype(model.dtype)?;
        check_divisible(model.config, self.world_size())?;
        let fingerprint = model_fingerprint(model.config, model.weight_files).map_err(candle)?;
        self.node.connect(fingerprint, dtype).map_err(candle)
    }

    fn least(&self, value: usize) -> Result<usize> {
        let least = self.node.group().and_then(|group| group.least(value as u64));
        least.map(|least| least as usize).map_err(candle)
    }

    #[cfg(feature = "cuda")]
    fn graph_epoch(&self) -> Option<u64> {
        self.node.graph_epoch()
    }

    #[cfg(feature = "cuda")]
    fn graph_replayed(&self, rows: usize) -> Result<()> {
        self.node.graph_replayed(rows).map_err(candle)
    }

    fn reducer(&self, site: &ReduceSite) -> Result<Arc<dyn AllReduce>> {
        let site = if site.name.is_empty() {
            "unnamed".into()
        } else {
            site.name.clone()
        };
        let reducer = SiteReducer::new(self.node.clone(), site).map_err(candle)?;
        Ok(Arc::new(reducer))
    }
}

/// candle's error carries our whole chain, innermost cause last.
pub(super) fn candle(error: anyhow::Error) -> Error {
    Error::Msg(format!("{error:#}"))
}

fn model_dtype(dtype: DType) -> Result<Dtype> {
    match dtype {
        DType::F32 => Ok(Dtype::F32),
        DType::BF16 => Ok(Dtype::Bf16),
        DType::F16 => Ok(Dtype::F16),
        other => candle_core::bail!("tensor parallelism needs a model in f32, bf16 or f16, got {other:?}"),
    }
}

/// The engine cuts heads and features evenly and would fail later, with a shape and no reason.
fn check_divisible(config: &str, world_size: usize) -> Result<()> {
    let Ok(config) = serde_json::from_str::<serde_json::Value>(config) else {
        return Ok(());
    };
    let text = config.get("text_config").unwrap_or(&config);
    for key in ["num_attention_heads", "intermediate_size"] {
        if let Some(value) = text.get(key).and_then(serde_json::Value::as_u64) {
            if !value.is_multiple_of(world_size as u64) {
                candle_core::bail!(
                    "the model's {key} is {value}, which does not divide by {world_size} ranks: choose a world size that divides it"
                );
            }
        }
    }
    check_kv_heads(text, world_size as u64)
}

/// Fewer KV heads than ranks are replicated by the engine, if one divides the other; but it takes the head's width from
/// hidden_size / num_attention_heads then, also in models whose head_dim differs.
fn check_kv_heads(config: &serde_json::Value, ranks: u64) -> Result<()> {
    let number = |key: &str| config.get(key).and_then(serde_json::Value::as_u64);
    let Some(kv_heads) = number("num_key_value_heads") else {
        return Ok(());
    };
    if kv_heads == 0 || (!kv_heads.is_multiple_of(ranks) && !ranks.is_multiple_of(kv_heads)) {
        candle_core::bail!(
            "the model's num_key_value_heads is {kv_heads}, which neither divides nor is divided by {ranks} ranks: choose another world size"
        );
    }
    let width = number("hidden_size")
        .zip(number("num_attention_heads"))
        .and_then(|(hidden, heads)| hidden.checked_div(heads));
    match (number("head_dim"), width) {
        (Some(head_dim), Some(width)) if ranks > kv_heads && head_dim != width => candle_core::bail!(
            "the model has {kv_heads} KV heads of width {head_dim}, and engine 0.8.1 replicates KV heads only of width \
             hidden_size / num_attention_heads ({width}): use at most {kv_heads} ranks"
        ),
        _ => Ok(()),
    }
}
