//! `tpq bench engine`.

use std::fmt::Write as _;

use clap::Args;

use super::super::group::{self, GroupArgs};
use crate::bench::engine::{self, EngineCase, EngineRow};
use crate::cli::args::Global;
use crate::cli::{emit, CliError};
use crate::engine::ModelOptions;
use crate::report::{Align, Table};

/// Time a real model under tensor parallelism: first token, further tokens, and the share of the exchange
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq make-model --preset llama-2-7b-4l --out model
  tpq bench engine --config tpq.yaml -n 2 -m model          (two ranks on this host)
  TPQ_RANK=0 TPQ_PEERS=10.0.0.1:7700,10.0.0.2:7700 tpq bench engine --config tpq.yaml -m model   (the same on each host)
  tpq bench engine -m model                                 (one process, no exchange)

Lossless and configured codec take turns; medians. Times are of rank 0, those of the exchange the mean over the ranks, waiting
for one another included; \"without waits\" are those of a further run, in which the ranks meet before each exchange. With
--json a line is one codec: codec, ranks, prompt_tokens, generated_tokens, runs, ttft_ms, ttft_ms_min, ttft_ms_max,
prefill_tokens_per_s, decode_tokens_per_s, prefill_exchange_ms, prefill_exchange_share, prefill_exchange_met_ms (without waits),
decode_exchange_ms (of one token, after a prompt of one), decode_exchange_share, prefill_bytes_per_rank.")]
pub struct EngineArgs {
    #[command(flatten)]
    group: GroupArgs,
    #[command(flatten)]
    model: ModelOptions,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    prompt: u32,
    /// Tokens to write after the first
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    generate: u32,
    /// Measurements of each codec, after one that does not count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
}

pub(super) fn run(args: &EngineArgs, global: &Global) -> Result<u8, CliError> {
    if let Some(code) = args.group.launch(global)? {
        return Ok(code);
    }
    let node = match args.group.alone() {
        true => None,
        false => crate::engine::install_plan(args.group.plan()?)?,
    };
    let case = EngineCase {
        model: args.model.clone(),
        prompt: args.prompt as usize,
        generate: args.generate as usize,
        runs: args.runs as usize,
    };
    let outcome = engine::run(&case, node.as_ref());
    let rows = match &node {
        Some(node) => group::end(node, outcome)?,
        None => outcome?,
    };
    let mut text = String::new();
    match global.json {
        true => {
            for row in &rows {
                let _ = writeln!(text, "{}", serde_json::to_string(row).map_err(anyhow::Error::from)?);
            }
        }
        false => text = table(&rows).to_string(),
    }
    emit(&text)?;
    Ok(0)
}

fn table(rows: &[EngineRow]) -> Table {
    let numbers = [
        "TTFT (ms)",
        "min..max",
        "prefill (tok/s)",
        "decode (tok/s)",
        "exchange in prefill (ms)",
        "share",
        "without waits (ms)",
        "exchange of a token (ms)",
        "share",
        "sent by a rank (MiB)",
    ];
    let right = numbers.map(|heading| (heading, Align::Right));
    let mut table = Table::new([("codec", Align::Left)].into_iter().chain(right));
    for row in rows {
        table.row([
            row.codec.clone(),
            format!("{:.0}", row.ttft_ms),
            format!("{:.0}..{:.0}", row.ttft_ms_min, row.ttft_ms_max),
            format!("{:.1}", row.prefill_tokens_per_s),
            format!("{:.2}", row.decode_tokens_per_s),
            format!("{:.1}", row.prefill_exchange_ms),
            format!("{:.1}%", row.prefill_exchange_share * 100.0),
            format!("{:.1}", row.prefill_exchange_met_ms),
            format!("{:.2}", row.decode_exchange_ms),
            format!("{:.1}%", row.decode_exchange_share * 100.0),
            format!("{:.2}", row.prefill_bytes_per_rank as f64 / f64::from(1 << 20)),
        ]);
    }
    table
}
