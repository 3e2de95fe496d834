//! Peers of a deployment that was written for the engine's `ring` backend.
//!
//! A RING_CONFIG file names this rank's port and its right neighbour only. [`RingTopology::learn`] turns that into the
//! full list: every rank connects to its right neighbour and passes on the addresses it has heard, N-1 times.
//!
//! ```text
//! {"master_ip": "10.0.0.1", "master_port": 1234, "port": 1235, "right_port": 1236, "right_ip": "10.0.0.2",
//!  "rank": 1, "world_size": 3}
//! ```
//! A missing ip means this host, as in the engine. That is true for the rank that says so, so an address on "this
//! host" is replaced by the sender's address when it crosses to another host.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::entry::{dial, read_entry, Entry, PAUSE};
use crate::transport::MAX_RANKS;

/// A RING_CONFIG file. `master_ip` and `master_port` are read and not needed: the mesh has no master.
#[derive(Debug, Clone, Deserialize)]
pub struct RingConfig {
    pub master_ip: Option<String>,
    pub master_port: u16,
    pub port: u16,
    pub right_port: u16,
    pub right_ip: Option<String>,
    pub rank: usize,
    pub world_size: usize,
    #[serde(skip)]
    pub path: PathBuf,
}

/// The full mesh behind a ring: what [`MeshConfig`](super::MeshConfig) needs, and the open listener for
/// [`TcpMesh::connect_on`](super::TcpMesh::connect_on).
#[derive(Debug)]
pub struct RingTopology {
    pub rank: usize,
    pub world_size: usize,
    pub peers: Vec<String>,
    pub listener: TcpListener,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    #[error("RING_CONFIG {}: cannot read it: {reason}", .path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("RING_CONFIG {}: {reason}", .path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error("RING_CONFIG {}: `{key}`: {reason}", .path.display())]
    Key {
        path: PathBuf,
        key: &'static str,
        reason: String,
    },
    #[error("RING_CONFIG {}: `right_ip`, `right_port`: rank {rank} at {address} did not answer within {waited:.1?}: {last}", .path.display())]
    RightAbsent {
        path: PathBuf,
        rank: usize,
        address: String,
        waited: Duration,
        last: String,
    },
    #[error("RING_CONFIG {}: `port`: rank {rank} did not connect to port {port} within {waited:.1?}", .path.display())]
    LeftAbsent {
        path: PathBuf,
        rank: usize,
        port: u16,
        waited: Duration,
    },
    #[error("RING_CONFIG {}: rank {rank} left while addresses were passed round: {reason}", .path.display())]
    Broken { path: PathBuf, rank: usize, reason: String },
}

