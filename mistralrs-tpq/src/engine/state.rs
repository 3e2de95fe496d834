//! What a configuration would make of this process: for diagnosis, before any link is opened.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use super::links;
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
    /// The file of RING_CONFIG, when the ranks come from it.
    pub ring_config: Option<String>,
}

impl State {
    /// Reads the configuration and the environment; talks to nobody.
    ///
    /// # Errors
    /// Whatever would keep [`install_from`](super::install_from) from starting on this host.
    pub fn of(source: &Source) -> Result<Self> {
        let plan = source.load()?;
        let (rank, peers, ring_config) = match plan.topology(&Environment::from_process())? {
            Topology::Single => (0, Vec::new(), None),
            Topology::Group(group) => (group.rank, group.peers.iter().map(ToString::to_string).collect(), None),
            Topology::Ring(path) => (
                RingConfig::load(&path)?.rank,
                Vec::new(),
                Some(path.display().to_string()),
            ),
        };
        Ok(Self {
            config: plan.origin.display().to_string(),
            codec: links::codec_name(&plan.codec),
            rank,
            peers,
            ring_config,
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tpq {}: {}, codec {}, ", crate::VERSION, self.config, self.codec)?;
        match (&self.ring_config, self.peers.as_slice()) {
            (Some(path), _) => write!(f, "rank {} (RING_CONFIG {path})", self.rank),
            (None, []) => write!(f, "single process"),
            (None, peers) => write!(f, "rank {} of {} ({})", self.rank, peers.len(), peers.join(", ")),
        }
    }
}
