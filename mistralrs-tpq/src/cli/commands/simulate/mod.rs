//! `tpq simulate`: larger groups, from partial sums that were recorded once.

#[cfg(feature = "engine")]
mod record;
mod run;

use clap::{Args, Subcommand};

use crate::cli::args::Global;
use crate::cli::CliError;

/// Record real partial sums, then exchange them in-process over 2 to 128 ranks with every algorithm
#[derive(Debug, Args)]
pub struct SimulateArgs {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Debug, Subcommand)]
pub enum What {
    #[cfg(feature = "engine")]
    Record(Box<record::RecordArgs>),
    Run(run::RunArgs),
}

pub fn run(args: &SimulateArgs, global: &Global) -> Result<u8, CliError> {
    match &args.what {
        #[cfg(feature = "engine")]
        What::Record(args) => record::run(args, global),
        What::Run(args) => run::run(args, global).map(|()| 0),
    }
}
