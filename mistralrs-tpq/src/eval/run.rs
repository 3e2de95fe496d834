//! Runs a text through the engine, per window once lossless and once with each codec, and compares.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use serde::Serialize;

use super::{windows, Comparison};
use crate::command::LayerError;
use crate::engine::{gathered_reports, Command, Driver, ModelOptions, Node, RankReport, SequenceLogits};

/// Points of [`EvalResult::kl_by_position`].
const POSITION_PARTS: usize = 16;

#[derive(Debug, Clone)]
pub struct EvalOptions {
    pub model: ModelOptions,
    pub text: PathBuf,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens in all, in windows spread evenly over the text.
    pub max_tokens: usize,
    /// Where to write the logits, as safetensors.
    pub dump_logits: Option<PathBuf>,
}

/// One row: one configuration on one text.
#[derive(Debug, Clone, Serialize)]
pub struct EvalResult {
    pub config: String,
    pub codec: String,
    pub text: String,
    pub ranks: usize,
    pub tokens: u64,
    pub bits_per_value: f64,
    pub ppl: f64,
    pub ppl_lossless: f64,
    pub ppl_quantized: f64,
    /// KL(lossless || quantized), nats a token.
    pub kl: f64,
    /// From the spread over windows; null for a single one.
    pub kl_stderr: Option<f64>,
    /// In 16 equal parts of the window, the first tokens first.
    pub kl_by_position: Vec<f64>,
    pub top1_agreement: f64,
    /// Signal over error of the single partial sums, all layers and ranks together.
    pub sqnr_db: f64,
    /// The same by layer, all ranks together; null without error.
    pub sqnr_db_by_layer: BTreeMap<String, f64>,
    /// Bytes that one rank wrote to its links, mean over the ranks.
    pub bytes_per_rank: u64,
    /// The same exchanges as a BF16 ring or two-shot all-reduce: 2(N-1)/N times 16 bits a value.
    pub bytes_per_rank_bf16: u64,
    /// Values farther from their dequantized copy than the codec's bound, all ranks. Not zero: a bug.
    pub out_of_bound: u64,
    pub clipped: u64,
    /// All ranks computed the same logits, to the bit.
    pub ranks_bit_identical: bool,
    pub seconds: f64,
}

