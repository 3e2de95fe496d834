//! `tpq calibrate`: observe partial sums on the real engine, write a manifest.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::group::GroupArgs;
use crate::calibrate::{CalibrateOptions, Selection};
use crate::cli::args::Global;
use crate::cli::progress::Progress;
use crate::cli::{emit, emit_json, CliError};
use crate::config::CodecPlan;
use crate::engine::ModelOptions;

/// Learn the ranges of a model's partial sums and write manifest.yaml with its scales and curves
///
/// Runs the model under tensor parallelism, because a range belongs to one rank's part of a layer: calibrate with as many
/// ranks as will serve, and with the same --dtype. Every rank keeps an EMA of each feature's range over the sequences; the
/// features with the largest range summed over the ranks become outliers (arXiv 2411.07942).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq calibrate -n 2 -m examples/demo-model --corpus README.md --out manifest/
  tpq calibrate --config tpq.yaml -m ./Llama-2-13b --corpus wiki.train.tokens --out manifest/
The second form runs on every host, with TPQ_RANK set; rank 0 writes.")]
pub struct CalibrateArgs {
    #[command(flatten)]
    group: GroupArgs,
    #[command(flatten)]
    model: ModelOptions,
    /// Calibration text: plain text, Markdown, source, WikiText, or .jsonl with a `text` field. Repeatable: each file gives as many sequences as
    /// the others, in turn, so name one for each domain that will be served.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    corpus: Vec<PathBuf>,
    /// Folder to write to.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Sequences to run [default: calibration.sequences of the configuration, else 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    sequences: Option<u64>,
    /// Tokens of a sequence [default: calibration.tokens, else 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    tokens: Option<u64>,
    /// Which windows of the text are drawn [default: calibration.seed, else 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How outliers are chosen. `random` and `smallest` are controls: they should do worse than `largest`.
    #[arg(long, value_enum, default_value_t = Select::Largest)]
    select: Select,
    /// Also measure how much each layer's noise moves the logits, on this many of the sequences, for `codec.budget_scope: model`. Takes as many passes for each
    /// layer: 4 are enough to rank layers. [default: none]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    sensitivity: u16,
    /// Continue an interrupted run from the state it left in --out.
    #[arg(long)]
    resume: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Select {
    Largest,
    Random,
    Smallest,
}

pub(crate) fn run(args: &CalibrateArgs, global: &Global) -> Result<u8, CliError> {
    if let Some(code) = args.group.launch(global)? {
        return Ok(code);
    }
    calibrate(args, global)?;
    Ok(0)
}

fn calibrate(args: &CalibrateArgs, global: &Global) -> Result<(), CliError> {
    let started = Instant::now();
    let mut plan = args.group.plan()?;
    plan.codec = CodecPlan::None;
    if args.sensitivity > 0 {
        // Needs no calibration, which is what is being made.
        plan.alternatives = vec![("probe".to_owned(), CodecPlan::Dynamic)];
    }
    let calibration = &mut plan.calibration;
    calibration.sequences = args.sequences.unwrap_or(calibration.sequences);
    calibration.tokens = args.tokens.unwrap_or(calibration.tokens);
    calibration.seed = args.seed.unwrap_or(calibration.seed);
    let selection = match args.select {
        Select::Largest => Selection::Largest,
        Select::Random => Selection::Random { seed: calibration.seed },
        Select::Smallest => Selection::Smallest,
    };
    let node = crate::engine::install_plan(plan)?
        .context("calibration needs two or more ranks: add -n 2, or list them in group.peers")?;
    let options = CalibrateOptions {
        model: args.model.clone(),
        corpus: args.corpus.clone(),
        out: args.out.clone(),
        selection,
        resume: args.resume,
        sensitivity: usize::from(args.sensitivity),
    };
    let mut progress = Progress::new("calibration sequences");
    let outcome = crate::calibrate::run(&options, &node, |done, total| progress.set(done, total));
    let calibrated = super::group::end(&node, outcome)?;
    let header = calibrated.manifest.header();
    let layers = calibrated.manifest.layers();
    let outliers: usize = layers.iter().map(|layer| layer.outliers().len()).sum();
    let seconds = started.elapsed().as_secs_f64();
    if global.json {
        return emit_json(&serde_json::json!({
            "manifest": calibrated.path,
            "digest": calibrated.manifest.digest().to_string(),
            "ranks": header.world_size,
            "layers": layers.len(),
            "outliers": outliers,
            "sequences": header.sequences,
            "tokens": header.tokens,
            "resumed_at": calibrated.resumed_at,
            "seconds": seconds,
        }));
    }
    emit(&format!(
        "{}: {} layers, {outliers} outlier features, {} ranks, {} sequences of {} tokens in {seconds:.0} s\n",
        calibrated.path.display(),
        layers.len(),
        header.world_size,
        header.sequences,
        header.tokens,
    ))
}
