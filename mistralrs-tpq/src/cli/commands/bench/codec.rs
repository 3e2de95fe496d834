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
#[command(after_help = "Example:\n  tpq bench codec --dtype bf16 --json")]
pub struct CodecArgs {
    /// Values of a row
    #[arg(long, value_name = "E", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    features: u32,
    /// Rows
    #[arg(long, value_name = "T", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    tokens: u32,
    /// Element types, separated by commas
    #[arg(long, value_name = "LIST", default_value = "f32,bf16", value_delimiter = ',')]
    dtype: Vec<String>,
    /// Seconds for each row
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,
}

pub(super) fn run(args: &CodecArgs, global: &Global) -> Result<u8, CliError> {
    let mut text = String::new();
    let mut rows: Vec<CodecRow> = Vec::new();
    for name in &args.dtype {
        for kind in CodecKind::ALL {
            let per_case = Duration::from_secs_f64(args.seconds.clamp(0.0, 3600.0));
            let row = codec::run(
                kind,
                dtype(name)?,
                args.tokens as usize,
                args.features as usize,
                per_case,
            );
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
        text = codec_table(&rows).to_string();
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
        "encode/memcpy",
        "decode/memcpy",
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
            format!("{:.2}", row.encode_vs_memcpy),
            format!("{:.2}", row.decode_vs_memcpy),
        ]);
    }
    table
}
