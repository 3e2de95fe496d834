//! Peers of a deployment that was written for the engine's multi-node mode: one head, and workers that know its address.
//!
//! Every worker connects to the head and says on which port it listens; the head learns its address from the connection.
//! When all are there, the head tells each worker the addresses of all workers. Its own they know already.
//!
//! A worker listens on the head's port plus its rank, so that a firewall can be opened for it beforehand and several ranks
//! fit one host.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::entry::{dial, read_entry, Entry, PAUSE};

/// A worker says its port at once: a silent stranger must not use up the time of the others.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// This process's place among head and workers.
#[derive(Debug, Clone)]
pub struct StarConfig {
    /// 0 is the head.
    pub rank: usize,
    pub world_size: usize,
    /// Where this rank listens.
    pub port: u16,
    /// `host:port` of the head; `None` on the head itself.
    pub head: Option<String>,
}

/// The full mesh behind a star: see [`RingTopology`](super::ring::RingTopology).
#[derive(Debug)]
pub struct StarTopology {
    pub peers: Vec<String>,
    pub listener: TcpListener,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StarError {
    #[error("rank {rank} cannot listen on {address}: {reason}")]
    Listen {
        rank: usize,
        address: SocketAddr,
        reason: String,
    },
    #[error("the head at {address}: {reason}")]
    Head { address: String, reason: String },
    #[error("the head at {address} did not answer within {waited:.1?}: {last}")]
    HeadAbsent {
        address: String,
        waited: Duration,
        last: String,
    },
    #[error("worker {} (rank {rank}) did not connect to port {port} within {waited:.1?}", .rank - 1)]
    WorkerAbsent { rank: usize, port: u16, waited: Duration },
    #[error("rank {sender} expects a world size of {got}, here it is {expected}")]
    WorldSize { sender: usize, expected: usize, got: usize },
    #[error("rank {rank} left while addresses were told: {reason}")]
    Broken { rank: usize, reason: String },
}

impl StarTopology {
    /// Learns all addresses; head and workers must call this within `timeout`.
    ///
    /// `open` allows addresses beyond loopback, as for a group with a secret.
    ///
    /// # Errors
    /// A rank that is absent, leaves or counts the ranks differently, and an address that cannot or may not be used.
    pub fn learn(config: &StarConfig, timeout: Duration, open: bool) -> Result<Self, StarError> {
        let ip = if open {
            Ipv4Addr::UNSPECIFIED
        } else {
            Ipv4Addr::LOCALHOST
        };
        let address = SocketAddr::new(ip.into(), config.port);
        let listener = TcpListener::bind(address).map_err(|error| StarError::Listen {
            rank: config.rank,
            address,
            reason: error.to_string(),
        })?;
        let meeting = Meeting {
            config,
            started: Instant::now(),
            timeout,
        };
        let peers = match &config.head {
            None => meeting.as_head(&listener)?,
            Some(head) => meeting.as_worker(&resolve(head, open)?, head)?,
        };
        Ok(Self {
            peers: peers.iter().map(SocketAddr::to_string).collect(),
            listener,
        })
    }
}

struct Meeting<'a> {
    config: &'a StarConfig,
    started: Instant,
    timeout: Duration,
}

