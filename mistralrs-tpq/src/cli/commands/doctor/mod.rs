//! `tpq doctor`: checks a cluster before serving, with the same links, secret and comparisons, and without a model.
//!
//! Each rank runs it. The hello carries "doctor" beside the policy, so that it never joins a group that serves.

mod measure;

use std::fmt::Write;

use serde::Serialize;

use super::group::GroupArgs;
use crate::cli::args::Global;
use crate::cli::{emit, emit_json, CliError};
use crate::codec::Dtype;
use crate::config::{Environment, Plan, Topology};
use crate::exchange::LinkTable;
use crate::manifest::Manifest;
use crate::report::{Align, Table};
use crate::transport::tcp::{JoinError, MeshConfig, TcpMesh};
use crate::transport::Transport;
use crate::wire::Identity;
use measure::Link;

/// Check the ranks' configuration, secret, manifest and network before serving, and say what to fix
///
/// Start it on every host as you would start the server, with the same tpq.yaml and environment; rank 0 prints the report. It
/// measures each link in turn: half the round trip of one byte, which needs no common clock, and the bandwidth of 8 MiB each way.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpq doctor --config tpq.yaml              (on every host, TPQ_RANK set)
  tpq doctor --config tpq.yaml -n 4         (four ranks on this host)
  tpq doctor --config tpq.yaml --json | jq .links

Exit code: 0 all is well, 1 a rank or link fails, 2 the configuration, secret or manifest has to change.")]
pub struct DoctorArgs {
    #[command(flatten)]
    pub group: GroupArgs,
}

/// What was found good, in the order of checking. A failed check ends the command with what to fix.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    world_size: usize,
    checks: Vec<Check>,
    links: Vec<Link>,
    advice: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    found: String,
}

pub fn run(args: &DoctorArgs, global: &Global) -> Result<u8, CliError> {
    if let Some(code) = args.group.launch(global)? {
        return Ok(code);
    }
    let plan = args.group.plan()?;
    let environment = Environment::from_process();
    let mut checks = Vec::new();
    let mut good = |what, found: String| checks.push(Check { what, found });
    good("configuration", plan.origin.display().to_string());
    let Topology::Group(place) = plan.topology(&environment)? else {
        return Err(CliError::Usage(
            "no ranks to check: give -n, or `group.peers` with TPQ_RANK (RING_CONFIG and MISTRALRS_MN_* are not supported here)".to_owned(),
        ));
    };
    let peers: Vec<String> = place.peers.iter().map(ToString::to_string).collect();
    good("ranks", peers.join(", "));
    let secret = plan.secret(&environment)?;
    good(
        "secret",
        match (&secret, plan.links.encrypt) {
            (None, _) => "none: every process that reaches the ports can join".to_owned(),
            (Some(_), false) => "present; prompts are encrypted, partial sums are not".to_owned(),
            (Some(_), true) => "present; everything is encrypted".to_owned(),
        },
    );
    let manifest = plan.codec.manifest().map(Manifest::load).transpose()?;
    if let Some(manifest) = &manifest {
        good(
            "manifest",
            format!("{} for model {}", manifest.digest(), manifest.header().model.short()),
        );
    }
    let config = MeshConfig {
        connect_timeout: plan.links.connect_timeout,
        timeout: plan.links.timeout,
        heartbeat: plan.links.heartbeat,
        secret,
        encrypt: plan.links.encrypt,
        insecure: plan.links.insecure,
        busy_poll: plan.links.busy_poll,
        congestion: plan.links.congestion.clone(),
        ..MeshConfig::new(place.rank, peers.clone(), identity(&plan, manifest.as_ref()))
    };
    let mesh = TcpMesh::connect(config).map_err(failed)?;
    good(
        "agreement",
        "all ranks have the same version, codec, policy, manifest and secret".to_owned(),
    );
    let links = measure::all_links(&mesh, plan.links.connect_timeout).map_err(anyhow::Error::from)?;
    if mesh.rank() == 0 {
        let advice = advice(&links, &plan.exchange.table);
        print(
            &Report {
                version: env!("CARGO_PKG_VERSION"),
                world_size: peers.len(),
                checks,
                links,
                advice,
            },
            global,
        )?;
    }
    Ok(0)
}

