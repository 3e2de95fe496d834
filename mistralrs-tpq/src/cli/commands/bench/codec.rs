//! `tpq bench codec`.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use super::dtype;
use crate::bench::codec::{self, CodecRow};
use crate::cli::args::Global;
use crate::cli::{emit, CliError};
use crate::codec::CodecKind;
use crate::report::{Align, Table};

/// Time encoding and decoding beside a copy of the same bytes, in one thread
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq bench codec --dtype bf16 --json
  TPQ_KERNELS=scalar tpq bench codec   (or avx2, avx512, neon: the same bits by other instructions)
  tpq bench codec --device cuda --tokens 2048,1 --dtype bf16   (a build with the feature cuda)

All in input bytes a second. \"decode\" adds to f32 sums in memory; \"sum\" does what an exchange does: it adds two payloads up in
blocks that stay in the first-level cache and rounds them to the dtype, half of the time for each.

With --device cuda a line is one kernel: time of one launch under a graph, bytes read and written by that time, a copy on the
GPU of as many bytes beside it, and how many bytes or elements have other bits than the processor's; the exit code is then 1.")]
pub struct CodecArgs {
    /// Values of a row
    #[arg(long, value_name = "E", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(super) features: u32,
    /// Rows; several, separated by commas, with --device cuda only
    #[arg(long, value_name = "T", default_value = "2048", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(super) tokens: Vec<u32>,
    /// Where to measure: cpu, or cuda (a build with that feature)
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    /// With --device cuda, the GPU: its number among the visible ones
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) gpu: usize,
    /// With --device cuda, payloads that decoding adds up
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(super) ranks: u16,
    /// Element types, separated by commas
    #[arg(long, value_name = "LIST", default_value = "f32,bf16", value_delimiter = ',')]
    pub(super) dtype: Vec<String>,
    /// Seconds for each row
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,
}

pub(super) fn run(args: &CodecArgs, global: &Global) -> Result<u8, CliError> {
    if args.device != "cpu" {
        #[cfg(feature = "cuda")]
        return super::kernels::run(args, global);
        #[cfg(not(feature = "cuda"))]
        return Err(super::without_cuda());
    }
    let [tokens] = args.tokens[..] else {
        return Err(CliError::Usage("several --tokens need --device cuda".to_owned()));
    };
    let mut text = String::new();
    let mut rows: Vec<CodecRow> = Vec::new();
    for name in &args.dtype {
        for kind in CodecKind::ALL {
            let per_case = Duration::from_secs_f64(args.seconds.clamp(0.0, 3600.0));
            let row = codec::run(kind, dtype(name)?, tokens as usize, args.features as usize, per_case);
            // A codec that only exists for a calibrated model has nothing to measure here.
            let Ok(row) = row else { continue };
            if global.json {
                let _ = writeln!(text, "{}", serde_json::to_string(&row).map_err(anyhow::Error::from)?);
            }
            rows.push(row);
        }
    }
    let measured = || -> anyhow::Result<()> {
        ensure!(!rows.is_empty(), "nothing was measured");
        Ok(())
    };
    measured()?;
    if !global.json {
        let kernels = rows.first().map_or("", |row| row.kernels.as_str());
        text = format!("kernels: {kernels}\n{}", codec_table(&rows));
    }
    emit(&text)?;
    Ok(0)
}

fn codec_table(rows: &[CodecRow]) -> Table {
    let numbers = [
        "bits/value",
        "memcpy (GB/s)",
        "encode (GB/s)",
        "decode (GB/s)",
        "sum (GB/s)",
        "encode/memcpy",
        "decode/memcpy",
        "sum/memcpy",
    ];
    let right = numbers.map(|heading| (heading, Align::Right));
    let mut table = Table::new(
        [("dtype", Align::Left), ("codec", Align::Left)]
            .into_iter()
            .chain(right),
    );
    for row in rows {
        table.row([
            row.dtype.clone(),
            row.codec.clone(),
            format!("{:.4}", row.bits_per_value),
            format!("{:.2}", row.memcpy_gb_s),
            format!("{:.2}", row.encode_gb_s),
            format!("{:.2}", row.decode_gb_s),
            format!("{:.2}", row.sum_gb_s),
            format!("{:.2}", row.encode_vs_memcpy),
            format!("{:.2}", row.decode_vs_memcpy),
            format!("{:.2}", row.sum_vs_memcpy),
        ]);
    }
    table
}
