//! `tpq simulate run`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::cli::args::Global;
use crate::cli::progress::Progress;
use crate::cli::{emit, emit_json, CliError};
use crate::codec::{Codec, CodecKind};
use crate::config::{defaults, read_table};
use crate::exchange::GatherBits;
use crate::manifest::Manifest;
use crate::report::{Align, Table};
use crate::simulate::{self, Costs, Distribution, Predicted, Recorded, SimulateOptions, Simulated, Simulation};

/// Exchange recorded partial sums over many ranks: error, its distribution, and predicted time
///
/// Fewer ranks than recorded: neighbours' sums are added. More: each sum is cut into parts that add up to it, with an equal share of its
/// energy. Codecs are calibrated on the first half of the tokens and measured on the second. The sums are those of the real exchange, bit for bit.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq simulate run sums/
  tpq simulate run sums/ --ranks 2,4,8 --codec paper,rd,rd_entropy --html simulation.html
  tpq simulate run sums/ --manifest manifest/manifest.yaml --ranks 4   (as calibrated; SQNR as tpq eval measures it)
  tpq simulate run sums/ --table link.yaml --time-tokens 1,512 --coding-mvalues 500   (times from `tpq bench exchange --write-table`)

With --json there is one object: layers; rows (ranks, codec, algorithm, bits_per_value, sqnr_db, relative_error, partial_sqnr_db, parts,
calibration, tokens); distributions of the errors of paper (of all layers, then by layer); times (ranks, tokens, codec, algorithm,
microseconds, bytes).")]
pub struct RunArgs {
    /// Folder with the files of `tpq simulate record`
    sums: PathBuf,
    /// Numbers of ranks, separated by commas: divisors or multiples of the recorded number
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "2,4,8,16,32,64,128", value_parser = clap::value_parser!(u16).range(2..=1024))]
    ranks: Vec<u16>,
    /// Codecs, separated by commas: paper, dynamic, rd, rd_entropy
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "paper,dynamic,rd")]
    codec: Vec<String>,
    /// Bits a value of rd and rd_entropy
    #[arg(long, value_name = "BITS", default_value_t = defaults::RD_BITS)]
    bits: f64,
    /// Bits of a code where sums are sent on (two_shot, ring, doubling), 4 or 8
    #[arg(long, value_name = "BITS", default_value_t = 8)]
    gather_bits: u8,
    /// Use this manifest's calibration for the number of ranks it was made for, and measure on all tokens
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// What the link costs: a file of `tpq bench exchange --write-table` [default: 1 Gbit/s Ethernet, 50 us]
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// Millions of values that a rank encodes or decodes in a second, from `tpq bench codec` [default: coding takes no time]
    #[arg(long, value_name = "N")]
    coding_mvalues: Option<f64>,
    /// Tokens of the messages whose time is predicted, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,512", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    time_tokens: Vec<u32>,
    /// Predict times up to this many ranks
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(2..=1024))]
    time_ranks: u16,
    /// Also write a page with the results and plots: one HTML file that needs nothing else
    #[arg(long, visible_alias = "plot", value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    simulation: Simulation,
    times: Vec<Predicted>,
}

pub(super) fn run(args: &RunArgs, global: &Global) -> Result<(), CliError> {
    let options = args.options()?;
    let costs = args.costs()?;
    let recorded = simulate::sums::read(&args.sums).map_err(usage)?;
    let manifest = args.manifest.as_deref().map(Manifest::load).transpose()?;
    let mut progress = Progress::new("layers");
    let set = |done, total| progress.set(done, total);
    let simulation = simulate::simulate(&recorded, &options, manifest.as_ref(), set).map_err(usage)?;
    let times = args.times(&recorded, &options, &costs)?;
    if let Some(path) = &args.html {
        write(path, &simulate::page(&simulation, &times)?)?;
    }
    if global.json {
        return emit_json(&Report { simulation, times });
    }
    emit(&format!(
        "{}\n{}\n{}",
        error_table(&simulation.rows),
        distribution_table(&simulation.distributions),
        time_table(&times)
    ))
}

/// All that `simulate` refuses is in the arguments or the files they name.
fn usage(error: simulate::SimulateError) -> CliError {
    CliError::Usage(error.to_string())
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text).map_err(|error| CliError::io(format!("cannot write {}", path.display()), error))
}

impl RunArgs {
    fn options(&self) -> Result<SimulateOptions, CliError> {
        let (least, most) = defaults::RD_BITS_LIMITS;
        if !(least..=most).contains(&self.bits) {
            return Err(CliError::Usage(format!(
                "--bits is {}, expected {least} to {most}",
                self.bits
            )));
        }
        let kind = |name: &String| {
            let kind = CodecKind::from_name(name).filter(|kind| *kind != CodecKind::None);
            kind.ok_or_else(|| {
                CliError::Usage(format!(
                    "there is no codec `{name}` to simulate: paper, dynamic, rd or rd_entropy"
                ))
            })
        };
        Ok(SimulateOptions {
            ranks: self.ranks.iter().map(|ranks| usize::from(*ranks)).collect(),
            codecs: self.codec.iter().map(kind).collect::<Result<_, _>>()?,
            bits: self.bits,
            gather_bits: match self.gather_bits {
                4 => GatherBits::Four,
                8 => GatherBits::Eight,
                other => return Err(CliError::Usage(format!("--gather-bits is {other}, expected 4 or 8"))),
            },
        })
    }