fn identity(plan: &Plan, manifest: Option<&Manifest>) -> Identity {
    Identity {
        // Known only once a model is loaded; serving compares them.
        dtype: Dtype::F32,
        model: [0; 32],
        manifest: manifest.map_or([0; 32], |manifest| manifest.digest().0),
        codec: plan.codec.name().to_owned(),
        policy: format!("doctor {}; {}", env!("CARGO_PKG_VERSION"), plan.policy_digest()),
    }
}

/// What differs between ranks is in a file that someone has to change; the rest is the network's.
fn failed(error: JoinError) -> CliError {
    match error {
        JoinError::Refused(_)
        | JoinError::EncryptWithoutSecret
        | JoinError::NotLoopback { .. }
        | JoinError::Congestion { .. } => CliError::Usage(error.to_string()),
        other => CliError::Failed(other.into()),
    }
}

/// A link that is this many times slower than the fastest is worth a look at its cable, switch port or host.
const SLOW: f64 = 4.0;

/// Links this many times faster or slower than what `auto` reckons with are worth a measurement.
const OFF: f64 = 3.0;

fn advice(links: &[Link], table: &LinkTable) -> Vec<String> {
    let fastest = links.iter().map(Link::slower_mbit_s).fold(0.0, f64::max);
    let shortest = links.iter().map(|link| link.latency_us).fold(f64::INFINITY, f64::min);
    let slowest = links.iter().map(Link::slower_mbit_s).fold(f64::INFINITY, f64::min);
    let reckoned = table.kbyte_per_s as f64 * 8.0 / 1000.0;
    let mut advice = Vec::new();
    if !links.is_empty() && !(reckoned / OFF..=reckoned * OFF).contains(&slowest) {
        advice.push(format!(
            "links carry {slowest:.0} Mbit/s and more, `exchange.table` reckons with {reckoned:.0}: `auto` chooses by it, so write one for \
             these links (tpq bench exchange --write-table)"
        ));
    }
    for link in links {
        let [a, b] = link.ranks;
        if link.slower_mbit_s() * SLOW < fastest {
            advice.push(format!(
                "link {a}-{b} carries {:.0} Mbit/s, the fastest {fastest:.0}: every exchange waits for it",
                link.slower_mbit_s()
            ));
        }
        // Below that it is the hosts' scheduling, not the network.
        if link.latency_us > (shortest * SLOW).max(200.0) {
            advice.push(format!(
                "link {a}-{b} takes {:.0} us one way, the shortest {shortest:.0}: decoding waits for it twice a layer",
                link.latency_us
            ));
        }
    }
    advice
}

fn print(report: &Report, global: &Global) -> Result<(), CliError> {
    if global.json {
        return emit_json(report);
    }
    let mut text = String::new();
    for Check { what, found } in &report.checks {
        // Writing to a String does not fail.
        let _ = writeln!(text, "ok  {what}: {found}");
    }
    let mut table = Table::new([
        ("link", Align::Left),
        ("latency (us)", Align::Right),
        ("p99 (us)", Align::Right),
        ("up (Mbit/s)", Align::Right),
        ("down (Mbit/s)", Align::Right),
    ]);
    for link in &report.links {
        table.row([
            format!("{}-{}", link.ranks[0], link.ranks[1]),
            format!("{:.0}", link.latency_us),
            format!("{:.0}", link.p99_us),
            format!("{:.0}", link.up_mbit_s),
            format!("{:.0}", link.down_mbit_s),
        ]);
    }
    let _ = write!(text, "\n{table}");
    for line in &report.advice {
        let _ = writeln!(text, "\nlook at: {line}");
    }
    emit(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_names_the_link_that_stands_out_and_is_silent_otherwise() {
        let link = |ranks, latency_us, mbit_s| Link {
            ranks,
            latency_us,
            p99_us: latency_us,
            up_mbit_s: mbit_s,
            down_mbit_s: mbit_s * 2.0,
        };
        let even = [link([0, 1], 30.0, 900.0), link([0, 2], 60.0, 700.0)];
        let table = LinkTable::default();
        assert!(advice(&even, &table).is_empty());
        let found = advice(&[link([0, 1], 30.0, 1900.0), link([0, 2], 900.0, 450.0)], &table);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|line| line.starts_with("link 0-2")), "{found:?}");
        for mbit_s in [90.0, 9400.0] {
            let found = advice(&[link([0, 1], 30.0, mbit_s)], &table);
            assert_eq!(found.len(), 1);
            assert!(
                found[0].contains(&format!("{mbit_s:.0} Mbit/s")) && found[0].contains("reckons with 1000"),
                "{found:?}"
            );
        }
    }
}
