//! `tpq eval`: what the exchange costs in quality, on the real engine.

use std::path::PathBuf;

use anyhow::{ensure, Context, Result};
use clap::Args;

use super::group::{self, GroupArgs};
use crate::cli::args::Global;
use crate::cli::progress::Progress;
use crate::cli::{emit, CliError};
use crate::config::{CodecPlan, Control, Plan};
use crate::engine::ModelOptions;
use crate::eval::{EvalOptions, EvalResult};
use crate::report::{Align, Table};

/// Compare the configured exchange with the lossless one on a text: perplexity, KL, agreement, bytes
///
/// Each window of the text runs twice through the engine under tensor parallelism, lossless and as configured.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq eval --config tpq.yaml -n 2 -m examples/demo-model --text held-out.md
  tpq eval --config paper.yaml --also balanced.yaml -n 4 -m examples/demo-model --text held-out.md
  tpq eval -m examples/demo-model --text held-out.md     (one process: perplexity only)

With --json there is one object a line for each configuration: config, codec, text, ranks, tokens, bits_per_value, ppl, ppl_lossless,
ppl_quantized, kl (nats a token), kl_stderr, kl_by_position (sixteenths of the window), top1_agreement, sqnr_db, sqnr_db_by_layer, bytes_per_rank, bytes_per_rank_bf16, out_of_bound, clipped,
ranks_bit_identical, seconds.")]
pub struct EvalArgs {
    #[command(flatten)]
    group: GroupArgs,
    #[command(flatten)]
    model: ModelOptions,
    /// Compare this configuration's codec too, in the same run. Repeatable; only its `codec` section counts.
    ///
    /// Example: --config paper.yaml --also balanced.yaml dynamic.yaml
    #[arg(long, num_args = 1.., value_name = "FILE")]
    also: Vec<PathBuf>,
    /// Compare `paper`'s negative controls too: no outliers, random ones, those with the smallest range. With the manifest of
    /// --config. Where they do as well as `paper`, its choice of outliers is worth nothing on this model.
    #[arg(long)]
    controls: bool,
    /// Text to evaluate on; held out from calibration, or the figures flatter.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a window; each window is scored on its own.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// Tokens to use of the text, in windows spread evenly over it.
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(2..))]
    max_tokens: u32,
    /// Also write a page with the results and plots: one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Also write all logits, as safetensors: lossless.0000, configured.0000, ... of [tokens, vocabulary] f32.
    #[arg(long, value_name = "FILE")]
    dump_logits: Option<PathBuf>,
}

pub(crate) fn run(args: &EvalArgs, global: &Global) -> Result<u8, CliError> {
    if let Some(code) = args.group.launch(global)? {
        return Ok(code);
    }
    // One process compares nothing, so a configuration is not needed.
    let node = if args.group.alone() {
        None
    } else {
        let mut plan = args.group.plan()?;
        plan.alternatives = alternatives(args, &plan)?;
        crate::engine::install_plan(plan)?
    };
    let options = EvalOptions {
        model: args.model.clone(),
        text: args.text.clone(),
        window: args.window as usize,
        max_tokens: args.max_tokens as usize,
        dump_logits: args.dump_logits.clone(),
    };
    let mut progress = Progress::new("windows");
    let outcome = crate::eval::run(&options, node.as_ref(), |done, total| {
        progress.set(done as usize, total as usize)
    })
    .and_then(check);
    let results = match &node {
        Some(node) => group::end(node, outcome)?,
        None => outcome?,
    };
    if let Some(path) = &args.html {
        let page = crate::eval::page(&results)?;
        std::fs::write(path, page).map_err(|error| CliError::io("cannot write the page of --html", error))?;
    }
    match global.json {
        true => {
            for result in &results {
                emit(&(serde_json::to_string(result).map_err(anyhow::Error::from)? + "\n"))?;
            }
        }
        false => results.iter().try_for_each(|result| emit(&table(result)))?,
    }
    Ok(0)
}

fn alternatives(args: &EvalArgs, plan: &Plan) -> Result<Vec<(String, CodecPlan)>, CliError> {
    let mut alternatives = Vec::new();
    for path in &args.also {
        alternatives.push((path.display().to_string(), Plan::load(path)?.codec));
    }
    if args.controls {
        let manifest = plan
            .codec
            .manifest()
            .context("--controls needs a manifest: name a configuration of kind paper or rd with --config")?;
        alternatives.extend(Control::ALL.map(|control| {
            let manifest = manifest.to_owned();
            (
                format!("paper, {}", control.name()),
                CodecPlan::Control { manifest, control },
            )
        }));
    }
    Ok(alternatives)
}

/// Figures of ranks that disagree, or of a codec outside its own bound, mean nothing.
fn check(results: Vec<EvalResult>) -> Result<Vec<EvalResult>> {
    results.iter().try_for_each(check_one)?;
    Ok(results)
}

fn check_one(result: &EvalResult) -> Result<()> {
    ensure!(
        result.ranks_bit_identical,
        "the ranks computed different logits: this is a defect, please report it"
    );
    ensure!(
        result.out_of_bound == 0,
        "{} values are farther from their dequantized copy than the codec allows: this is a defect, please report it",
        result.out_of_bound
    );
    Ok(())
}

fn table(result: &EvalResult) -> String {
    let mut table = Table::new([
        ("", Align::Left),
        ("lossless", Align::Right),
        (result.codec.as_str(), Align::Right),
    ]);
    table.row([
        "perplexity".to_owned(),
        format!("{:.4}", result.ppl_lossless),
        format!("{:.4}", result.ppl_quantized),
    ]);
    table.row([
        "KL, nats a token".to_owned(),
        "0".to_owned(),
        format!("{:.5}", result.kl),
    ]);
    table.row([
        "top-1 agreement".to_owned(),
        "100%".to_owned(),
        format!("{:.2}%", result.top1_agreement * 100.0),
    ]);
    if result.ranks > 1 {
        table.row([
            "bits a value".to_owned(),
            "16 (BF16)".to_owned(),
            format!("{:.4}", result.bits_per_value),
        ]);
        let bytes = |bytes: u64| format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20));
        table.row([
            "sent by a rank".to_owned(),
            bytes(result.bytes_per_rank_bf16),
            bytes(result.bytes_per_rank),
        ]);
        table.row([
            "SQNR of a partial sum".to_owned(),
            "-".to_owned(),
            format!("{:.1} dB", result.sqnr_db),
        ]);
    }
    let how = match result.ranks {
        1 => "one process".to_owned(),
        ranks => format!("{ranks} ranks, bit-identical"),
    };
    format!(
        "{table}{} tokens of {}, {how}, {:.0} s\n",
        result.tokens, result.text, result.seconds
    )
}