    fn costs(&self) -> Result<Costs, CliError> {
        // The gate is of one world size, and here are many.
        let link = self.table.as_deref().map(read_table).transpose()?.map(|(link, _)| link);
        let coded_per_s = match self.coding_mvalues {
            None => f64::INFINITY,
            Some(millions) if millions > 0.0 && millions.is_finite() => millions * 1e6,
            Some(other) => {
                return Err(CliError::Usage(format!(
                    "--coding-mvalues is {other}, expected a number above 0"
                )))
            }
        };
        Ok(Costs {
            link: link.unwrap_or_default(),
            coded_per_s,
        })
    }

    /// Of messages as wide as the first layer's, with its codecs: what they cost depends on their shape alone.
    fn times(&self, recorded: &Recorded, options: &SimulateOptions, costs: &Costs) -> Result<Vec<Predicted>, CliError> {
        let layer = &recorded.layers[0];
        let calibration = simulate::Calibration::observe(
            &layer.ranks,
            layer.features,
            recorded.origin.sequence,
            defaults::CALIBRATION_EMA,
        )
        .map_err(usage)?;
        let kinds = options.codecs.iter().chain([&CodecKind::None]);
        let codecs: Vec<Box<dyn Codec>> = kinds
            .map(|kind| calibration.codec(*kind, options.bits).map_err(usage))
            .collect::<Result<_, _>>()?;
        let tokens: Vec<usize> = self.time_tokens.iter().map(|tokens| *tokens as usize).collect();
        let most = usize::from(self.time_ranks);
        Ok(simulate::times(costs, &codecs, &tokens, options.gather_bits, most))
    }
}

fn table(left: &[&'static str], right: &[&'static str]) -> Table {
    let left = left.iter().map(|heading| (*heading, Align::Left));
    Table::new(left.chain(right.iter().map(|heading| (*heading, Align::Right))))
}

fn error_table(rows: &[Simulated]) -> Table {
    let mut table = table(
        &["codec", "algorithm", "parts", "calibrated on"],
        &["ranks", "bits/value", "SQNR (dB)", "partial SQNR (dB)", "error/signal"],
    );
    for row in rows {
        table.row([
            row.codec.clone(),
            row.algorithm.to_owned(),
            row.parts.to_owned(),
            row.calibration.to_owned(),
            row.ranks.to_string(),
            format!("{:.2}", row.bits_per_value),
            format!("{:.2}", row.sqnr_db),
            format!("{:.2}", row.partial_sqnr_db),
            format!("{:.4}", row.relative_error),
        ]);
    }
    table
}

/// Of all layers together; `--json` and `--html` have each.
fn distribution_table(distributions: &[Distribution]) -> Table {
    let mut table = table(
        &["errors of paper"],
        &[
            "clipped",
            "coarse",
            "energy/predicted",
            "holds",
            "energy/predicted",
            "kurtosis",
            "predicted",
            "KS",
            "correlation",
        ],
    );
    for one in distributions.iter().filter(|one| one.layer.is_empty()) {
        table.row([
            format!("{} ranks", one.ranks),
            format!("{:.3}%", 100.0 * one.clipped),
            format!("{:.3}%", 100.0 * one.coarse),
            format!("{:.3}", one.energy_ratio),
            format!("{:.2}%", 100.0 * one.holds),
            format!("{:.3}", one.energy_ratio_held),
            format!("{:+.3}", one.excess_kurtosis),
            format!("{:+.3}", one.predicted_excess_kurtosis),
            format!("{:.4}", one.distance),
            format!("{:+.4}", one.correlation),
        ]);
    }
    table
}

/// The fastest algorithm of each codec, and the lossless one beside it.
fn time_table(times: &[Predicted]) -> Table {
    let mut table = table(&["codec", "fastest"], &["tokens", "ranks", "time (us)", "sent (bytes)"]);
    let mut cells: Vec<(usize, usize, &str)> = times
        .iter()
        .map(|row| (row.tokens, row.ranks, row.codec.as_str()))
        .collect();
    cells.sort_unstable();
    cells.dedup();
    for (tokens, ranks, codec) in cells {
        let of_cell = times
            .iter()
            .filter(|row| (row.tokens, row.ranks) == (tokens, ranks) && row.codec == codec);
        let Some(best) = of_cell.min_by(|a, b| a.microseconds.total_cmp(&b.microseconds)) else {
            continue;
        };
        table.row([
            best.codec.clone(),
            best.algorithm.to_owned(),
            tokens.to_string(),
            ranks.to_string(),
            format!("{:.0}", best.microseconds),
            best.bytes.to_string(),
        ]);
    }
    table
}
