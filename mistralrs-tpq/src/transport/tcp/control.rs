//! Control messages: senders write in their own thread, one thread per rank reads all peers and sends heartbeats.
//!
//! The thread reads even when nobody asks for a message, for two reasons: heartbeats must not fill the socket, and a
//! peer that dies must be noticed while this rank waits for the data of another one.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::poll::wait;
use super::state::MeshState;
use crate::transport::{Patience, TransportError};
use crate::wire::{ControlKind, ControlPrefix, CONTROL_PREFIX_LEN};

/// A peer's messages that nobody has asked for: beyond this, the thread stops reading it until someone does.
const QUEUE_LIMIT: usize = 64 << 20;

/// How long the thread leaves a peer with a full queue alone.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(20);

/// Longest reason in a goodbye.
const REASON_LIMIT: usize = 4096;

/// Why a rank leaves.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Goodbye {
    /// The rank at fault; the sender itself when it leaves in order.
    pub(super) blamed: usize,
    pub(super) reason: String,
}

impl Goodbye {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = (self.blamed as u32).to_le_bytes().to_vec();
        out.extend(self.reason.bytes().take(REASON_LIMIT));
        out
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let (blamed, reason) = body.split_first_chunk::<4>()?;
        Some(Self {
            blamed: u32::from_le_bytes(*blamed) as usize,
            reason: String::from_utf8_lossy(reason).into_owned(),
        })
    }
}

/// A whole frame; for short ones, messages are sent from two parts.
pub(super) fn encode(kind: ControlKind, body: &[u8]) -> Vec<u8> {
    let mut out = ControlPrefix {
        kind,
        len: body.len() as u32,
    }
    .encode()
    .to_vec();
    out.extend_from_slice(body);
    out
}

