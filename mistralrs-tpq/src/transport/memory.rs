//! Ranks as threads of one process, with faults on request: what tests of everything above use.
//!
//! Behaves as [`TcpMesh`](super::tcp::TcpMesh) does, down to who is blamed when several ranks leave at once; the
//! collective tests run the same suite over both.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{
    check_ops, check_peer, Arrival, Patience, RecvOp, Rejected, SendOp, Traffic, Transport, TransportError, MAX_RANKS,
};

/// Something that goes wrong with the `frame`-th send (from 0) of rank `from` to rank `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub from: usize,
    pub to: usize,
    pub frame: u64,
    pub kind: FaultKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The frame arrives that much later.
    Delay(Duration),
    /// It never arrives.
    Drop,
    /// Only its first bytes arrive.
    Truncate(usize),
    /// The byte at this offset arrives with all bits flipped.
    Corrupt(usize),
    /// The sender dies instead of sending it, without a goodbye.
    Die,
}

/// One rank of a group of threads.
#[derive(Debug)]
pub struct MemoryTransport {
    rank: usize,
    group: Arc<Group>,
    turn: Mutex<()>,
    frames: Vec<AtomicU64>,
}

#[derive(Debug)]
struct Group {
    ranks: Vec<Seat>,
    faults: Vec<Fault>,
}

