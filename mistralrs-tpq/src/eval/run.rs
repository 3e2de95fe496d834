//! Runs texts through the engine, per window once lossless and once with each codec, and compares.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::greedy::{self, Greedy};
use super::session::{read_text, windows_of, write_logits, Session};
use super::Comparison;
use crate::command::LayerError;
use crate::engine::{Node, RankReport};

/// Points of [`EvalResult::kl_by_position`].
const POSITION_PARTS: usize = 16;

#[derive(Debug, Clone)]
pub struct TextOptions {
    /// Tokens of a window.
    pub window: usize,
    /// Tokens in all, in windows spread evenly over the text.
    pub max_tokens: usize,
    /// Where to write the logits, as safetensors.
    pub dump_logits: Option<PathBuf>,
    /// Continuations whose divergence is measured; 0: none.
    pub greedy: usize,
}

/// One row: one configuration on one text.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// Of each window, to compare configurations window by window.
    pub kl_by_window: Vec<f64>,
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
    /// How long greedy text stays the same; null without --greedy.
    pub greedy: Option<Greedy>,
    pub seconds: f64,
}

impl Session<'_> {
    /// One row for each configuration that is compared.
    ///
    /// # Errors
    /// A text too short for one window, and what running reports.
    pub fn text(
        &mut self,
        path: &Path,
        options: &TextOptions,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<EvalResult>> {
        let started = Instant::now();
        let text = read_text(path)?;
        let windows = windows_of(&self.driver, path, &text, options.window, options.max_tokens)?;
        self.reset()?;
        let choices = self.compared();
        let mut comparisons = vec![Comparison::default(); choices.len()];
        let mut dump = BTreeMap::new();
        for (i, window) in windows.iter().enumerate() {
            let lossless = self.logits(Node::LOSSLESS, window)?;
            for (comparison, &choice) in comparisons.iter_mut().zip(&choices) {
                let quantized = match self.ranks() {
                    1 => lossless.clone(),
                    _ => self.logits(choice, window)?,
                };
                comparison.add_window(window, lossless.vocab, &lossless.values, &quantized.values);
                if options.dump_logits.is_some() && choice == Node::CONFIGURED {
                    dump.insert(format!("configured.{i:04}"), quantized);
                }
            }
            progress(i + 1, windows.len());
            if options.dump_logits.is_some() {
                dump.insert(format!("lossless.{i:04}"), lossless);
            }
        }
        if let Some(path) = &options.dump_logits {
            write_logits(path, &dump)?;
        }
        let mut results = Vec::with_capacity(choices.len());
        for (comparison, &choice) in comparisons.iter().zip(&choices) {
            let mut result = self.result_of(path, choice, comparison);
            fill_from_reports(&mut result, &self.reports(choice)?);
            results.push(result);
        }
        let lengths = greedy::lengths(self, &windows, options.greedy, &choices)?;
        // The other ranks have then seen every answer, and none counts with the next text.
        self.reports(Node::CONFIGURED)?;
        for (result, greedy) in results.iter_mut().zip(lengths) {
            result.greedy = greedy;
            result.seconds = started.elapsed().as_secs_f64();
        }
        Ok(results)
    }

    /// What the logits say; the reports of the ranks fill in the rest.
    fn result_of(&self, path: &Path, choice: usize, comparison: &Comparison) -> EvalResult {
        EvalResult {
            config: self.config(choice),
            codec: self.codec(choice).to_owned(),
            text: path.display().to_string(),
            ranks: self.ranks(),
            tokens: comparison.positions,
            bits_per_value: 0.0,
            ppl: comparison.quantized.perplexity(),
            ppl_lossless: comparison.lossless.perplexity(),
            ppl_quantized: comparison.quantized.perplexity(),
            kl: comparison.mean_kl(),
            kl_stderr: Some(comparison.kl_stderr()).filter(|error| error.is_finite()),
            kl_by_window: comparison.window_kl.clone(),
            kl_by_position: comparison.kl_by_position(POSITION_PARTS),
            top1_agreement: comparison.top1_agreement(),
            sqnr_db: 0.0,
            sqnr_db_by_layer: BTreeMap::new(),
            bytes_per_rank: 0,
            bytes_per_rank_bf16: 0,
            out_of_bound: 0,
            clipped: 0,
            ranks_bit_identical: true,
            greedy: None,
            seconds: 0.0,
        }
    }
}

fn fill_from_reports(result: &mut EvalResult, reports: &[RankReport]) {
    let Some(first) = reports.first() else { return };
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
}