/// Sends one message; gives up, and with it the mesh, when the peer takes nothing for `timeout`.
pub(super) fn send(mesh: &MeshState, to: usize, body: &[u8], timeout: Duration) -> Result<(), TransportError> {
    if let Some(error) = mesh.error() {
        return Err(error);
    }
    let limit = mesh.message_limit.min(u32::MAX as usize);
    if body.len() > limit {
        return Err(TransportError::MessageTooLong {
            rank: to,
            len: body.len(),
            limit,
        });
    }
    let no_link = TransportError::ApiMisuse {
        what: "no connection to this rank",
        rank: to,
    };
    let control = mesh.control[to].as_ref().ok_or(no_link)?;
    let prefix = ControlPrefix {
        kind: ControlKind::Message,
        len: body.len() as u32,
    }
    .encode();
    let mut backlog = control.lock();
    let mut last_move = Instant::now();
    let mut at = 0;
    while at < CONTROL_PREFIX_LEN + body.len() {
        let rest = [
            &prefix[at.min(CONTROL_PREFIX_LEN)..],
            &body[at.saturating_sub(CONTROL_PREFIX_LEN)..],
        ];
        let written = match control.flush(&mut backlog) {
            Ok(true) => control.link.write(rest),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        match written {
            Ok(Some(n)) => {
                at += n;
                last_move = Instant::now();
            }
            Ok(None) if last_move.elapsed() >= timeout => {
                drop(backlog);
                let waited = last_move.elapsed();
                return Err(mesh.fail(TransportError::Timeout {
                    ranks: vec![to],
                    sending: true,
                    waited,
                }));
            }
            Ok(None) => {
                let mut fds = [
                    PollFd::new(control.link.as_fd(), PollFlags::POLLOUT),
                    PollFd::new(mesh.data_bell.as_fd(), PollFlags::POLLIN),
                ];
                wait(&mut fds, timeout.saturating_sub(last_move.elapsed()))
                    .map_err(|e| mesh.fail(TransportError::System { reason: e.to_string() }))?;
                if let Some(error) = mesh.error() {
                    return Err(error);
                }
            }
            Err(error) => {
                drop(backlog);
                return Err(mesh.lost(to, last_move, &error));
            }
        }
    }
    Ok(())
}

/// Takes the next message of `from` out of the inbox.
pub(super) fn receive(mesh: &MeshState, from: usize, patience: Patience) -> Result<Vec<u8>, TransportError> {
    let start = Instant::now();
    let mut inbox = mesh.inbox();
    loop {
        if let Some(error) = mesh.error() {
            return Err(error);
        }
        let peer = &mut inbox[from];
        if let Some(message) = peer.messages.pop_front() {
            peer.queued_bytes -= message.len();
            return Ok(message);
        }
        if let Some(reason) = peer.left.clone() {
            drop(inbox);
            return Err(mesh.fail(TransportError::PeerLost {
                rank: from,
                waited: start.elapsed(),
                reason,
            }));
        }
        let (since, limit, silent) = match patience {
            Patience::Total(limit) => (start, limit, false),
            Patience::Silence(limit) => (start.max(peer.last_heard), limit, true),
        };
        let waited = since.elapsed();
        if waited >= limit {
            return Err(TransportError::NoMessage {
                rank: from,
                silent,
                waited,
            });
        }
        inbox = mesh.wait_for_news(inbox, limit - waited);
    }
}

/// The control thread: reads all peers until the mesh ends, also when nobody waits for one of them: a rank that is silent for
/// `timeout` ends the mesh before the next request needs it.
pub(super) fn run(mesh: &MeshState, heartbeat: Duration, timeout: Duration) {
    let mut readers: Vec<Option<Reader>> = mesh
        .control
        .iter()
        .map(|control| control.as_ref().map(|_| Reader::default()))
        .collect();
    let beat = encode(ControlKind::Heartbeat, &[]);
    let mut next_beat = Instant::now() + heartbeat;
    while mesh.error().is_none() {
        let patience = next_beat.saturating_duration_since(Instant::now());
        if let Err(error) = sleep(mesh, &readers, patience) {
            mesh.fail(error);
            return;
        }
        for (rank, slot) in readers.iter_mut().enumerate() {
            let Some(reader) = slot else { continue };
            match reader.read(mesh, rank) {
                Ok(true) => {}
                Ok(false) => *slot = None,
                Err(error) => {
                    mesh.fail(error);
                    return;
                }
            }
        }
        if Instant::now() >= next_beat {
            if let Some(error) = silent_rank(mesh, timeout) {
                mesh.fail(error);
                return;
            }
            mesh.control
                .iter()
                .flatten()
                .for_each(|control| control.try_send(&beat));
            next_beat = Instant::now() + heartbeat;
        }
    }
}

/// The rank that was not heard for the longest time, if that is too long. One whose queue is full is not listened to.
fn silent_rank(mesh: &MeshState, timeout: Duration) -> Option<TransportError> {
    let inbox = mesh.inbox();
    let heard = |rank: &usize| mesh.control[*rank].is_some() && inbox[*rank].queued_bytes < QUEUE_LIMIT;
    let rank = (0..inbox.len())
        .filter(heard)
        .min_by_key(|rank| inbox[*rank].last_heard)?;
    let waited = inbox[rank].last_heard.elapsed();
    (waited > timeout && inbox[rank].left.is_none()).then_some(TransportError::NoMessage {
        rank,
        silent: true,
        waited,
    })
}

fn sleep(mesh: &MeshState, readers: &[Option<Reader>], patience: Duration) -> Result<(), TransportError> {
    let mut fds = vec![PollFd::new(mesh.control_bell.as_fd(), PollFlags::POLLIN)];
    let mut patience = patience;
    let inbox = mesh.inbox();
    for (rank, control) in mesh.control.iter().enumerate() {
        let (Some(control), Some(_)) = (control, &readers[rank]) else {
            continue;
        };
        if inbox[rank].queued_bytes < QUEUE_LIMIT {
            fds.push(PollFd::new(control.link.as_fd(), PollFlags::POLLIN));
        } else {
            patience = patience.min(FULL_QUEUE_PAUSE);
        }
    }
    drop(inbox);
    wait(&mut fds, patience).map_err(|e| TransportError::System { reason: e.to_string() })
}

/// The frame being read from one peer.
#[derive(Debug, Default)]
struct Reader {
    prefix: [u8; CONTROL_PREFIX_LEN],
    prefix_filled: usize,
    body: Vec<u8>,
    body_filled: usize,
}

impl Reader {
    /// Reads what is there; false when the peer has left in order.
    fn read(&mut self, mesh: &MeshState, rank: usize) -> Result<bool, TransportError> {
        let Some(control) = &mesh.control[rank] else {
            return Ok(false);
        };
        while mesh.inbox()[rank].queued_bytes < QUEUE_LIMIT {
            let read = if self.prefix_filled < CONTROL_PREFIX_LEN {
                control.link.read(&mut self.prefix[self.prefix_filled..], &mut [])
            } else {
                control.link.read(&mut self.body[self.body_filled..], &mut [])
            };
            match read {
                Ok(None) => return Ok(true),
                Ok(Some(n)) => {
                    mesh.update(rank, |peer| peer.last_heard = Instant::now());
                    if !self.advance(mesh, rank, n)? {
                        return Ok(false);
                    }
                }
                Err(error) => {
                    let reason = error.to_string();
                    return Err(TransportError::PeerLost {
                        rank,
                        waited: mesh.inbox()[rank].last_heard.elapsed(),
                        reason,
                    });
                }
            }
        }
        Ok(true)
    }

    /// Takes note of `n` more bytes; false after an orderly goodbye.
    fn advance(&mut self, mesh: &MeshState, rank: usize, n: usize) -> Result<bool, TransportError> {
        let parse = |prefix: &[u8]| {
            ControlPrefix::parse(prefix, mesh.message_limit)
                .map_err(|source| TransportError::PeerMisbehaved { rank, source })
        };
        if self.prefix_filled < CONTROL_PREFIX_LEN {
            self.prefix_filled += n;
            if self.prefix_filled < CONTROL_PREFIX_LEN {
                return Ok(true);
            }
            self.body = vec![0; parse(&self.prefix)?.len as usize];
        } else {
            self.body_filled += n;
        }
        if self.body_filled < self.body.len() {
            return Ok(true);
        }
        let kind = parse(&self.prefix)?.kind;
        let body = std::mem::take(self).body;
        match kind {
            ControlKind::Heartbeat => Ok(true),
            ControlKind::Message => {
                mesh.update(rank, |peer| {
                    peer.queued_bytes += body.len();
                    peer.messages.push_back(body);
                });
                Ok(true)
            }
            ControlKind::Goodbye => Ok(leave(mesh, rank, &body)),
        }
    }
}

/// A peer's goodbye: in order, or the news that the group is broken. Always false: nothing follows it.
fn leave(mesh: &MeshState, rank: usize, body: &[u8]) -> bool {
    let said = Goodbye::parse(body).filter(|goodbye| goodbye.blamed < mesh.control.len());
    let goodbye = said.unwrap_or(Goodbye {
        blamed: rank,
        reason: "without saying why".to_owned(),
    });
    if goodbye.blamed == rank {
        mesh.update(rank, |peer| peer.left = Some(format!("it left ({})", goodbye.reason)));
        return false;
    }
    let error = TransportError::Reported {
        // A rank that is blamed itself names its accuser: that is whose log its operator has to read.
        rank: if goodbye.blamed == mesh.rank {
            rank
        } else {
            goodbye.blamed
        },
        by: rank,
        reason: goodbye.reason.clone(),
    };
    // Passed on as it was said. In this rank's own words, the blamed rank would accuse its accuser.
    mesh.fail_as(error, &goodbye);
    false
}
