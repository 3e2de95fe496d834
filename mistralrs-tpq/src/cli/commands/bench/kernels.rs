//! `tpq bench codec --device cuda`.

use std::fmt::Write as _;

use super::codec::CodecArgs;
use super::dtype;
use crate::cli::args::Global;
use crate::cli::{emit, CliError};
use crate::codec::CodecKind;
use crate::cuda::measure::{self, KernelCase, KernelRow};
use crate::cuda::{Device, DeviceCodec};
use crate::report::{Align, Table};

pub(super) fn run(args: &CodecArgs, global: &Global) -> Result<u8, CliError> {
    let device = Device::new(args.gpu).map_err(anyhow::Error::from)?;
    let mut rows = Vec::new();
    for tokens in &args.tokens {
        for name in &args.dtype {
            for codec in CodecKind::ALL
                .into_iter()
                .filter(|kind| DeviceCodec::from_name(kind.name()).is_some())
            {
                let case = KernelCase {
                    codec,
                    dtype: dtype(name)?,
                    tokens: *tokens as usize,
                    features: args.features as usize,
                    ranks: usize::from(args.ranks),
                };
                rows.extend(measure::run(&device, case)?);
            }
        }
    }
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
    Ok(u8::from(rows.iter().any(|row| row.wrong > 0)))
}

fn table(rows: &[KernelRow]) -> Table {
    let numbers = [
        "tokens",
        "features",
        "ranks",
        "median (us)",
        "min..max",
        "GB/s",
        "copy (GB/s)",
        "vs copy",
        "wrong",
    ];
    let right = numbers.map(|heading| (heading, Align::Right));
    let mut table = Table::new([("kernel", Align::Left)].into_iter().chain(right));
    for row in rows {
        table.row([
            row.kernel.clone(),
            row.tokens.to_string(),
            row.features.to_string(),
            row.ranks.to_string(),
            format!("{:.2}", row.us_median),
            format!("{:.2}..{:.2}", row.us_min, row.us_max),
            format!("{:.0}", row.gb_s),
            format!("{:.0}", row.copy_gb_s),
            format!("{:.3}", row.vs_copy),
            row.wrong.to_string(),
        ]);
    }
    table
}
