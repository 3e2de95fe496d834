//! Which rank this process is, and where the others are.
//!
//! First that answers wins: the environment (`TPQ_RANK` with `TPQ_PEERS`, as `tpq launch` sets them), `group` in the file,
//! `RING_CONFIG` or `MISTRALRS_MN_*` of an existing mistral.rs deployment, a single process.

use super::defaults::MAX_WORLD_SIZE;
use super::error::ConfigError;
use super::multi_node::{self, MultiNode};
use super::peer::{self, PeerAddr};
use super::plan::{Group, Plan};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

/// Set by `tpq launch`, as the next two.
pub(crate) const RANK: &str = "TPQ_RANK";
pub(crate) const WORLD_SIZE: &str = "TPQ_WORLD_SIZE";
pub(crate) const PEERS: &str = "TPQ_PEERS";
/// Set to 1 by `tpq launch --restart`.
pub(crate) const REJOIN: &str = "TPQ_REJOIN";
/// The secret itself, and the path of a file that holds it.
pub(super) const SECRET: &str = "TPQ_SECRET";
pub(super) const SECRET_FILE: &str = "TPQ_SECRET_FILE";
/// For hosts whose other settings already carry the engine's prefix.
const RANK_ALIAS: &str = "MISTRALRS_TPQ_RANK";
const RING_CONFIG: &str = "RING_CONFIG";

#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Topology {
    /// No other rank; every exchange is the identity.
    Single,
    Group(Membership),
    /// The path in `RING_CONFIG`; it names neighbours only, so resolving it takes a conversation with them.
    Ring(PathBuf),
    /// From the variables MISTRALRS_MN_*: workers know the head's address only, so resolving it takes a conversation too.
    MultiNode(MultiNode),
}

/// A place in a group whose members are all known.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Membership {
    /// Below `peers.len()`.
    pub rank: usize,
    /// Index = rank. A group of one is allowed: it tests a deployment file without a second host.
    pub peers: Vec<PeerAddr>,
    pub source: TopologySource,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopologySource {
    Environment,
    File,
}

impl Membership {
    pub fn world_size(&self) -> usize {
        self.peers.len()
    }
}

/// The environment variables the topology depends on; a value of its own so that tests need not change the process's.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<String, OsString>,
}

/// Names only: one of the values is the secret.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl Environment {
    pub fn from_process() -> Self {
        let names = [
            RANK,
            RANK_ALIAS,
            PEERS,
            WORLD_SIZE,
            RING_CONFIG,
            REJOIN,
            SECRET,
            SECRET_FILE,
            multi_node::GLOBAL_WORLD_SIZE,
            multi_node::LOCAL_WORLD_SIZE,
            multi_node::HEAD_NUM_WORKERS,
            multi_node::HEAD_PORT,
            multi_node::WORKER_SERVER_ADDR,
            multi_node::WORKER_ID,
        ];
        names
            .into_iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)))
            .collect()
    }

    /// A variable set to nothing counts as not set: that is how compose files and unit files blank one.
    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables
            .get(name)
            .map(OsString::as_os_str)
            .filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Option<String> {
        // A lossy copy of a non-Unicode value fails the number or address check, with the value in the message.
        self.get(name).map(|value| value.to_string_lossy().trim().to_owned())
    }

    pub(super) fn needed(&self, name: &str, why: &str) -> Result<String, ConfigError> {
        self.text(name).ok_or_else(|| ConfigError::EnvironmentMissing {
            variable: name.to_owned(),
            why: why.to_owned(),
        })
    }

    pub(super) fn count(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| wrong(name, &text, "a whole number"))
    }

    /// The rank and the variable it came from.
    fn rank(&self) -> Result<Option<(usize, &'static str)>, ConfigError> {
        for name in [RANK, RANK_ALIAS] {
            if let Some(rank) = self.count(name)? {
                return Ok(Some((rank, name)));
            }
        }
        Ok(None)
    }

    fn peers(&self) -> Result<Option<Vec<PeerAddr>>, ConfigError> {
        let Some(text) = self.text(PEERS) else { return Ok(None) };
        let mut peers: Vec<PeerAddr> = Vec::new();
        for item in text.split(',') {
            let peer: PeerAddr = item.parse().map_err(|_| {
                wrong(
                    PEERS,
                    &text,
                    &format!("addresses separated by commas; `{item}` is not {}", peer::EXPECTED),
                )
            })?;
            if let Some(first) = peers.iter().position(|other| *other == peer) {
                let expected = format!(
                    "an address of its own for each rank; ranks {first} and {} share `{peer}`",
                    peers.len()
                );
                return Err(wrong(PEERS, &text, &expected));
            }
            peers.push(peer);
        }
        if peers.len() > MAX_WORLD_SIZE {
            return Err(wrong(PEERS, &text, &format!("at most {MAX_WORLD_SIZE} ranks")));
        }
        Ok(Some(peers))
    }
}