impl Meeting<'_> {
    fn as_head(&self, listener: &TcpListener) -> Result<Vec<SocketAddr>, StarError> {
        let mut workers = self.gather(listener)?;
        let mut own = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut peers = vec![SocketAddr::new(own, self.config.port)];
        for (rank, (stream, address)) in (1..).zip(&workers) {
            let local = stream
                .local_addr()
                .map_err(|error| broken(rank, &error))?
                .ip()
                .to_canonical();
            if own.is_loopback() {
                own = local;
            }
            peers.push(*address);
        }
        peers[0].set_ip(own);
        for (rank, (stream, _)) in (1..).zip(&mut workers) {
            for (of, address) in peers.iter().enumerate().skip(1) {
                let entry = self.entry(of, *address);
                stream
                    .write_all(&entry.encode())
                    .map_err(|error| broken(rank, &error))?;
            }
        }
        Ok(peers)
    }

    /// The connection and the address of each worker, in the order of ranks.
    fn gather(&self, listener: &TcpListener) -> Result<Vec<(TcpStream, SocketAddr)>, StarError> {
        let mut workers: Vec<Option<(TcpStream, SocketAddr)>> = (1..self.config.world_size).map(|_| None).collect();
        let system = |error: io::Error| broken(0, &error);
        listener.set_nonblocking(true).map_err(system)?;
        while let Some(absent) = workers.iter().position(Option::is_none) {
            if self.remaining().is_zero() {
                return Err(StarError::WorkerAbsent {
                    rank: absent + 1,
                    port: self.config.port,
                    waited: self.started.elapsed(),
                });
            }
            let Ok((mut stream, from)) = listener.accept() else {
                std::thread::sleep(PAUSE.min(self.remaining()));
                continue;
            };
            stream.set_nonblocking(false).map_err(system)?;
            match read_entry(&mut stream, Instant::now() + self.remaining().min(FIRST_WORD)) {
                Ok(mut entry) => {
                    self.check(&entry)?;
                    let slot = (entry.rank as usize).checked_sub(1).and_then(|at| workers.get_mut(at));
                    let Some(slot) = slot else {
                        let outside = format!("from {from}, which is no worker of {}", self.config.world_size);
                        return Err(broken(entry.rank as usize, &io::Error::other(outside)));
                    };
                    entry.as_seen_from(from.ip().to_canonical());
                    // One that was started again replaces the one before it.
                    if slot.replace((stream, entry.address)).is_some() {
                        tracing::warn!("worker {} connected again, from {from}", entry.rank - 1);
                    }
                }
                Err(error) => tracing::debug!("dropped a connection from {from}: {error}"),
            }
        }
        Ok(workers.into_iter().flatten().collect())
    }

    fn as_worker(&self, head: &SocketAddr, name: &str) -> Result<Vec<SocketAddr>, StarError> {
        let own = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.config.port);
        let deadline = self.started + self.timeout;
        let dialled = dial(head, &self.entry(self.config.rank, own), deadline);
        let mut stream = dialled.map_err(|error| StarError::HeadAbsent {
            address: name.to_owned(),
            waited: self.started.elapsed(),
            last: error.to_string(),
        })?;
        let mut peers = vec![*head; self.config.world_size];
        for (rank, peer) in peers.iter_mut().enumerate().skip(1) {
            let mut entry = read_entry(&mut stream, deadline).map_err(|error| StarError::Head {
                address: name.to_owned(),
                reason: format!("it has not told the address of rank {rank}: {error}"),
            })?;
            self.check(&entry)?;
            if entry.rank as usize != rank {
                let reason = format!("it told the address of rank {}, expected rank {rank}", entry.rank);
                return Err(StarError::Head {
                    address: name.to_owned(),
                    reason,
                });
            }
            entry.as_seen_from(head.ip());
            *peer = entry.address;
        }
        Ok(peers)
    }

    fn entry(&self, rank: usize, address: SocketAddr) -> Entry {
        Entry {
            sender: self.config.rank as u32,
            world_size: self.config.world_size as u32,
            rank: rank as u32,
            address,
        }
    }

    fn check(&self, entry: &Entry) -> Result<(), StarError> {
        let (expected, got) = (self.config.world_size, entry.world_size as usize);
        if got != expected {
            return Err(StarError::WorldSize {
                sender: entry.sender as usize,
                expected,
                got,
            });
        }
        Ok(())
    }

    fn remaining(&self) -> Duration {
        self.timeout.saturating_sub(self.started.elapsed())
    }
}