/// What one rank receives into.
#[derive(Debug, Default)]
struct Seat {
    inbox: Mutex<Inbox>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inbox {
    peers: Vec<FromPeer>,
    error: Option<TransportError>,
    /// Counts changes, so that a receiver that looked at each peer in turn can tell whether to look again.
    generation: u64,
}

#[derive(Debug, Default)]
struct FromPeer {
    segments: VecDeque<Segment>,
    messages: VecDeque<Vec<u8>>,
    left: Option<String>,
    traffic: Traffic,
}

#[derive(Debug)]
struct Segment {
    due: Instant,
    bytes: Vec<u8>,
    read: usize,
}

/// A group of `world_size` ranks, to be handed to one thread each.
///
/// # Panics
/// When `world_size` is 0 or above [`MAX_RANKS`].
pub fn group(world_size: usize) -> Vec<MemoryTransport> {
    group_with(world_size, Vec::new())
}

/// As [`group`], with things going wrong.
///
/// # Panics
/// As [`group`].
pub fn group_with(world_size: usize, faults: Vec<Fault>) -> Vec<MemoryTransport> {
    assert!((1..=MAX_RANKS).contains(&world_size), "between 1 and {MAX_RANKS} ranks");
    let seat = |_| {
        let peers = (0..world_size).map(|_| FromPeer::default()).collect();
        Seat {
            inbox: Mutex::new(Inbox {
                peers,
                ..Inbox::default()
            }),
            changed: Condvar::new(),
        }
    };
    let group = Arc::new(Group {
        ranks: (0..world_size).map(seat).collect(),
        faults,
    });
    (0..world_size)
        .map(|rank| MemoryTransport {
            rank,
            group: Arc::clone(&group),
            turn: Mutex::new(()),
            frames: (0..world_size).map(|_| AtomicU64::new(0)).collect(),
        })
        .collect()
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inbox)) {
        let mut inbox = self.lock();
        change(&mut inbox);
        inbox.generation += 1;
        self.changed.notify_all();
    }

    fn wait<'a>(&'a self, inbox: MutexGuard<'a, Inbox>, patience: Duration) -> MutexGuard<'a, Inbox> {
        let seen = inbox.generation;
        let waited = self
            .changed
            .wait_timeout_while(inbox, patience, |inbox| inbox.generation == seen);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl MemoryTransport {
    fn seat(&self) -> &Seat {
        &self.group.ranks[self.rank]
    }

    fn error(&self) -> Option<TransportError> {
        self.seat().lock().error.clone()
    }

    /// Ends this rank with `error` unless it has ended before, and tells the others.
    fn fail(&self, error: TransportError) -> TransportError {
        if let Some(first) = self.error() {
            return first;
        }
        self.seat().change(|inbox| inbox.error = Some(error.clone()));
        let blamed = error.rank().unwrap_or(self.rank);
        for (rank, seat) in self
            .group
            .ranks
            .iter()
            .enumerate()
            .filter(|(rank, _)| *rank != self.rank)
        {
            seat.change(|inbox| {
                if blamed == self.rank {
                    inbox.peers[self.rank].left = Some(format!("it left ({error})"));
                    return;
                }
                let culprit = if blamed == rank { self.rank } else { blamed };
                inbox.error.get_or_insert(TransportError::Reported {
                    rank: culprit,
                    by: self.rank,
                    reason: error.to_string(),
                });
            });
        }
        error
    }

    fn die(&self) -> TransportError {
        let error = TransportError::Closed { rank: self.rank };
        self.seat().change(|inbox| inbox.error = Some(error.clone()));
        for (_, seat) in self
            .group
            .ranks
            .iter()
            .enumerate()
            .filter(|(rank, _)| *rank != self.rank)
        {
            let reason = "connection closed".to_owned();
            let lost = TransportError::PeerLost {
                rank: self.rank,
                waited: Duration::ZERO,
                reason,
            };
            seat.change(|inbox| {
                inbox.error.get_or_insert(lost);
            });
        }
        error
    }

    fn push(&self, op: &SendOp<'_>) -> Result<(), TransportError> {
        let frame = self.frames[op.to].fetch_add(1, Ordering::Relaxed);
        let mut bytes = op.parts.concat();
        let sent = bytes.len() as u64;
        let mut due = Instant::now();
        let here = |fault: &&Fault| (fault.from, fault.to, fault.frame) == (self.rank, op.to, frame);
        for fault in self.group.faults.iter().filter(here) {
            match fault.kind {
                FaultKind::Delay(by) => due += by,
                FaultKind::Drop => bytes.clear(),
                FaultKind::Truncate(len) => bytes.truncate(len),
                FaultKind::Corrupt(at) => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = !*byte),
                FaultKind::Die => return Err(self.die()),
            }
        }
        self.seat().lock().peers[op.to].traffic.sent += sent;
        self.group.ranks[op.to].change(|inbox| {
            inbox.peers[self.rank]
                .segments
                .push_back(Segment { due, bytes, read: 0 })
        });
        Ok(())
    }

    /// Moves what is there into `op`, from byte `at` on; returns the new position.
    fn pull(&self, op: &mut RecvOp<'_>, mut at: usize) -> usize {
        let (head, total) = (op.header.len(), op.header.len() + op.payload.len());
        let now = Instant::now();
        let mut inbox = self.seat().lock();
        let peer = &mut inbox.peers[op.from];
        while let Some(segment) = peer
            .segments
            .front_mut()
            .filter(|segment| at < total && segment.due <= now)
        {
            let room = if at < head {
                &mut op.header[at..]
            } else {
                &mut op.payload[at - head..]
            };
            let n = room.len().min(segment.bytes.len() - segment.read);
            room[..n].copy_from_slice(&segment.bytes[segment.read..segment.read + n]);
            segment.read += n;
            at += n;
            peer.traffic.received += n as u64;
            if segment.read == segment.bytes.len() {
                peer.segments.pop_front();
            }
        }
        at
    }

    /// Waits until something changed since `seen`; an error when there is nothing to wait for.
    fn sleep(&self, seen: u64, pending: &[usize], since: Instant, deadline: Duration) -> Result<(), TransportError> {
        let inbox = self.seat().lock();
        if inbox.generation != seen {
            return Ok(());
        }
        if let Some(error) = &inbox.error {
            return Err(error.clone());
        }
        let waited = since.elapsed();
        let gone = pending.iter().find_map(|&rank| {
            let peer = &inbox.peers[rank];
            peer.left
                .clone()
                .filter(|_| peer.segments.is_empty())
                .map(|reason| (rank, reason))
        });
        if let Some((rank, reason)) = gone {
            drop(inbox);
            return Err(self.fail(TransportError::PeerLost { rank, waited, reason }));
        }
        if waited >= deadline {
            drop(inbox);
            return Err(self.fail(TransportError::Timeout {
                ranks: pending.to_vec(),
                sending: false,
                waited,
            }));
        }
        let now = Instant::now();
        let due = inbox
            .peers
            .iter()
            .filter_map(|peer| peer.segments.front())
            .map(|segment| segment.due);
        let next = due
            .map(|due| due.saturating_duration_since(now))
            .filter(|wait| !wait.is_zero())
            .min();
        drop(self.seat().wait(inbox, next.unwrap_or(deadline).min(deadline - waited)));
        Ok(())
    }
}