impl<K: Into<String>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self {
            variables: pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        }
    }
}

impl Plan {
    /// Decides which rank this process is.
    ///
    /// # Errors
    /// A rank outside the group, a rank without a group and a group without a rank, malformed variables, and addresses
    /// beyond loopback without a secret or `group.insecure`.
    pub fn topology(&self, environment: &Environment) -> Result<Topology, ConfigError> {
        let rank = environment.rank()?;
        let membership = match (environment.peers()?, &self.group) {
            (Some(peers), _) => environment_member(rank, peers)?,
            (None, Some(group)) => self.file_member(rank, group)?,
            (None, None) => return without_peers(rank, environment),
        };
        self.check(&membership, environment)?;
        Ok(Topology::Group(membership))
    }

    /// Whether the ranks form the group anew when one was lost: `group.rejoin`, else what `tpq launch --restart` says, else no.
    pub fn rejoins(&self, environment: &Environment) -> bool {
        self.links
            .rejoin
            .unwrap_or_else(|| environment.get(REJOIN).is_some_and(|value| value != "0"))
    }

    fn file_member(&self, rank: Option<(usize, &'static str)>, group: &Group) -> Result<Membership, ConfigError> {
        let peers_from = self.peers_from(TopologySource::File);
        let (rank, rank_from) = match (rank, group.rank) {
            (Some((rank, variable)), _) => (rank, variable.to_owned()),
            (None, Some(rank)) => (rank, "`group.rank`".to_owned()),
            (None, None) => {
                let why = format!(
                    "{peers_from} lists {} ranks; say which one this process is",
                    group.peers.len()
                );
                return Err(ConfigError::EnvironmentMissing {
                    variable: RANK.to_owned(),
                    why,
                });
            }
        };
        member(rank, rank_from, group.peers.clone(), TopologySource::File, peers_from)
    }

    fn check(&self, membership: &Membership, environment: &Environment) -> Result<(), ConfigError> {
        let peers_from = self.peers_from(membership.source);
        if let Some(announced) = environment
            .count(WORLD_SIZE)?
            .filter(|size| *size != membership.world_size())
        {
            let expected = format!("{}, the number of addresses in {peers_from}", membership.world_size());
            return Err(wrong(WORLD_SIZE, &announced.to_string(), &expected));
        }
        let exposed = membership.peers.iter().position(|peer| !peer.is_loopback());
        match exposed {
            Some(rank) if !self.links.insecure && self.secret(environment)?.is_none() => {
                Err(ConfigError::Unprotected {
                    rank,
                    peer: membership.peers[rank].to_string(),
                    peers_from,
                })
            }
            _ => Ok(()),
        }
    }

    fn peers_from(&self, source: TopologySource) -> String {
        match source {
            TopologySource::Environment => PEERS.to_owned(),
            TopologySource::File => format!("`group.peers` in {}", self.origin.display()),
        }
    }
}

fn environment_member(rank: Option<(usize, &'static str)>, peers: Vec<PeerAddr>) -> Result<Membership, ConfigError> {
    let Some((rank, variable)) = rank else {
        let why = format!("{PEERS} lists {} ranks; say which one this process is", peers.len());
        return Err(ConfigError::EnvironmentMissing {
            variable: RANK.to_owned(),
            why,
        });
    };
    member(
        rank,
        variable.to_owned(),
        peers,
        TopologySource::Environment,
        PEERS.to_owned(),
    )
}

fn member(
    rank: usize,
    rank_from: String,
    peers: Vec<PeerAddr>,
    source: TopologySource,
    peers_from: String,
) -> Result<Membership, ConfigError> {
    if rank >= peers.len() {
        return Err(ConfigError::RankOutsideGroup {
            rank,
            rank_from,
            world_size: peers.len(),
            peers_from,
        });
    }
    Ok(Membership { rank, peers, source })
}

fn without_peers(rank: Option<(usize, &'static str)>, environment: &Environment) -> Result<Topology, ConfigError> {
    if let Some(path) = environment.get(RING_CONFIG) {
        return Ok(Topology::Ring(PathBuf::from(path)));
    }
    if let Some(node) = MultiNode::from(environment)? {
        return Ok(match node.world_size {
            1 => Topology::Single,
            _ => Topology::MultiNode(node),
        });
    }
    match rank {
        None => Ok(Topology::Single),
        // Running alone here would give each host a full model and no error.
        Some((rank, variable)) => Err(ConfigError::EnvironmentMissing {
            variable: PEERS.to_owned(),
            why: format!("{variable} is {rank}, but neither {PEERS} nor `group.peers` in the file says where the other ranks are"),
        }),
    }
}

pub(super) fn wrong(variable: &str, value: &str, expected: &str) -> ConfigError {
    ConfigError::Environment {
        variable: variable.to_owned(),
        value: value.to_owned(),
        expected: expected.to_owned(),
    }
}
