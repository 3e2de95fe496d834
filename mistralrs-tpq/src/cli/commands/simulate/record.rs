//! `tpq simulate record`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::cli::args::Global;
use crate::cli::commands::group::{self, GroupArgs};
use crate::cli::progress::Progress;
use crate::cli::{emit, emit_json, CliError};
use crate::config::CodecPlan;
use crate::engine::ModelOptions;
use crate::simulate::RecordOptions;

/// Run a text through the model under tensor parallelism and keep every rank's partial sums
///
/// Every rank writes partial-sums.R-of-N.safetensors into --out: for each layer an F32 tensor [tokens, features], 4 bytes a value (the demo
/// model's 12 layers of 256 features, 512 tokens: 6 MB a rank).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq simulate record -n 4 -m examples/demo-model --text held-out.md --out sums/
  tpq simulate run sums/")]
pub struct RecordArgs {
    #[command(flatten)]
    group: GroupArgs,
    #[command(flatten)]
    model: ModelOptions,
    /// Text to run.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Folder to write to.
    #[arg(short, long, value_name = "DIR", default_value = "sums")]
    out: PathBuf,
    /// Tokens of a window.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// Tokens in all, in windows spread evenly over the text. To cut a sum into m parts, each half of them has to be more than m.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
}

pub(super) fn run(args: &RecordArgs, global: &Global) -> Result<u8, CliError> {
    if let Some(code) = args.group.launch(global)? {
        return Ok(code);
    }
    let mut plan = args.group.plan()?;
    plan.codec = CodecPlan::None;
    let node = crate::engine::install_plan(plan)?
        .context("one process has no partial sums: add -n 2, or list ranks in group.peers")?;
    node.record_to(&args.out, args.window as usize);
    let options = RecordOptions {
        model: args.model.clone(),
        text: args.text.clone(),
        window: args.window as usize,
        tokens: args.tokens as usize,
    };
    let mut progress = Progress::new("windows");
    let outcome = crate::simulate::record(&options, &node, |done, total| progress.set(done, total));
    let tokens = group::end(&node, outcome)?;
    let ranks = node.world_size();
    match global.json {
        true => emit_json(&serde_json::json!({ "out": args.out, "ranks": ranks, "tokens": tokens }))?,
        false => emit(&format!("{}: {tokens} tokens of {ranks} ranks\n", args.out.display()))?,
    }
    Ok(0)
}