impl RingConfig {
    /// # Errors
    /// A file that cannot be read, is not such JSON, or has a rank outside the world.
    pub fn load(path: &Path) -> Result<Self, RingError> {
        let bytes = std::fs::read(path).map_err(|e| RingError::Unreadable {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        let mut config: Self = serde_json::from_slice(&bytes).map_err(|e| RingError::Invalid {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        config.path = path.to_owned();
        if !(1..=MAX_RANKS).contains(&config.world_size) {
            return Err(config.key("world_size", format!("{} is not in 1..={MAX_RANKS}", config.world_size)));
        }
        if config.rank >= config.world_size {
            return Err(config.key(
                "rank",
                format!("{} is not below world_size {}", config.rank, config.world_size),
            ));
        }
        Ok(config)
    }

    fn key(&self, key: &'static str, reason: String) -> RingError {
        RingError::Key {
            path: self.path.clone(),
            key,
            reason,
        }
    }

    fn right(&self) -> usize {
        (self.rank + 1) % self.world_size
    }

    fn left(&self) -> usize {
        (self.rank + self.world_size - 1) % self.world_size
    }

    fn right_address(&self, insecure: bool) -> Result<SocketAddr, RingError> {
        let host = match self.right_ip.as_deref() {
            None | Some("0.0.0.0") => "127.0.0.1",
            Some(host) => host,
        };
        let resolved = (host, self.right_port).to_socket_addrs();
        let mut found = resolved.map_err(|e| self.key("right_ip", format!("cannot resolve {host}: {e}")))?;
        let address = found
            .next()
            .ok_or_else(|| self.key("right_ip", format!("{host} has no address")))?;
        if !insecure && !address.ip().is_loopback() {
            let reason = format!(
                "{address} is not a loopback address, and the group has no secret: give all ranks the same one \
                 (TPQ_SECRET_FILE, `group.secret_file`), or set `insecure: true` on a network where every host is trusted"
            );
            return Err(self.key("right_ip", reason));
        }
        Ok(address)
    }

    fn listen(&self, insecure: bool) -> Result<TcpListener, RingError> {
        // On all interfaces only where that is allowed: the file does not say where the left neighbour is.
        let ip = if insecure {
            Ipv4Addr::UNSPECIFIED
        } else {
            Ipv4Addr::LOCALHOST
        };
        TcpListener::bind((ip, self.port))
            .map_err(|e| self.key("port", format!("cannot listen on {ip}:{}: {e}", self.port)))
    }
}

impl RingTopology {
    /// Learns all addresses; every rank of the ring must call this within `timeout`.
    ///
    /// # Errors
    /// A neighbour that is absent or leaves, an address that cannot or may not be used. Each names the file and key.
    pub fn learn(config: &RingConfig, timeout: Duration, insecure: bool) -> Result<Self, RingError> {
        let listener = config.listen(insecure)?;
        let peers = if config.world_size == 1 {
            vec![format!("127.0.0.1:{}", config.port)]
        } else {
            let pass = Pass {
                config,
                deadline: Instant::now() + timeout,
                started: Instant::now(),
            };
            pass.run(&listener, config.right_address(insecure)?)?
        };
        Ok(Self {
            rank: config.rank,
            world_size: config.world_size,
            peers,
            listener,
        })
    }
}

/// One round trip of all addresses.
struct Pass<'a> {
    config: &'a RingConfig,
    started: Instant,
    deadline: Instant,
}

impl Pass<'_> {
    fn run(&self, listener: &TcpListener, right: SocketAddr) -> Result<Vec<String>, RingError> {
        let config = self.config;
        let mut addresses: Vec<Option<SocketAddr>> = vec![None; config.world_size];
        addresses[config.right()] = Some(right);
        let (sender, world_size) = (config.rank as u32, config.world_size as u32);
        let mut entry = Entry {
            sender,
            world_size,
            rank: config.right() as u32,
            address: right,
        };
        // The first message goes out before anything is awaited, so a ring of waiting ranks cannot form; 36 bytes
        // always fit the socket's buffer.
        let dialled = dial(&right, &entry, self.deadline);
        let mut to_right = dialled.map_err(|error| RingError::RightAbsent {
            path: config.path.clone(),
            rank: config.right(),
            address: right.to_string(),
            waited: self.started.elapsed(),
            last: error.to_string(),
        })?;
        let mut from_left = self.accept(listener, &mut entry)?;
        addresses[entry.rank as usize] = Some(entry.address);
        for _ in 2..config.world_size {
            entry.sender = sender;
            self.send(&mut to_right, &entry)?;
            entry = self.receive(&mut from_left)?;
            addresses[entry.rank as usize] = Some(entry.address);
        }
        let missing = |rank| RingError::Broken {
            path: config.path.clone(),
            rank,
            reason: "its address never came".into(),
        };
        addresses
            .iter()
            .enumerate()
            .map(|(rank, a)| a.map(|a| a.to_string()).ok_or_else(|| missing(rank)))
            .collect()
    }

    /// Waits for the left neighbour; others (a scan, a rank that is further and already joins the mesh) are dropped.
    fn accept(&self, listener: &TcpListener, entry: &mut Entry) -> Result<TcpStream, RingError> {
        let left = self.config.left();
        let system = |e: io::Error| self.config.key("port", e.to_string());
        listener.set_nonblocking(true).map_err(system)?;
        while !self.remaining().is_zero() {
            let Ok((mut stream, _)) = listener.accept() else {
                std::thread::sleep(PAUSE.min(self.remaining()));
                continue;
            };
            stream.set_nonblocking(false).map_err(system)?;
            // Its first entry follows at once: a silent stranger must not use up the time of the neighbour.
            let patience = Instant::now() + self.remaining().min(Duration::from_secs(2));
            match read_entry(&mut stream, patience) {
                Ok(first) if first.sender as usize == left => {
                    *entry = self.check(first, &stream)?;
                    return Ok(stream);
                }
                Ok(other) => {
                    let reason = format!(
                        "rank {} connected, expected its left neighbour, rank {left}",
                        other.sender
                    );
                    return Err(self.config.key("rank", reason));
                }
                Err(error) => tracing::debug!("dropped a connection to the ring: {error}"),
            }
        }
        let (path, port) = (self.config.path.clone(), self.config.port);
        Err(RingError::LeftAbsent {
            path,
            rank: left,
            port,
            waited: self.started.elapsed(),
        })
    }

    fn send(&self, to_right: &mut TcpStream, entry: &Entry) -> Result<(), RingError> {
        to_right
            .write_all(&entry.encode())
            .map_err(|e| self.broken(self.config.right(), &e))
    }

    fn receive(&self, from_left: &mut TcpStream) -> Result<Entry, RingError> {
        let left = self.config.left();
        let entry = read_entry(from_left, self.deadline).map_err(|e| self.broken(left, &e))?;
        self.check(entry, from_left)
    }

    fn check(&self, mut entry: Entry, from: &TcpStream) -> Result<Entry, RingError> {
        let world_size = self.config.world_size;
        if entry.world_size as usize != world_size {
            let reason = format!("{world_size} here, {} at rank {}", entry.world_size, entry.sender);
            return Err(self.config.key("world_size", reason));
        }
        if entry.rank as usize >= world_size {
            return Err(self.broken(
                entry.sender as usize,
                &io::Error::other("it sent a rank outside the ring"),
            ));
        }
        let sender = from.peer_addr().map_err(|e| self.broken(entry.sender as usize, &e))?;
        entry.as_seen_from(sender.ip());
        Ok(entry)
    }

    fn broken(&self, rank: usize, error: &io::Error) -> RingError {
        RingError::Broken {
            path: self.config.path.clone(),
            rank,
            reason: error.to_string(),
        }
    }

    fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}
