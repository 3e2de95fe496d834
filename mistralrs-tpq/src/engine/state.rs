//! What a configuration would make of this process: for diagnosis, before any link is opened.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use crate::config::{Environment, Source, Topology};
use crate::transport::tcp::ring::RingConfig;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct State {
    /// The file that the configuration is in.
    pub config: String,
    pub codec: &'static str,
    pub rank: usize,
    /// Index = rank. Empty for a single process, and where the ranks learn their addresses from each other.
    pub peers: Vec<String>,
    pub world_size: usize,
    /// The file of RING_CONFIG, or the variables MISTRALRS_MN_*, when the ranks come from there.
    pub learned_from: Option<String>,
}

impl State {
    /// Reads the configuration and the environment; talks to nobody.
    ///
    /// # Errors
    /// Whatever would keep [`install_from`](super::install_from) from starting on this host.
    pub fn of(source: &Source) -> Result<Self> {
        let plan = source.load()?;
        let (rank, world_size, peers, learned_from) = match plan.topology(&Environment::from_process())? {
            Topology::Single => (0, 1, Vec::new(), None),
            Topology::Group(group) => {
                let peers: Vec<_> = group.peers.iter().map(ToString::to_string).collect();
                (group.rank, peers.len(), peers, None)
            }
            Topology::Ring(path) => {
                let ring = RingConfig::load(&path)?;
                let from = format!("RING_CONFIG {}", path.display());
                (ring.rank, ring.world_size, Vec::new(), Some(from))
            }
            Topology::MultiNode(node) => (
                node.rank,
                node.world_size,
                Vec::new(),
                Some("MISTRALRS_MN_*".to_owned()),
            ),
        };
        Ok(Self {
            config: plan.origin.display().to_string(),
            codec: plan.codec.name(),
            rank,
            world_size,
            peers,
            learned_from,
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tpq {}: {}, codec {}, ", crate::VERSION, self.config, self.codec)?;
        match &self.learned_from {
            _ if self.world_size == 1 => write!(f, "single process"),
            Some(from) => write!(f, "rank {} of {} ({from})", self.rank, self.world_size),
            None => write!(
                f,
                "rank {} of {} ({})",
                self.rank,
                self.world_size,
                self.peers.join(", ")
            ),
        }
    }
}