/// Evaluates on rank 0. The other ranks follow and do not return.
///
/// # Errors
/// A text too short for one window, and what loading and running report.
pub fn run(
    options: &EvalOptions,
    node: Option<&Arc<Node>>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Vec<EvalResult>> {
    let started = Instant::now();
    let text = std::fs::read_to_string(&options.text)
        .with_context(|| format!("cannot read the text {}", options.text.display()))?;
    let driver = Driver::load(&options.model, node.cloned())?;
    let tokens = driver.tokenize(&text)?;
    let windows: Vec<&[u32]> = windows(tokens.len(), options.window, options.max_tokens)
        .into_iter()
        .map(|range| &tokens[range])
        .collect();
    ensure!(
        tokens.len() >= options.window.min(options.max_tokens) && !windows.is_empty(),
        "the text {} has {} tokens, expected at least {}",
        options.text.display(),
        tokens.len(),
        options.window
    );
    if let Some(node) = node {
        node.command(&Command::ResetReport)?;
        node.command(&Command::Verify(true))?;
    }
    let choices = compared(node);
    let mut comparisons = vec![Comparison::default(); choices.len()];
    let mut dump = BTreeMap::new();
    for (i, window) in windows.iter().enumerate() {
        let lossless = in_choice(&driver, node, Node::LOSSLESS, window)?;
        for (comparison, &choice) in comparisons.iter_mut().zip(&choices) {
            let quantized = match node {
                Some(_) => in_choice(&driver, node, choice, window)?,
                None => lossless.clone(),
            };
            comparison.add_window(window, lossless.vocab, &lossless.values, &quantized.values);
            if options.dump_logits.is_some() && choice == Node::CONFIGURED {
                dump.insert(format!("configured.{i:04}"), quantized);
            }
        }
        progress(i as u64 + 1, windows.len() as u64);
        if options.dump_logits.is_some() {
            dump.insert(format!("lossless.{i:04}"), lossless);
        }
    }
    if let Some(path) = &options.dump_logits {
        write_logits(path, &dump)?;
    }
    let runs = windows.len() * (choices.len() + 1);
    comparisons
        .iter()
        .zip(choices)
        .map(|(comparison, choice)| {
            let mut result = result_of(options, node, choice, comparison);
            if let Some(node) = node {
                fill_from_reports(&mut result, &reports(node, choice, runs)?)?;
            }
            result.seconds = started.elapsed().as_secs_f64();
            Ok(result)
        })
        .collect()
}

/// The codec choices that are compared with the lossless one.
fn compared(node: Option<&Arc<Node>>) -> Vec<usize> {
    let all = 0..node.map_or(1, |node| node.choices().len());
    all.filter(|choice| *choice != Node::LOSSLESS).collect()
}

/// What the logits say; the reports of the ranks fill in the rest.
fn result_of(options: &EvalOptions, node: Option<&Arc<Node>>, choice: usize, comparison: &Comparison) -> EvalResult {
    let config = match node {
        None => "single process".to_owned(),
        Some(node) if choice == Node::CONFIGURED => node.plan.origin.display().to_string(),
        Some(node) => node.choices()[choice].label.clone(),
    };
    EvalResult {
        config,
        codec: node.map_or("none", |node| node.choice_name(choice)).to_owned(),
        text: options.text.display().to_string(),
        ranks: node.map_or(1, |node| node.world_size()),
        tokens: comparison.positions,
        bits_per_value: 0.0,
        ppl: comparison.quantized.perplexity(),
        ppl_lossless: comparison.lossless.perplexity(),
        ppl_quantized: comparison.quantized.perplexity(),
        kl: comparison.mean_kl(),
        kl_stderr: Some(comparison.kl_stderr()).filter(|error| error.is_finite()),
        kl_by_position: comparison.kl_by_position(POSITION_PARTS),
        top1_agreement: comparison.top1_agreement(),
        sqnr_db: 0.0,
        sqnr_db_by_layer: BTreeMap::new(),
        bytes_per_rank: 0,
        bytes_per_rank_bf16: 0,
        out_of_bound: 0,
        clipped: 0,
        ranks_bit_identical: true,
        seconds: 0.0,
    }
}

fn in_choice(driver: &Driver, node: Option<&Arc<Node>>, choice: usize, window: &[u32]) -> Result<SequenceLogits> {
    if let Some(node) = node {
        node.command(&Command::Select(choice))?;
    }
    driver.logits(window)
}

fn reports(node: &Node, choice: usize, logits: usize) -> Result<Vec<RankReport>> {
    gathered_reports(node.gather(&Command::GatherReport { choice, logits })?)
}

fn fill_from_reports(result: &mut EvalResult, reports: &[RankReport]) -> Result<()> {
    let first = reports.first().context("no rank answered")?;
    result.bits_per_value = first.payload_bits as f64 / first.values as f64;
    let ranks = reports.len() as u64;
    result.bytes_per_rank = reports.iter().map(|report| report.bytes_sent).sum::<u64>() / ranks;
    result.bytes_per_rank_bf16 = first.bytes_sent_bf16;
    result.clipped = reports.iter().map(|report| report.clipped).sum();
    result.ranks_bit_identical = reports.iter().all(|report| report.logits_digest == first.logits_digest);
    let layers = || reports.iter().flat_map(|report| report.layers.values());
    result.out_of_bound = layers().map(|layer| layer.out_of_bound).sum();
    let signal: f64 = layers().map(|layer| layer.signal_energy).sum();
    let error: f64 = layers().map(|layer| layer.error_energy).sum();
    result.sqnr_db = 10.0 * (signal / error).log10();
    let mut by_layer: BTreeMap<&str, LayerError> = BTreeMap::new();
    for (name, error) in reports.iter().flat_map(|report| &report.layers) {
        let total = by_layer.entry(name).or_default();
        total.signal_energy += error.signal_energy;
        total.error_energy += error.error_energy;
    }
    let by_layer = by_layer
        .into_iter()
        .map(|(name, error)| (name.to_owned(), error.sqnr_db()));
    result.sqnr_db_by_layer = by_layer.collect();
    Ok(())
}

/// `{choice}.{window}` of `[tokens, vocab]` f32, and `tokens.{window}`.
fn write_logits(path: &std::path::Path, dump: &BTreeMap<String, SequenceLogits>) -> Result<()> {
    use safetensors::tensor::{Dtype, TensorView};
    let mut views = Vec::new();
    for (name, logits) in dump {
        let shape = vec![logits.tokens.len(), logits.vocab];
        views.push((
            name.clone(),
            TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(&logits.values))?,
        ));
    }
    let bytes = safetensors::serialize(views, None)?;
    std::fs::write(path, bytes).with_context(|| format!("cannot write logits to {}", path.display()))
}
