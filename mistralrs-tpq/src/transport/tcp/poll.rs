//! The hot path: one transfer over the mesh, in the calling thread, without allocating.
//!
//! Messages are handed to the kernel one after the other, in the order of the sends: with three at once, TCP shares a rank's
//! link unevenly, and 512 x 4096 values over four ranks at 100 Mbit/s took 1.17 times the wire's time.
//!
//! Each pass tries every unfinished write and read once. A pass that moves nothing is repeated for `busy_poll` (a
//! decode step answers within microseconds, a sleeping thread takes tens of them to wake), then the thread sleeps in
//! poll(2).

use std::time::{Duration, Instant};

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::link::Link;
use super::state::MeshState;
use crate::transport::{Arrival, RecvOp, Rejected, SendOp, TransportError, MAX_RANKS, PACE_BYTES};

/// How long nothing may move before sends stop to wait for the one before.
const STALL: Duration = Duration::from_millis(100);

/// What is to be sent, and how far that is.
struct Sends<'a> {
    ops: &'a [SendOp<'a>],
    sent: [usize; MAX_RANKS],
    /// One after the other.
    in_order: bool,
    /// How many bytes of each message may leave for now.
    limit: usize,
}

type OnProgress<'a> = dyn FnMut(Arrival<'_>) -> Result<(), Rejected> + 'a;

/// See [`Transport::transfer`](crate::transport::Transport::transfer); `sends` and `recvs` are checked.
pub(super) fn transfer(
    mesh: &MeshState,
    sends: &[SendOp<'_>],
    recvs: &mut [RecvOp<'_>],
    deadline: Duration,
    on_progress: &mut OnProgress<'_>,
) -> Result<(), TransportError> {
    let mut sends = Sends::new(sends);
    let mut received = [0_usize; MAX_RANKS];
    let mut last_move = Instant::now();
    loop {
        sends.keep_pace(recvs, &received);
        let mut moved = sends.push(mesh, last_move)?;
        let mut open = sends.unfinished().next().is_some();
        for (op, at) in recvs.iter_mut().zip(&mut received) {
            moved |= pull(mesh, op, at, last_move, on_progress)?;
            open |= *at < recv_len(op);
        }
        if !open {
            return Ok(());
        }
        if moved {
            last_move = Instant::now();
            continue;
        }
        // Only now: bytes that arrived before a peer left still count.
        if let Some(error) = mesh.error() {
            return Err(error);
        }
        let idle = last_move.elapsed();
        if idle >= deadline {
            return Err(mesh.fail(timeout(&sends, recvs, &received, idle)));
        }
        // The peer whose message is the next does not read; the others need not wait for it.
        if idle >= STALL {
            sends.in_order = false;
        }
        if idle < mesh.busy_poll {
            // Yielding and not spinning: with more ranks than cores the peer may need this very core to answer.
            std::thread::yield_now();
        } else {
            let patience = if sends.in_order { STALL.min(deadline) } else { deadline };
            let patience = patience.saturating_sub(idle);
            sleep(mesh, &sends, recvs, &received, patience)?;
        }
    }
}

/// See [`Transport::offer`](crate::transport::Transport::offer).
pub(super) fn offer(mesh: &MeshState, op: &SendOp<'_>) -> Result<usize, TransportError> {
    let mut at = 0;
    let since = Instant::now();
    // The first write that takes nothing ends it, and one that takes a part says that the socket is full.
    while at < send_len(op) && push(mesh, op, &mut at, usize::MAX, since)? {}
    Ok(at)
}

impl<'a> Sends<'a> {
    const fn new(ops: &'a [SendOp<'a>]) -> Self {
        Self {
            ops,
            sent: [0; MAX_RANKS],
            in_order: true,
            limit: usize::MAX,
        }
    }

    /// Sets the limit by what has come from the slowest peer.
    fn keep_pace(&mut self, recvs: &[RecvOp<'_>], received: &[usize]) {
        let open = recvs.iter().zip(received).filter(|(op, at)| **at < recv_len(op));
        self.limit = match open.map(|(_, at)| *at).min() {
            Some(slowest) if self.in_order && self.ops.len() > 1 => (slowest / PACE_BYTES + 1) * PACE_BYTES,
            _ => usize::MAX,
        };
    }

    /// Up to where send `index` may write now.
    fn end(&self, index: usize) -> usize {
        let op = &self.ops[index];
        self.limit.saturating_sub(op.offered).min(send_len(op))
    }

    /// Those of which bytes are left.
    fn unfinished(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.ops.len()).filter(|&index| self.sent[index] < send_len(&self.ops[index]))
    }

    /// Those that may write now.
    fn writing(&self) -> impl Iterator<Item = usize> + '_ {
        let ready = self.unfinished().filter(|&index| self.sent[index] < self.end(index));
        ready.take(if self.in_order { 1 } else { MAX_RANKS })
    }

    /// Writes each once; in order, up to the first whose socket is full. True when something moved.
    fn push(&mut self, mesh: &MeshState, since: Instant) -> Result<bool, TransportError> {
        let mut moved = false;
        for index in 0..self.ops.len() {
            let end = self.end(index);
            moved |= push(mesh, &self.ops[index], &mut self.sent[index], end, since)?;
            if self.in_order && self.sent[index] < end {
                break;
            }
        }
        Ok(moved)
    }
}