fn resolve(head: &str, open: bool) -> Result<SocketAddr, StarError> {
    let wrong = |reason: String| StarError::Head {
        address: head.to_owned(),
        reason,
    };
    let mut found = head.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    let address = found
        .next()
        .ok_or_else(|| wrong("the name has no address".to_owned()))?;
    if !open && !address.ip().is_loopback() {
        return Err(wrong(
            "it is beyond loopback, and the group has no secret: give all ranks the same one (TPQ_SECRET_FILE, \
             `group.secret_file`), or set `group.insecure: true` on a network where every host is trusted"
                .to_owned(),
        ));
    }
    Ok(address)
}

fn broken(rank: usize, error: &io::Error) -> StarError {
    StarError::Broken {
        rank,
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn config(rank: usize, world_size: usize, head: u16) -> StarConfig {
        StarConfig {
            rank,
            world_size,
            port: head + rank as u16,
            head: (rank > 0).then(|| format!("127.0.0.1:{head}")),
        }
    }

    /// The first of `count` ports in a row that were free a moment ago.
    fn free_row(count: u16) -> u16 {
        let free = |port: &u16| (*port..port + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
        let start = 20_000 + (std::process::id() % 9_000) as u16;
        (start..u16::MAX - count).find(free).expect("free ports in a row")
    }

    #[test]
    fn head_and_workers_learn_the_same_addresses_whoever_comes_first() {
        for world_size in [2, 3, 5] {
            let head = free_row(world_size as u16);
            let learn = |rank| {
                let config = config(rank, world_size, head);
                thread::spawn(move || StarTopology::learn(&config, PATIENCE, false).map(|found| found.peers))
            };
            // Workers before the head, and the last worker first.
            let ranks: Vec<_> = (0..world_size).rev().map(learn).collect();
            let expected: Vec<_> = (0..world_size as u16)
                .map(|rank| format!("127.0.0.1:{}", head + rank))
                .collect();
            for rank in ranks {
                assert_eq!(rank.join().unwrap().unwrap(), expected);
            }
        }
    }

    #[test]
    fn a_worker_that_does_not_come_is_named_though_strangers_call() {
        let head = free_row(3);
        let present = config(2, 3, head);
        let worker = thread::spawn(move || StarTopology::learn(&present, PATIENCE, false));
        let stranger = thread::spawn(move || {
            while TcpStream::connect(("127.0.0.1", head))
                .and_then(|mut s| s.write_all(b"GET / HTTP/1.1\r\n\r\n"))
                .is_err()
            {
                thread::sleep(PAUSE);
            }
        });
        let error = StarTopology::learn(&config(0, 3, head), Duration::from_secs(1), false).unwrap_err();
        assert!(matches!(error, StarError::WorkerAbsent { rank: 1, .. }), "{error}");
        assert!(error.to_string().contains("worker 0 (rank 1)"), "{error}");
        let error = worker.join().unwrap().unwrap_err();
        assert!(matches!(error, StarError::Head { .. }), "{error}");
        stranger.join().unwrap();
    }

    #[test]
    fn ranks_that_count_differently_name_both_numbers() {
        let head = free_row(3);
        let other = config(1, 3, head);
        let worker = thread::spawn(move || StarTopology::learn(&other, PATIENCE, false));
        let error = StarTopology::learn(&config(0, 2, head), PATIENCE, false).unwrap_err();
        assert!(
            matches!(
                error,
                StarError::WorldSize {
                    sender: 1,
                    expected: 2,
                    got: 3
                }
            ),
            "{error}"
        );
        assert!(worker.join().unwrap().is_err());
    }

    #[test]
    fn a_head_beyond_loopback_needs_a_secret() {
        let far = StarConfig {
            head: Some("192.0.2.1:7700".to_owned()),
            ..config(1, 2, free_row(2))
        };
        let error = StarTopology::learn(&far, PATIENCE, false).unwrap_err().to_string();
        assert!(
            error.contains("192.0.2.1:7700") && error.contains("TPQ_SECRET_FILE"),
            "{error}"
        );
    }
}
