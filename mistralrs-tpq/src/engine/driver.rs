//! Runs whole sequences through the real engine and takes their logits: calibration and evaluation.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use candle_core::{DType, Tensor};
use either::Either;
use mistralrs_core::{
    ModelSelected, NormalRequest, Request, RequestMessage, Response, SamplingParams, TokenSource, TokenizationRequest,
    Usage,
};
use mistralrs_server_core::mistralrs_for_server_builder::MistralRsForServerBuilder;
use mistralrs_server_core::types::SharedMistralRsState;
use tokio::runtime::Runtime;

use super::node::Node;

/// Which model, as the engine's own command line names it.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelOptions {
    /// Model: a folder with config.json, tokenizer.json and safetensors, or a Hugging Face repository.
    ///
    /// Example: --model examples/demo-model
    #[arg(short, long, value_name = "PATH|REPO")]
    pub model: String,

    /// Data type of weights and activations: auto, f32, bf16, f16. A manifest is valid for the type it was made with.
    #[arg(short, long, value_name = "TYPE", default_value = "auto")]
    pub dtype: String,

    /// Quantize the weights on loading, as the engine's --isq. Example: --isq q8_0
    #[arg(long, value_name = "TYPE")]
    pub isq: Option<String>,

    /// Use the CPU even where the engine was built for a GPU.
    #[arg(long)]
    pub cpu: bool,

    /// tokenizer.json to use instead of the model's own.
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
}

/// Logits of one sequence: `[tokens, vocab]`, row-major, f32.
#[derive(Debug, Clone)]
pub struct SequenceLogits {
    pub tokens: Vec<u32>,
    pub vocab: usize,
    pub values: Vec<f32>,
}

/// What the model wrote.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The likeliest at each place, which greedy sampling takes. Not from the text: the engine trims it, and it may split into other tokens.
    pub tokens: Vec<u32>,
    pub usage: Usage,
}

impl SequenceLogits {
    /// Logits after the token at `position`, over the vocabulary.
    pub fn row(&self, position: usize) -> &[f32] {
        &self.values[position * self.vocab..(position + 1) * self.vocab]
    }
}

/// The engine with a model, driven one sequence at a time.
pub struct Driver {
    engine: SharedMistralRsState,
    runtime: Runtime,
    node: Option<Arc<Node>>,
}

impl Driver {
    /// Loads the model. On a rank other than 0 this does not return: see [`install`](super::install).
    ///
    /// # Errors
    /// What the engine says of the model, and what the ranks say of each other.
    pub fn load(options: &ModelOptions, node: Option<Arc<Node>>) -> Result<Self> {
        let mut plain = serde_json::json!({ "model_id": options.model, "dtype": options.dtype });
        if let Some(tokenizer) = &options.tokenizer {
            plain["tokenizer_json"] = tokenizer.to_string_lossy().into_owned().into();
        }
        let selected: ModelSelected = serde_json::from_value(serde_json::json!({ "Plain": plain }))
            .with_context(|| format!("--dtype {}: expected auto, f32, bf16 or f16", options.dtype))?;
        let runtime = Runtime::new()?;
        let builder = MistralRsForServerBuilder::new()
            .with_model(selected)
            .with_max_seqs(1)
            .with_token_source(TokenSource::CacheToken)
            // Calibration and evaluation must not depend on what ran before.
            .with_prefix_cache_n(0)
            .with_in_situ_quant_optional(options.isq.clone())
            .with_interactive_mode(true)
            .with_cpu(options.cpu);
        let engine = runtime
            .block_on(builder.build())
            .with_context(|| format!("cannot load the model {}", options.model))?;
        Ok(Self { engine, runtime, node })
    }

