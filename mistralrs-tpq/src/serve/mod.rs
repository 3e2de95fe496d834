//! `mistralrs-server`: the flags of the engine's old server binary, on its server core, plus `--tpq-config`.

mod args;
mod drift;
mod http;
mod metrics;

use std::sync::Arc;

use anyhow::{bail, Context, Result};
use mistralrs_core::{McpClientConfig, ModelSelected};
use mistralrs_server_core::mistralrs_for_server_builder::{configure_paged_attn_from_flags, MistralRsForServerBuilder};
use mistralrs_server_core::types::SharedMistralRsState;

pub use args::ServerArgs;
pub use http::{behind_front, stop_signal};

use crate::engine::Node;

/// Installs tpq, loads the model and serves until a signal. Ranks other than 0 end inside.
///
/// # Errors
/// Configuration, topology, model and socket errors, each naming its file, key, peer or address.
pub async fn run(args: ServerArgs) -> Result<()> {
    let port = args
        .port
        .context("--port is missing: give the port to serve HTTP on, such as --port 1234")?;
    if args.mcp_port.is_some() {
        bail!("--mcp-port is not supported by this server: the engine's MCP server is not part of its libraries");
    }
    let node = match &args.tpq_config {
        Some(config) => crate::engine::install(config)?,
        None => None,
    };
    let serves = node.as_ref().is_none_or(|node| node.rank() == 0);
    if !serves {
        http::outlast_rank_0();
    }
    // Bound before the model is loaded: a port in use shows at once, not after minutes.
    let listener = if serves {
        Some(http::bind(&args.serve_ip, port).await?)
    } else {
        None
    };
    let engine = load(args).await?;
    let listener = listener.context("a rank other than 0 came back from the engine")?;
    http::serve(listener, engine, node).await
}

async fn load(args: ServerArgs) -> Result<SharedMistralRsState> {
    if matches!(args.model, ModelSelected::MultiModel { .. }) {
        bail!("multi-model is not supported by this server: one model per group of ranks");
    }
    let mcp_config = mcp_config(args.mcp_config.as_deref())?;
    let mut builder = MistralRsForServerBuilder::new()
        .with_model(args.model)
        .with_max_seqs(args.max_seqs)
        .with_no_kv_cache(args.no_kv_cache)
        .with_token_source(args.token_source)
        .with_prefix_cache_n(args.prefix_cache_n)
        .set_paged_attn(configure_paged_attn_from_flags(args.paged_attn, args.no_paged_attn)?)
        .with_cpu(args.cpu)
        .with_enable_search(args.enable_search)
        .with_seed_optional(args.seed)
        .with_log_optional(args.log)
        .with_chat_template_optional(args.chat_template)
        .with_jinja_explicit_optional(args.jinja_explicit)
        .with_num_device_layers_optional(args.num_device_layers)
        .with_in_situ_quant_optional(args.in_situ_quant)
        .with_paged_attn_gpu_mem_optional(args.paged_attn_gpu_mem)
        .with_paged_attn_gpu_mem_usage_optional(args.paged_attn_gpu_mem_usage)
        .with_paged_ctxt_len_optional(args.paged_ctxt_len)
        .with_paged_attn_block_size_optional(args.paged_attn_block_size)
        .with_mcp_config_optional(mcp_config)
        .with_paged_attn_cache_type(args.cache_type.unwrap_or_default());
    if let Some(model) = args.search_embedding_model {
        builder = builder.with_search_embedding_model(model);
    }
    builder.build().await
}

/// From `--mcp-config`, else from the variable that the old server read.
fn mcp_config(flag: Option<&str>) -> Result<Option<McpClientConfig>> {
    let Some(path) = flag
        .map(str::to_owned)
        .or_else(|| std::env::var("MCP_CONFIG_PATH").ok())
    else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read --mcp-config {path}"))?;
    let config = serde_json::from_str(&text).with_context(|| format!("--mcp-config {path} is not valid"))?;
    Ok(Some(config))
}

/// What `/health` says: an error while the group cannot serve.
pub(crate) fn health(node: Option<&Arc<Node>>) -> Result<(), String> {
    node.map_or(Ok(()), |node| node.health())
}
