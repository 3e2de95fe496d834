//! Command line of `mistralrs-server`.

use std::path::PathBuf;

use clap::Parser;
use mistralrs_core::{ModelSelected, PagedCacheType, SearchEmbeddingModel, TokenSource};
use mistralrs_server_core::mistralrs_for_server_builder::defaults;

/// mistral.rs's HTTP server (OpenAI API) with tensor parallelism over ordinary links.
///
/// Two ranks on one host:
///   tpq launch -n 2 -- mistralrs-server --tpq-config tpq.yaml --port 1234 plain -m examples/demo-model
///
/// One rank per host: the same command on each, with TPQ_RANK set and `group.peers` in tpq.yaml.
#[derive(Debug, Parser)]
#[command(name = "mistralrs-server", version, verbatim_doc_comment)]
pub struct ServerArgs {
    /// tpq configuration (YAML). Without it the server runs as one process, as upstream does.
    ///
    /// Example: --tpq-config configs/tpq.yaml
    #[arg(long, value_name = "FILE", env = "MISTRALRS_TPQ_CONFIG")]
    pub tpq_config: Option<PathBuf>,

    /// Address to serve HTTP on. The API has no authentication: open it to other hosts (0.0.0.0) behind a proxy that has.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub serve_ip: String,

    /// Seed of the random numbers that sampling draws.
    #[arg(short, long)]
    pub seed: Option<u64>,

    /// Port to serve HTTP on, on rank 0. Example: --port 1234
    #[arg(short, long)]
    pub port: Option<u16>,

    /// Write all requests and responses to this file. It will hold prompts.
    #[arg(long, short, value_name = "FILE")]
    pub log: Option<String>,

    /// Which model.
    #[command(subcommand)]
    pub model: ModelSelected,

    /// Most sequences that run at a time; further ones wait.
    #[arg(long, default_value_t = defaults::MAX_SEQS)]
    pub max_seqs: usize,

    /// Keep no KV cache.
    #[arg(long)]
    pub no_kv_cache: bool,

    /// Chat template: a .json or .jinja file, or the template itself.
    #[arg(short, long)]
    pub chat_template: Option<String>,

    /// .jinja chat template that overrides all others.
    #[arg(short, long, value_name = "FILE")]
    pub jinja_explicit: Option<String>,

    /// Hugging Face token: `literal:VALUE`, `env:NAME`, `path:FILE`, `cache` or `none`.
    #[arg(long, default_value_t = defaults::TOKEN_SOURCE, value_parser = parse_token_source)]
    pub token_source: TokenSource,

    /// Prefixes to keep cached.
    #[arg(long, default_value_t = defaults::PREFIX_CACHE_N)]
    pub prefix_cache_n: usize,

    /// Layers to load on the GPU(s): a number, or ORD:NUM;... Not used under tensor parallelism.
    #[arg(short, long, value_delimiter = ';')]
    pub num_device_layers: Option<Vec<String>>,

    /// Quantize the weights on loading. Example: --isq q4k
    #[arg(long = "isq", value_name = "TYPE")]
    pub in_situ_quant: Option<String>,

    /// GPU memory for the paged KV cache, in MB.
    #[arg(long = "pa-gpu-mem", value_name = "MB")]
    pub paged_attn_gpu_mem: Option<usize>,

    /// Share of the GPU memory for the paged KV cache, 0 to 1.
    #[arg(long = "pa-gpu-mem-usage", value_name = "SHARE")]
    pub paged_attn_gpu_mem_usage: Option<f32>,

    /// Tokens that the paged KV cache holds. Takes precedence over the two above.
    #[arg(long = "pa-ctxt-len", value_name = "TOKENS")]
    pub paged_ctxt_len: Option<usize>,

    /// Type of the paged KV cache: auto or f8e4m3.
    #[arg(long = "pa-cache-type", value_parser = parse_cache_type)]
    pub cache_type: Option<PagedCacheType>,

    /// Tokens in a block of the paged KV cache.
    #[arg(long = "pa-blk-size", value_name = "TOKENS")]
    pub paged_attn_block_size: Option<usize>,

    /// No paged attention (on CUDA, where it is on by default).
    #[arg(long, conflicts_with = "paged_attn")]
    pub no_paged_attn: bool,

    /// Paged attention (on Metal, where it is off by default).
    #[arg(long, conflicts_with_all = ["no_paged_attn", "cpu"])]
    pub paged_attn: bool,

    /// Use the CPU only.
    #[arg(long)]
    pub cpu: bool,

    /// Serve `web_search_options`.
    #[arg(long)]
    pub enable_search: bool,

    /// Model that ranks search results.
    #[arg(long)]
    pub search_embedding_model: Option<SearchEmbeddingModel>,

    /// Port for MCP. Not supported.
    #[arg(long, hide = true)]
    pub mcp_port: Option<u16>,

    /// MCP client configuration (JSON). Also read from MCP_CONFIG_PATH.
    #[arg(long, value_name = "FILE")]
    pub mcp_config: Option<String>,
}

fn parse_token_source(text: &str) -> Result<TokenSource, String> {
    text.parse()
}

fn parse_cache_type(text: &str) -> Result<PagedCacheType, String> {
    text.parse()
}