    /// Token ids of `text`; `special` adds those that the tokenizer puts around a text, such as its beginning.
    ///
    /// # Errors
    /// A model without a tokenizer.
    pub fn tokenize(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let (response, mut answer) = tokio::sync::mpsc::channel(1);
        let request = Request::Tokenize(TokenizationRequest {
            text: Either::Right(text.to_owned()),
            tools: None,
            add_generation_prompt: false,
            add_special_tokens: special,
            enable_thinking: None,
            reasoning_effort: None,
            response,
        });
        self.send(request)?;
        self.runtime
            .block_on(answer.recv())
            .context("the engine dropped the tokenization request")?
    }

    /// Runs `tokens` as one prompt and returns the logits after each of them.
    ///
    /// # Errors
    /// A failed exchange, or a prompt that the model refuses.
    pub fn logits(&self, tokens: &[u32]) -> Result<SequenceLogits> {
        let Response::Raw { logits_chunks, .. } = self.ask(tokens, SamplingParams::deterministic(), true)? else {
            bail!("the engine answered a raw-logits request with something else");
        };
        let (values, vocab) = logits_rows(&logits_chunks)?;
        ensure!(
            values.len() == tokens.len() * vocab,
            "expected logits after each of {} tokens",
            tokens.len()
        );
        if let Some(node) = &self.node {
            node.log_logits(&values);
        }
        Ok(SequenceLogits {
            tokens: tokens.to_vec(),
            vocab,
            values,
        })
    }

    /// Runs `tokens` as one prompt and lets the model write up to `count` tokens; it stops early at its end-of-text token.
    ///
    /// # Errors
    /// A failed exchange, or a prompt that the model refuses.
    pub fn generate(&self, tokens: &[u32], count: usize) -> Result<Generated> {
        let sampling = SamplingParams {
            max_len: Some(count),
            top_n_logprobs: 1,
            ..SamplingParams::deterministic()
        };
        match self.ask(tokens, sampling, false)? {
            Response::CompletionDone(done) => {
                let logprobs = done.choices.into_iter().next().and_then(|choice| choice.logprobs);
                let content = logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
                let likeliest = content.iter().filter_map(|place| place.top_logprobs.first());
                Ok(Generated {
                    tokens: likeliest.map(|top| top.token).collect(),
                    usage: done.usage,
                })
            }
            _ => bail!("the engine answered a completion request with something else"),
        }
    }

    /// The engine's answer to one prompt, its refusals as errors.
    fn ask(&self, tokens: &[u32], sampling: SamplingParams, return_raw_logits: bool) -> Result<Response> {
        let (response, mut answer) = tokio::sync::mpsc::channel(16);
        let prompt = RequestMessage::CompletionTokens(tokens.to_vec());
        let mut request = NormalRequest::new_simple(prompt, sampling, response, 0, None, None);
        request.return_raw_logits = return_raw_logits;
        request.return_logprobs = !return_raw_logits;
        self.send(Request::Normal(Box::new(request)))?;
        let answer = self.runtime.block_on(answer.recv());
        match answer.context("the engine dropped the request")? {
            Response::ValidationError(error) | Response::InternalError(error) => bail!("the engine refused: {error}"),
            Response::ModelError(error, _) | Response::CompletionModelError(error, _) => bail!("{error}"),
            answer => Ok(answer),
        }
    }

    fn send(&self, request: Request) -> Result<()> {
        let sender = self
            .engine
            .get_sender(None)
            .map_err(|error| anyhow::anyhow!("the engine is gone: {error}"))?;
        self.runtime
            .block_on(sender.send(request))
            .map_err(|_| anyhow::anyhow!("the engine has stopped"))
    }
}

/// Rows of raw logits in f32, and the vocabulary size.
pub(super) fn logits_rows(chunks: &[Tensor]) -> Result<(Vec<f32>, usize)> {
    let mut values = Vec::new();
    let mut vocab = 0;
    for chunk in chunks {
        vocab = chunk.dims().last().copied().context("logits without a dimension")?;
        values.extend(chunk.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?);
    }
    Ok((values, vocab))
}
