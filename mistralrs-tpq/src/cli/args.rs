//! The arguments of every command: what, unit, default, example.

use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Tensor parallelism over ordinary links for mistral.rs.
#[derive(Debug, Parser)]
#[command(name = "tpq", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Print results and errors as JSON, for scripts
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more to stderr: -v info, -vv debug, -vvv trace [default: warnings; RUST_LOG overrides]
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Bench(Box<super::commands::bench::BenchArgs>),
    #[cfg(feature = "engine")]
    Calibrate(Box<super::commands::calibrate::CalibrateArgs>),
    Doctor(super::commands::doctor::DoctorArgs),
    #[cfg(feature = "engine")]
    Eval(Box<super::commands::eval::EvalArgs>),
    Inspect(InspectArgs),
    Launch(LaunchArgs),
    MakeModel(Box<super::commands::make_model::MakeModelArgs>),
    Simulate(super::commands::simulate::SimulateArgs),
    /// What `launch` runs for each rank.
    #[command(name = "__rank", hide = true)]
    Rank(RankArgs),
    /// What `launch` leaves behind to clean up after it, should it be killed.
    #[command(name = "__guard", hide = true)]
    Guard,
}

/// Show what a manifest holds: ranges, outliers and expected quality of each layer
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq inspect manifest.yaml
  tpq inspect manifest.yaml --plot ranges.svg
  tpq inspect manifest.yaml --layer model.layers.0.mlp.down_proj --json

Columns: min, median and max are absmax ranges of features (mean over ranks, in the units of the activations); spread is
max / median; share is the part of the features kept in BF16; SQNR is expected, of a single partial sum, in dB.")]
pub struct InspectArgs {
    /// A manifest.yaml, with its scales.safetensors beside it
    pub manifest: PathBuf,
    /// Only this layer, with every outlier and its range on each rank
    #[arg(long, value_name = "NAME")]
    pub layer: Option<String>,
    /// Also write an SVG plot of the sorted ranges of each layer, outliers marked
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// Run a command as N ranks on this host and stop all of them when one fails
///
/// A torchrun for mistral.rs. Each rank gets TPQ_RANK, TPQ_WORLD_SIZE and TPQ_PEERS, which override `group` in tpq.yaml. Every
/// line of output gets the prefix `[rank i] `; stdout and stderr stay apart. The first rank that fails stops the others, and
/// its exit code is returned (128 + signal for a killed one). When rank 0 ends well, so does the launch. Ctrl-C is passed on;
/// a second one kills.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq launch -n 2 -- mistralrs-server --tpq-config tpq.yaml run -m ./model
  tpq launch -n 4 --base-port 7700 -- sh -c 'exec ./worker --gpu $TPQ_RANK'
  tpq launch -n 2 --gpus 0,1 -- mistralrs-server --tpq-config tpq.yaml run -m ./model   (a build with the feature cuda)

Rank 0 reads stdin when that is a pipe or a file; a terminal is not passed on. Each rank computes with its share of this host's
cores; RAYON_NUM_THREADS overrides that.")]
pub struct LaunchArgs {
    /// Ranks to start, 1 to 64
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub ranks: u16,
    /// Rank i listens on 127.0.0.1, port P + i [default: free ports]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    pub base_port: Option<u16>,
    /// Seconds between asking ranks to stop (SIGTERM) and killing them (SIGKILL), and seconds that the others have to finish
    /// after rank 0. mistralrs-server lets open streams go on for 5
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub grace_s: f64,
    /// Start a rank that failed again, up to N times each [10 when N is left out], instead of stopping the others. They wait for it
    /// (TPQ_REJOIN=1, see `group.rejoin`): requests in flight fail, later ones are served again. Example: --restart=3
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_value_t = 0, default_missing_value = "10", hide_default_value = true)]
    pub restart: u32,
    /// The GPU of each rank, separated by commas, as CUDA_VISIBLE_DEVICES of that rank: numbers, or UUIDs as nvidia-smi -L
    /// prints them. Two ranks may share one. Without it rank i has the i-th GPU, in a build for GPUs and where there are as many as
    /// ranks; else all see all, and the engine takes the first. Example: 2,3
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub gpus: Vec<String>,
    /// Drop stdout of all ranks but 0; their stderr is still shown
    #[arg(long)]
    pub quiet_workers: bool,
    /// Rank 0's lines pass unchanged: for commands that start their own ranks.
    #[arg(skip)]
    pub bare_rank_0: bool,
    /// The command and its arguments; a bare name is first looked for beside tpq, then on PATH
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct RankArgs {
    #[arg(long)]
    pub parent: i32,
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let limits = 0.0..=3600.0;
    text.parse()
        .ok()
        .filter(|s| limits.contains(s))
        .ok_or_else(|| "expected seconds from 0 to 3600".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_argument_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_after_the_dashes_is_the_command() {
        let cli = Cli::try_parse_from(["tpq", "launch", "-n", "2", "--", "sh", "-c", "--json", "-n"]).unwrap();
        let Command::Launch(args) = cli.command else {
            panic!("not launch")
        };
        assert_eq!(args.command, ["sh", "-c", "--json", "-n"]);
        assert!(!cli.global.json);
    }
}
