//! Ranks of a deployment that was written for the engine's multi-node mode, from its MISTRALRS_MN_* variables.

use super::defaults::MAX_WORLD_SIZE;
use super::error::ConfigError;
use super::peer::{self, PeerAddr};
use super::topology::{wrong, Environment};

pub(super) const GLOBAL_WORLD_SIZE: &str = "MISTRALRS_MN_GLOBAL_WORLD_SIZE";
pub(super) const LOCAL_WORLD_SIZE: &str = "MISTRALRS_MN_LOCAL_WORLD_SIZE";
pub(super) const HEAD_NUM_WORKERS: &str = "MISTRALRS_MN_HEAD_NUM_WORKERS";
pub(super) const HEAD_PORT: &str = "MISTRALRS_MN_HEAD_PORT";
pub(super) const WORKER_SERVER_ADDR: &str = "MISTRALRS_MN_WORKER_SERVER_ADDR";
pub(super) const WORKER_ID: &str = "MISTRALRS_MN_WORKER_ID";

/// A head, which is rank 0, or worker i, which is rank i + 1.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MultiNode {
    pub rank: usize,
    pub world_size: usize,
    /// Where this rank listens: the head's port plus the rank.
    pub port: u16,
    /// `None` on the head itself.
    pub head: Option<PeerAddr>,
}

impl MultiNode {
    /// `None` where no such deployment is set up.
    ///
    /// # Errors
    /// A variable that is missing or malformed, and several ranks in one process.
    pub(super) fn from(environment: &Environment) -> Result<Option<Self>, ConfigError> {
        let Some(world_size) = environment.count(GLOBAL_WORLD_SIZE)? else {
            return Ok(None);
        };
        if !(1..=MAX_WORLD_SIZE).contains(&world_size) {
            let expected = format!("1 to {MAX_WORLD_SIZE} ranks");
            return Err(wrong(GLOBAL_WORLD_SIZE, &world_size.to_string(), &expected));
        }
        if let Some(local) = environment.count(LOCAL_WORLD_SIZE)?.filter(|local| *local != 1) {
            let expected =
                "1: under tpq each rank is a process of its own; start the others of this host with TPQ_RANK and \
                            TPQ_PEERS, or with `tpq launch`";
            return Err(wrong(LOCAL_WORLD_SIZE, &local.to_string(), expected));
        }
        if let Some(workers) = environment.count(HEAD_NUM_WORKERS)? {
            return Self::head(environment, world_size, workers).map(Some);
        }
        Self::worker(environment, world_size).map(Some)
    }

    fn head(environment: &Environment, world_size: usize, workers: usize) -> Result<Self, ConfigError> {
        if workers + 1 != world_size {
            let expected = format!(
                "{}: one rank on each host, {world_size} in {GLOBAL_WORLD_SIZE}",
                world_size - 1
            );
            return Err(wrong(HEAD_NUM_WORKERS, &workers.to_string(), &expected));
        }
        let port = environment.needed(HEAD_PORT, &format!("{HEAD_NUM_WORKERS} makes this process the head"))?;
        let Some(port) = port.parse().ok().filter(|port| *port != 0) else {
            return Err(wrong(HEAD_PORT, &port, "a port"));
        };
        Ok(Self {
            rank: 0,
            world_size,
            port,
            head: None,
        })
    }

    fn worker(environment: &Environment, world_size: usize) -> Result<Self, ConfigError> {
        let why = format!("{GLOBAL_WORLD_SIZE} is set, and {HEAD_NUM_WORKERS}, which makes a head, is not");
        let text = environment.needed(WORKER_SERVER_ADDR, &why)?;
        let head: PeerAddr = text
            .parse()
            .map_err(|_| wrong(WORKER_SERVER_ADDR, &text, peer::EXPECTED))?;
        let why = format!("{WORKER_SERVER_ADDR} makes this process a worker");
        let text = environment.needed(WORKER_ID, &why)?;
        let rank = text
            .parse()
            .ok()
            .filter(|id| *id < world_size - 1)
            .map(|id: usize| id + 1);
        let Some(rank) = rank else {
            let expected = format!("a whole number below {}, the number of workers", world_size - 1);
            return Err(wrong(WORKER_ID, &text, &expected));
        };
        let port = usize::from(head.port()) + rank;
        let Ok(port) = u16::try_from(port) else {
            let expected = "a port that leaves room above it: worker i listens on the head's port + i + 1";
            return Err(wrong(WORKER_SERVER_ADDR, &head.to_string(), expected));
        };
        Ok(Self {
            rank,
            world_size,
            port,
            head: Some(head),
        })
    }
}
