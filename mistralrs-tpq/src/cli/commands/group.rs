//! What the commands that run several ranks share: which ranks, and how they start and end.

use std::path::{Path, PathBuf};

use clap::Args;

use super::launch;
use crate::cli::args::{Global, LaunchArgs};
use crate::cli::CliError;
use crate::config::Plan;

/// Used without --config: everything at its default, and no manifest to look for.
const DEFAULT_CONFIG: &str = "version: 1\ncodec: {kind: dynamic}\n";

#[derive(Debug, Args)]
pub struct GroupArgs {
    /// tpq configuration [default: all defaults, codec dynamic]
    #[arg(long, value_name = "FILE", env = "MISTRALRS_TPQ_CONFIG")]
    pub config: Option<PathBuf>,
    /// Start this many ranks on this host. Without it, this process is one rank of the group that the configuration names.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub ranks: Option<u16>,
}

impl GroupArgs {
    /// Starts the ranks as processes of this same command, unless this is one of them. Returns their exit code.
    pub(crate) fn launch(&self, global: &Global) -> Result<Option<u8>, CliError> {
        let ranks = match self.ranks {
            Some(ranks) if ranks > 1 && std::env::var_os(crate::config::RANK_VARIABLE).is_none() => ranks,
            _ => return Ok(None),
        };
        let program = std::env::current_exe().map_err(|error| CliError::io("cannot find this program", error))?;
        let command = std::iter::once(program.into_os_string())
            .chain(std::env::args_os().skip(1))
            .collect();
        let launch = LaunchArgs {
            ranks,
            base_port: None,
            grace_s: 5.0,
            restart: 0,
            gpus: Vec::new(),
            quiet_workers: true,
            bare_rank_0: true,
            command,
        };
        launch::run(&launch, global).map(Some)
    }

    /// One process and no configuration whose ranks would decide: nothing is exchanged.
    #[cfg(feature = "engine")]
    pub(crate) fn alone(&self) -> bool {
        self.ranks == Some(1) || (self.ranks.is_none() && self.config.is_none())
    }

    /// For measuring: ranges stay as they are.
    pub(crate) fn plan(&self) -> Result<Plan, CliError> {
        let plan = match &self.config {
            Some(path) => Plan::load(path)?,
            None => Plan::parse(DEFAULT_CONFIG, Path::new("(default configuration)"))?,
        };
        let drift = plan.drift.clone().off();
        Ok(Plan { drift, ..plan })
    }
}

#[cfg(feature = "engine")]
/// Ends the group with rank 0's outcome: in good order when it is good, otherwise by leaving, which the other ranks see.
pub(crate) fn end<T>(node: &crate::engine::Node, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
    if outcome.is_ok() {
        node.shutdown();
    }
    outcome
}
