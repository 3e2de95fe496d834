//! `tpq launch`: N ranks of one command on this host.
//!
//! `ports` keeps their ports free for them, `gpus` chooses a GPU for each, `supervisor` starts the ranks and decides when they stop, `output` prefixes their
//! lines, `orphans` sees to it that none survives `tpq` itself.

mod gpus;
mod orphans;
mod output;
mod ports;
mod supervisor;

pub use orphans::{become_rank, guard_ranks};

use crate::cli::args::{Global, LaunchArgs};
use crate::cli::CliError;
use ports::Reserved;
use std::time::Duration;

/// How many threads the engine computes with (rayon's variable).
const THREADS_VARIABLE: &str = "RAYON_NUM_THREADS";

/// Returns the exit code of the launch.
pub fn run(args: &LaunchArgs, global: &Global) -> Result<u8, CliError> {
    let gpus = gpus::of_ranks(&args.gpus, usize::from(args.ranks))?;
    let reserved = match args.base_port {
        Some(base) => Reserved::from(base, args.ranks)?,
        None => Reserved::any(args.ranks)?,
    };
    let launch = supervisor::Launch {
        command: &args.command,
        ranks: usize::from(args.ranks),
        peers: reserved.peers(),
        threads: threads_of_a_rank(usize::from(args.ranks)),
        grace: Duration::from_secs_f64(args.grace_s),
        restarts: args.restart,
        gpus: &gpus,
        quiet_workers: args.quiet_workers,
        bare_rank_0: args.bare_rank_0,
        format: if args.bare_rank_0 {
            output::Format::Text
        } else if global.json {
            output::Format::Json
        } else {
            output::Format::Text
        },
    };
    supervisor::run(&launch)
}

/// The ranks share this host's cores, as under torchrun: ranks that compute in lockstep gain nothing from more threads than that.
/// Two ranks on two cores serve equally fast with one and with two threads each. `None` where the user has decided.
fn threads_of_a_rank(ranks: usize) -> Option<usize> {
    if std::env::var_os(THREADS_VARIABLE).is_some() {
        return None;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Some((cores / ranks).max(1))
}
