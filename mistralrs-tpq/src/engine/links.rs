//! From the plan to open links: who we are, where the others listen, how long to wait.

use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::config::{self, Plan, Topology};
use crate::exchange::{ExchangeConfig, NonFinite};
use crate::transport::tcp::ring::{RingConfig, RingTopology};
use crate::transport::tcp::star::{StarConfig, StarTopology};
use crate::transport::tcp::{MeshConfig, Secret, TcpMesh};
use crate::transport::Transport;
use crate::wire::Identity;

/// This process's rank, and the address of every rank.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) rank: usize,
    pub(super) peers: Vec<String>,
    secret: Option<Secret>,
    /// Open already when the addresses were learned from other ranks: nobody can take the port in between.
    listener: Mutex<Option<TcpListener>>,
}

/// `None` for a single process. With RING_CONFIG or MISTRALRS_MN_* this talks to other ranks, to learn all addresses.
pub(super) fn place(plan: &Plan, topology: &Topology, secret: Option<Secret>) -> Result<Option<Place>> {
    // Addresses only: whoever changes one on its way still has to know the secret to join.
    let open = plan.links.insecure || secret.is_some();
    let place = match topology {
        Topology::Single => return Ok(None),
        Topology::Group(group) => Place {
            rank: group.rank,
            peers: group.peers.iter().map(ToString::to_string).collect(),
            secret,
            listener: Mutex::default(),
        },
        Topology::Ring(path) => {
            let ring = RingConfig::load(path)?;
            tracing::info!("RING_CONFIG {}: learning the addresses of all ranks", path.display());
            let ring = RingTopology::learn(&ring, plan.links.connect_timeout, open)?;
            Place {
                rank: ring.rank,
                peers: ring.peers,
                secret,
                listener: Mutex::new(Some(ring.listener)),
            }
        }
        Topology::MultiNode(node) => {
            let star = StarConfig {
                rank: node.rank,
                world_size: node.world_size,
                port: node.port,
                head: node.head.as_ref().map(ToString::to_string),
            };
            tracing::info!(
                "MISTRALRS_MN_*: learning the addresses of all {} ranks",
                star.world_size
            );
            let found = StarTopology::learn(&star, plan.links.connect_timeout, open).context("MISTRALRS_MN_*")?;
            Place {
                rank: star.rank,
                peers: found.peers,
                secret,
                listener: Mutex::new(Some(found.listener)),
            }
        }
    };
    Ok((place.peers.len() > 1).then_some(place))
}

pub(super) fn connect(plan: &Plan, place: &Place, identity: Identity) -> Result<Arc<dyn Transport>> {
    let config = MeshConfig {
        connect_timeout: plan.links.connect_timeout,
        timeout: plan.links.timeout,
        heartbeat: plan.links.heartbeat,
        secret: place.secret.clone(),
        encrypt: plan.links.encrypt,
        insecure: plan.links.insecure,
        busy_poll: plan.links.busy_poll,
        congestion: plan.links.congestion.clone(),
        ..MeshConfig::new(place.rank, place.peers.clone(), identity)
    };
    let listener = place.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok(Arc::new(match listener {
        Some(listener) => TcpMesh::connect_on(listener, config)?,
        None => TcpMesh::connect(config)?,
    }))
}

pub(super) fn exchange_config(plan: &Plan) -> ExchangeConfig {
    ExchangeConfig {
        timeout: plan.links.timeout,
        nonfinite: match plan.exchange.nonfinite {
            config::Nonfinite::Fail => NonFinite::Fail,
            config::Nonfinite::Fallback => NonFinite::Fallback,
        },
        algorithm: plan.exchange.algorithm,
        batch_invariant: plan.exchange.batch_invariant,
        gather_bits: plan.exchange.gather_bits,
        min_bytes: plan.exchange.min_bytes,
        table: plan.exchange.table,
        gate: plan.exchange.gate,
    }
}
