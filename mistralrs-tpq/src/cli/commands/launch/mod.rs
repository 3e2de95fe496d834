//! `tpq launch`: N ranks of one command on this host.
//!
//! `supervisor` starts the ranks and decides when they stop, `output` prefixes their lines, `orphans` sees to it that none
//! survives `tpq` itself.

mod orphans;
mod output;
mod supervisor;

pub use orphans::{become_rank, guard_ranks};

use crate::cli::args::{Global, LaunchArgs};
use crate::cli::CliError;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

/// How many threads the engine computes with (rayon's variable).
const THREADS_VARIABLE: &str = "RAYON_NUM_THREADS";

/// Returns the exit code of the launch.
pub fn run(args: &LaunchArgs, global: &Global) -> Result<u8, CliError> {
    let ports = match args.base_port {
        Some(base) => ports_from(base, args.ranks)?,
        None => free_ports(args.ranks)?,
    };
    let peers: Vec<String> = ports
        .iter()
        .map(|port| format!("{}:{port}", Ipv4Addr::LOCALHOST))
        .collect();
    let launch = supervisor::Launch {
        command: &args.command,
        ranks: usize::from(args.ranks),
        peers: peers.join(","),
        threads: threads_of_a_rank(usize::from(args.ranks)),
        grace: Duration::from_secs_f64(args.grace_s),
        restarts: args.restart,
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

/// The ranks share this host's cores: a pool as large as the host in each of them makes them wait for one another in the
/// middle of a layer. `None` where the user has decided.
fn threads_of_a_rank(ranks: usize) -> Option<usize> {
    if std::env::var_os(THREADS_VARIABLE).is_some() {
        return None;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Some((cores / ranks).max(1))
}

fn ports_from(base: u16, ranks: u16) -> Result<Vec<u16>, CliError> {
    let last = base.checked_add(ranks - 1).ok_or_else(|| {
        CliError::Usage(format!(
            "--base-port {base}: {ranks} ranks need ports up to {}, expected at most 65535",
            u32::from(base) + u32::from(ranks) - 1
        ))
    })?;
    for (rank, port) in (base..=last).enumerate() {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
            CliError::Usage(format!(
                "--base-port {base}: port {port} of rank {rank} cannot be used: {error}"
            ))
        })?;
    }
    Ok((base..=last).collect())
}

/// All are held until the last is known, so none comes twice. Another process could take one before its rank binds it; the
/// kernel hands out ephemeral ports in an order that makes this rare, and the rank then fails with "address in use".
fn free_ports(ranks: u16) -> Result<Vec<u16>, CliError> {
    let failed = |error| CliError::io("cannot find a free loopback port", error);
    let held: Vec<TcpListener> = (0..ranks)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    held.iter()
        .map(|listener| Ok(listener.local_addr().map_err(failed)?.port()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_distinct_and_can_be_bound() {
        let ports = free_ports(16).unwrap();
        let distinct: std::collections::BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), 16);
        TcpListener::bind((Ipv4Addr::LOCALHOST, ports[0])).unwrap();
    }

    #[test]
    fn a_port_beyond_the_last_or_in_use_names_the_rank() {
        let message = ports_from(65530, 8).unwrap_err().to_string();
        assert_eq!(
            message,
            "--base-port 65530: 8 ranks need ports up to 65537, expected at most 65535"
        );
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let message = ports_from(port, 1).unwrap_err().to_string();
        assert!(
            message.contains(&format!("port {port} of rank 0 cannot be used")),
            "{message}"
        );
    }
}
