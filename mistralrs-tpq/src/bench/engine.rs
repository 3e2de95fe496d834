//! A real model under tensor parallelism: how long a prompt and each further token take, and how much of that is exchange.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{ensure, Result};
use mistralrs_core::Usage;
use serde::Serialize;

use super::quantile;
use crate::engine::{gathered_reports, Command, Driver, ModelOptions, Node};

#[derive(Debug, Clone)]
pub struct EngineCase {
    pub model: ModelOptions,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens written after the first.
    pub generate: usize,
    /// Measurements of each codec, of which the medians count.
    pub runs: usize,
}

/// One codec. Times are those of rank 0; the exchange's are the mean over the ranks, and include waiting for one another unless said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineRow {
    pub codec: String,
    pub ranks: usize,
    pub prompt_tokens: usize,
    pub generated_tokens: usize,
    pub runs: usize,
    /// From the request to the first token.
    pub ttft_ms: f64,
    pub ttft_ms_min: f64,
    pub ttft_ms_max: f64,
    pub prefill_tokens_per_s: f64,
    /// After the first token.
    pub decode_tokens_per_s: f64,
    pub prefill_exchange_ms: f64,
    pub prefill_exchange_share: f64,
    /// The same in a run of its own, in which the ranks meet before each exchange: without the waiting.
    pub prefill_exchange_met_ms: f64,
    /// Of one token.
    pub decode_exchange_ms: f64,
    pub decode_exchange_share: f64,
    /// Bytes that a rank sent for the prompt, headers included.
    pub prefill_bytes_per_rank: u64,
}

/// What one request took.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    seconds: f64,
    exchange_s: f64,
    bytes: u64,
}

/// One run of a codec: the prompt up to the first token, and one token after that.
struct Sample {
    prefill: Taken,
    met: Taken,
    token: Taken,
}

/// Measures on rank 0, lossless and as configured in turn. The other ranks follow and do not return. One process alone has
/// one row, without exchanges.
///
/// # Errors
/// What loading and running report, and a model that ends its text too soon to be measured.
pub fn run(case: &EngineCase, node: Option<&Arc<Node>>) -> Result<Vec<EngineRow>> {
    let driver = Driver::load(&case.model, node.cloned())?;
    // Any ids below the smallest vocabulary do: what the model makes of them takes the same time.
    let prompt: Vec<u32> = (0..case.prompt as u32).map(|i| 3 + i * 7 % 200).collect();
    let choices = match node {
        Some(node) if node.codec_name() != "none" => vec![Node::LOSSLESS, Node::CONFIGURED],
        _ => vec![Node::LOSSLESS],
    };
    let mut samples: Vec<Vec<Sample>> = choices.iter().map(|_| Vec::new()).collect();
    for run in 0..=case.runs {
        for (choice, samples) in choices.iter().zip(&mut samples) {
            let sample = measure(&driver, node, *choice, &prompt, case.generate)?;
            // The first of each pays for buffers and page faults.
            if run > 0 {
                samples.push(sample);
            }
        }
    }
    let name = |choice: &usize| match (node, *choice) {
        (Some(node), Node::CONFIGURED) => node.codec_name(),
        _ => "none",
    };
    let ranks = node.map_or(1, |node| node.world_size());
    let rows = choices.iter().zip(&samples);
    Ok(rows
        .map(|(choice, samples)| row(case, name(choice), ranks, samples))
        .collect())
}

/// The prompt with one token, then with `generate` more. Exchanges of a decoded token are those of the same after a prompt of one
/// token, as they are too small beside a long prompt's: at 7B's width these differed by more from run to run.
fn measure(
    driver: &Driver,
    node: Option<&Arc<Node>>,
    choice: usize,
    prompt: &[u32],
    generate: usize,
) -> Result<Sample> {
    if let Some(node) = node {
        node.command(&Command::Select(choice))?;
    }
    let (prefill, _) = timed(driver, node, choice, prompt, 1)?;
    let met = match node {
        Some(node) => {
            node.command(&Command::Meet(true))?;
            let (met, _) = timed(driver, Some(node), choice, prompt, 1)?;
            node.command(&Command::Meet(false))?;
            met
        }
        None => Taken::default(),
    };
    let usage = driver.generate(prompt, 1 + generate)?.usage;
    let short = &prompt[..prompt.len().min(1)];
    let (first, _) = timed(driver, node, choice, short, 1)?;
    let (all, short_usage) = timed(driver, node, choice, short, 1 + generate)?;
    let token = Taken {
        // The engine counts whole milliseconds.
        seconds: f64::from(usage.total_completion_time_sec).max(1e-3) / decoded(&usage)?,
        exchange_s: (all.exchange_s - first.exchange_s).max(0.0) / decoded(&short_usage)?,
        bytes: 0,
    };
    Ok(Sample { prefill, met, token })
}

/// Tokens after the first.
fn decoded(usage: &Usage) -> Result<f64> {
    let written = usage.completion_tokens;
    ensure!(
        written > 1,
        "the model ended its text after {written} tokens: nothing to measure after the first"
    );
    Ok((written - 1) as f64)
}

fn timed(
    driver: &Driver,
    node: Option<&Arc<Node>>,
    choice: usize,
    prompt: &[u32],
    count: usize,
) -> Result<(Taken, Usage)> {
    if let Some(node) = node {
        node.command(&Command::ResetReport)?;
    }
    let start = Instant::now();
    let usage = driver.generate(prompt, count)?.usage;
    let mut taken = Taken {
        seconds: start.elapsed().as_secs_f64(),
        ..Taken::default()
    };
    if let Some(node) = node {
        let reports = gathered_reports(node.gather(&Command::GatherReport { choice, logits: 0 })?)?;
        let ns: u64 = reports.iter().map(|r| r.encode_ns + r.wire_ns + r.decode_ns).sum();
        taken.exchange_s = ns as f64 / 1e9 / reports.len() as f64;
        taken.bytes = reports.iter().map(|report| report.bytes_sent).max().unwrap_or(0);
    }
    Ok((taken, usage))
}

fn row(case: &EngineCase, codec: &str, ranks: usize, samples: &[Sample]) -> EngineRow {
    let at = |share: f64, of: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(of).collect();
        quantile(&mut values, share)
    };
    let median = |of| at(0.5, of);
    let share = |exchange: f64, all: f64| if all > 0.0 { exchange / all } else { 0.0 };
    let (ttft, token) = (median(|s| s.prefill.seconds), median(|s| s.token.seconds));
    let (in_prefill, in_token) = (median(|s| s.prefill.exchange_s), median(|s| s.token.exchange_s));
    EngineRow {
        codec: codec.to_owned(),
        ranks,
        prompt_tokens: case.prompt,
        generated_tokens: case.generate,
        runs: samples.len(),
        ttft_ms: ttft * 1e3,
        ttft_ms_min: at(0.0, |s| s.prefill.seconds) * 1e3,
        ttft_ms_max: at(1.0, |s| s.prefill.seconds) * 1e3,
        prefill_tokens_per_s: case.prompt as f64 / ttft,
        decode_tokens_per_s: 1.0 / token,
        prefill_exchange_ms: in_prefill * 1e3,
        prefill_exchange_share: share(in_prefill, ttft),
        prefill_exchange_met_ms: median(|s| s.met.exchange_s) * 1e3,
        decode_exchange_ms: in_token * 1e3,
        decode_exchange_share: share(in_token, token),
        prefill_bytes_per_rank: samples.iter().map(|s| s.prefill.bytes).max().unwrap_or(0),
    }
}
