//! What the calling threads and the control thread of one rank share: the links, the inbox, the first error.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::control::Goodbye;
use super::link::{Bell, Link};
use crate::transport::TransportError;
use crate::wire::ControlKind;

/// How long a lost data connection waits for the control connection to say why: the two race when a peer leaves.
const REASON_PATIENCE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct MeshState {
    pub(super) rank: usize,
    pub(super) busy_poll: Duration,
    pub(super) message_limit: usize,
    /// Indexed by rank; `None` for this rank.
    pub(super) data: Vec<Option<Link>>,
    pub(super) control: Vec<Option<ControlLink>>,
    pub(super) data_bell: Bell,
    pub(super) control_bell: Bell,
    inbox: Mutex<Vec<PeerInbox>>,
    arrived: Condvar,
    first_error: OnceLock<TransportError>,
}

/// A control connection. The lock is held for one whole message, and keeps what an interrupted heartbeat left over.
#[derive(Debug)]
pub(super) struct ControlLink {
    pub(super) link: Link,
    pub(super) backlog: Mutex<Vec<u8>>,
}

/// What the control thread has heard from one peer.
#[derive(Debug)]
pub(super) struct PeerInbox {
    pub(super) messages: VecDeque<Vec<u8>>,
    pub(super) queued_bytes: usize,
    pub(super) last_heard: Instant,
    /// The peer said goodbye, and why: what it sent before still counts, nothing more will come.
    pub(super) left: Option<String>,
}

impl MeshState {
    pub(super) fn new(
        rank: usize,
        busy_poll: Duration,
        message_limit: usize,
        data: Vec<Option<Link>>,
        control: Vec<Option<ControlLink>>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let inbox = data.iter().map(|_| PeerInbox {
            messages: VecDeque::new(),
            queued_bytes: 0,
            last_heard: now,
            left: None,
        });
        Ok(Self {
            rank,
            busy_poll,
            message_limit,
            inbox: Mutex::new(inbox.collect()),
            data,
            control,
            data_bell: Bell::new()?,
            control_bell: Bell::new()?,
            arrived: Condvar::new(),
            first_error: OnceLock::new(),
        })
    }

    /// The first error, once there is one.
    pub(super) fn error(&self) -> Option<TransportError> {
        self.first_error.get().cloned()
    }

    /// Ends the mesh with `error` unless it has ended before; returns the error that counts.
    ///
    /// Tells the peers whose fault it is, so that a rank that only sees this one leave can name the culprit.
    pub(super) fn fail(&self, error: TransportError) -> TransportError {
        let goodbye = Goodbye {
            blamed: error.rank().unwrap_or(self.rank),
            reason: error.to_string(),
        };
        self.fail_as(error, &goodbye)
    }

    /// As [`MeshState::fail`], with other words for the peers.
    pub(super) fn fail_as(&self, error: TransportError, goodbye: &Goodbye) -> TransportError {
        if self.first_error.set(error.clone()).is_ok() {
            let goodbye = super::control::encode(ControlKind::Goodbye, &goodbye.encode());
            for control in self.control.iter().flatten() {
                control.try_send(&goodbye);
                control.link.finish();
            }
            for link in self.data.iter().flatten() {
                link.finish();
            }
            self.data_bell.ring();
            self.control_bell.ring();
            let _inbox = self.inbox();
            self.arrived.notify_all();
        }
        self.error().unwrap_or(error)
    }

    /// The data connection of `rank` broke: finds out why, and ends the mesh.
    pub(super) fn lost(&self, rank: usize, since: Instant, error: &io::Error) -> TransportError {
        let (inbox, _) = self
            .arrived
            .wait_timeout_while(self.inbox(), REASON_PATIENCE, |inbox| {
                self.first_error.get().is_none() && inbox[rank].left.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        let reason = inbox[rank].left.clone().unwrap_or_else(|| error.to_string());
        drop(inbox);
        self.fail(TransportError::PeerLost {
            rank,
            waited: since.elapsed(),
            reason,
        })
    }

    pub(super) fn inbox(&self) -> MutexGuard<'_, Vec<PeerInbox>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of `rank` and wakes whoever waits for it.
    pub(super) fn update(&self, rank: usize, change: impl FnOnce(&mut PeerInbox)) {
        change(&mut self.inbox()[rank]);
        self.arrived.notify_all();
    }

    /// Waits for news of any peer, at most `patience`.
    pub(super) fn wait_for_news<'a>(
        &self,
        inbox: MutexGuard<'a, Vec<PeerInbox>>,
        patience: Duration,
    ) -> MutexGuard<'a, Vec<PeerInbox>> {
        self.arrived
            .wait_timeout(inbox, patience)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

impl ControlLink {
    pub(super) const fn new(link: Link) -> Self {
        Self {
            link,
            backlog: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a short frame unless a message or an earlier frame is under way; what the socket does not take goes out later.
    pub(super) fn try_send(&self, frame: &[u8]) {
        let Ok(mut backlog) = self.backlog.try_lock() else {
            return;
        };
        if self.flush(&mut backlog).is_ok_and(|empty| empty) {
            if let Ok(written) = self.link.write([frame, &[]]) {
                backlog.extend_from_slice(&frame[written.unwrap_or(0)..]);
            }
        }
    }

    /// Writes the backlog; true when none is left.
    pub(super) fn flush(&self, backlog: &mut Vec<u8>) -> io::Result<bool> {
        while !backlog.is_empty() {
            match self.link.write([backlog, &[]])? {
                Some(written) => drop(backlog.drain(..written)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}