impl Transport for MemoryTransport {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.group.ranks.len()
    }

    fn transfer(
        &self,
        sends: &[SendOp<'_>],
        recvs: &mut [RecvOp<'_>],
        deadline: Duration,
        on_progress: &mut dyn FnMut(Arrival<'_>) -> Result<(), Rejected>,
    ) -> Result<(), TransportError> {
        check_ops(self.rank, self.world_size(), sends, recvs)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = self.error() {
            return Err(error);
        }
        for op in sends {
            self.push(op)?;
        }
        let mut received = [0_usize; MAX_RANKS];
        let mut last_move = Instant::now();
        loop {
            let seen = self.seat().lock().generation;
            let mut moved = false;
            let mut pending = Vec::new();
            for (op, at) in recvs.iter_mut().zip(&mut received) {
                let (head, total) = (op.header.len(), op.header.len() + op.payload.len());
                let before = std::mem::replace(at, self.pull(op, *at));
                let mut tell = |arrival: Arrival<'_>| {
                    on_progress(arrival)
                        .map_err(|Rejected(reason)| self.fail(TransportError::Rejected { rank: op.from, reason }))
                };
                if before < head && *at >= head {
                    tell(Arrival::Header {
                        from: op.from,
                        header: op.header,
                    })?;
                }
                if *at > before && *at > head {
                    let bytes = &op.payload[..*at - head];
                    tell(Arrival::Payload {
                        from: op.from,
                        bytes,
                        complete: *at == total,
                    })?;
                }
                moved |= *at > before;
                if *at < total {
                    pending.push(op.from);
                }
            }
            if pending.is_empty() {
                return Ok(());
            }
            if moved {
                last_move = Instant::now();
            } else {
                self.sleep(seen, &pending, last_move, deadline)?;
            }
        }
    }

    fn send_message(&self, to: usize, body: &[u8]) -> Result<(), TransportError> {
        check_peer(self.rank, self.world_size(), to)?;
        if let Some(error) = self.error() {
            return Err(error);
        }
        self.seat().lock().peers[to].traffic.sent += body.len() as u64;
        self.group.ranks[to].change(|inbox| {
            let peer = &mut inbox.peers[self.rank];
            peer.traffic.received += body.len() as u64;
            peer.messages.push_back(body.to_vec());
        });
        Ok(())
    }

    /// A thread of the same process lives until its transport is dropped, so `Patience::Silence` only ends with it.
    fn recv_message(&self, from: usize, patience: Patience) -> Result<Vec<u8>, TransportError> {
        check_peer(self.rank, self.world_size(), from)?;
        let start = Instant::now();
        let mut inbox = self.seat().lock();
        loop {
            if let Some(error) = &inbox.error {
                return Err(error.clone());
            }
            if let Some(message) = inbox.peers[from].messages.pop_front() {
                return Ok(message);
            }
            let waited = start.elapsed();
            if let Some(reason) = inbox.peers[from].left.clone() {
                drop(inbox);
                return Err(self.fail(TransportError::PeerLost {
                    rank: from,
                    waited,
                    reason,
                }));
            }
            let remaining = match patience {
                Patience::Silence(_) => Duration::from_secs(1),
                Patience::Total(limit) if waited < limit => limit - waited,
                Patience::Total(_) => {
                    return Err(TransportError::NoMessage {
                        rank: from,
                        silent: false,
                        waited,
                    })
                }
            };
            inbox = self.seat().wait(inbox, remaining);
        }
    }

    fn failure(&self) -> Option<TransportError> {
        self.error()
    }

    fn traffic(&self, rank: usize) -> Traffic {
        self.seat()
            .lock()
            .peers
            .get(rank)
            .map(|peer| peer.traffic)
            .unwrap_or_default()
    }

    fn abort(&self, culprit: usize, reason: &str) {
        self.fail(TransportError::Rejected {
            rank: culprit,
            reason: reason.to_owned(),
        });
    }

    fn close(&self) {
        self.fail(TransportError::Closed { rank: self.rank });
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.close();
    }
}