/// Writes once, bytes of `op` before `end`. False when there are none or the socket takes nothing.
fn push(mesh: &MeshState, op: &SendOp<'_>, at: &mut usize, end: usize, since: Instant) -> Result<bool, TransportError> {
    let [first, second] = op.parts;
    let end = end.min(first.len() + second.len());
    if *at >= end {
        return Ok(false);
    }
    let (first_end, second_end) = (end.min(first.len()), end.saturating_sub(first.len()));
    let rest = [
        &first[(*at).min(first_end)..first_end],
        &second[at.saturating_sub(first.len())..second_end],
    ];
    let written = link(mesh, op.to)?
        .write(rest)
        .map_err(|e| mesh.lost(op.to, since, &e))?;
    *at += written.unwrap_or(0);
    Ok(written.is_some())
}

fn pull(
    mesh: &MeshState,
    op: &mut RecvOp<'_>,
    at: &mut usize,
    since: Instant,
    on_progress: &mut OnProgress<'_>,
) -> Result<bool, TransportError> {
    let (head, total) = (op.header.len(), recv_len(op));
    if *at >= total {
        return Ok(false);
    }
    let before = *at;
    let first = &mut op.header[before.min(head)..];
    let second = &mut op.payload[before.saturating_sub(head)..];
    let read = link(mesh, op.from)?
        .read(first, second)
        .map_err(|e| mesh.lost(op.from, since, &e))?;
    let Some(read) = read else { return Ok(false) };
    *at += read;
    let mut tell = |arrival: Arrival<'_>| {
        on_progress(arrival).map_err(|Rejected(reason)| mesh.fail(TransportError::Rejected { rank: op.from, reason }))
    };
    if before < head && *at >= head {
        tell(Arrival::Header {
            from: op.from,
            header: op.header,
        })?;
    }
    if *at > head {
        tell(Arrival::Payload {
            from: op.from,
            bytes: &op.payload[..*at - head],
            complete: *at == total,
        })?;
    }
    Ok(true)
}

/// Sleeps until something unfinished can move, the mesh fails, or `patience` is over.
fn sleep(
    mesh: &MeshState,
    sends: &Sends<'_>,
    recvs: &[RecvOp<'_>],
    received: &[usize],
    patience: Duration,
) -> Result<(), TransportError> {
    let bell = mesh.data_bell.as_fd();
    let mut fds: [PollFd<'_>; 2 * MAX_RANKS + 1] = std::array::from_fn(|_| PollFd::new(bell, PollFlags::POLLIN));
    let mut count = 1;
    for (op, _) in recvs.iter().zip(received).filter(|(op, at)| **at < recv_len(op)) {
        fds[count] = PollFd::new(link(mesh, op.from)?.as_fd(), PollFlags::POLLIN);
        count += 1;
    }
    for index in sends.writing() {
        fds[count] = PollFd::new(link(mesh, sends.ops[index].to)?.as_fd(), PollFlags::POLLOUT);
        count += 1;
    }
    wait(&mut fds[..count], patience).map_err(|e| mesh.fail(TransportError::System { reason: e.to_string() }))
}

/// poll(2) for at most `patience` and at most a second: callers loop around it and look at the clock themselves.
pub(super) fn wait(fds: &mut [PollFd<'_>], patience: Duration) -> Result<(), Errno> {
    let millis = patience.as_micros().div_ceil(1000).min(1000) as u16;
    match poll(fds, PollTimeout::from(millis)) {
        Ok(_) | Err(Errno::EINTR | Errno::EAGAIN) => Ok(()),
        Err(error) => Err(error),
    }
}

fn timeout(sends: &Sends<'_>, recvs: &[RecvOp<'_>], received: &[usize], waited: Duration) -> TransportError {
    let silent = recvs
        .iter()
        .zip(received)
        .filter(|(op, at)| **at < recv_len(op))
        .map(|(op, _)| op.from);
    let mut ranks: Vec<usize> = silent.collect();
    let sending = ranks.is_empty();
    if sending {
        ranks.extend(sends.unfinished().map(|index| sends.ops[index].to));
    }
    TransportError::Timeout { ranks, sending, waited }
}

fn link(mesh: &MeshState, rank: usize) -> Result<&Link, TransportError> {
    mesh.data[rank].as_ref().ok_or(TransportError::ApiMisuse {
        what: "no connection to this rank",
        rank,
    })
}

const fn send_len(op: &SendOp<'_>) -> usize {
    op.parts[0].len() + op.parts[1].len()
}

const fn recv_len(op: &RecvOp<'_>) -> usize {
    op.header.len() + op.payload.len()
}
