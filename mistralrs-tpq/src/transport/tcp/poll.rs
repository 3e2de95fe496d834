//! The hot path: one transfer over the mesh, in the calling thread, without allocating.
//!
//! Messages are handed to the kernel one after the other, in the order of the sends: with three at once, TCP shares a rank's
//! link unevenly, and 512 x 4096 values over four ranks at 100 Mbit/s took 1.17 times the wire's time. Long ones take
//! turns, see [`SendOp::turn`].
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
use crate::transport::{Arrival, RecvOp, Rejected, SendOp, TransportError, MAX_RANKS};

/// How long nothing may move before sends stop to wait for the one before.
const STALL: Duration = Duration::from_millis(100);

/// Which send may write, and up to which of its bytes.
struct Turn {
    send: usize,
    end: usize,
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
    let mut sent = [0_usize; MAX_RANKS];
    let mut received = [0_usize; MAX_RANKS];
    let mut last_move = Instant::now();
    let mut turn = Some(Turn { send: 0, end: 0 });
    loop {
        let mut moved = match &mut turn {
            Some(turn) => push_in_turn(mesh, sends, &mut sent, turn, last_move)?,
            None => push_all(mesh, sends, &mut sent, last_move)?,
        };
        let mut open = unfinished(sends, &sent).next().is_some();
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
            return Err(mesh.fail(timeout(sends, &sent, recvs, &received, idle)));
        }
        // The peer whose turn it is does not read; the others need not wait for it.
        if idle >= STALL {
            turn = None;
        }
        if idle < mesh.busy_poll {
            // Yielding and not spinning: with more ranks than cores the peer may need this very core to answer.
            std::thread::yield_now();
        } else {
            let only = turn.as_ref().map(|turn| turn.send);
            let patience = if only.is_some() { STALL.min(deadline) } else { deadline };
            let patience = patience.saturating_sub(idle);
            sleep(mesh, sends, &sent, only, recvs, &received, patience)?;
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

/// Writes until a socket takes no more, or the turn of a long message is over: short ones to many peers leave in one pass.
/// True when something moved.
fn push_in_turn(
    mesh: &MeshState,
    sends: &[SendOp<'_>],
    sent: &mut [usize],
    turn: &mut Turn,
    since: Instant,
) -> Result<bool, TransportError> {
    let mut moved = 0;
    loop {
        let done = |send: usize| sent[send] >= send_len(&sends[send]);
        let next = (turn.send..sends.len()).chain(0..turn.send).find(|&send| !done(send));
        let Some(next) = next else { return Ok(moved > 0) };
        if next != turn.send || sent[next] >= turn.end {
            (turn.send, turn.end) = (next, sent[next].saturating_add(sends[next].turn));
        }
        let (op, at) = (&sends[next], &mut sent[next]);
        let before = *at;
        push(mesh, op, at, turn.end, since)?;
        moved += *at - before;
        if *at < turn.end.min(send_len(op)) {
            return Ok(moved > 0);
        }
        let cut = *at < send_len(op);
        (turn.send, turn.end) = ((next + 1) % sends.len(), 0);
        if cut {
            return Ok(true);
        }
    }
}

fn push_all(
    mesh: &MeshState,
    sends: &[SendOp<'_>],
    sent: &mut [usize],
    since: Instant,
) -> Result<bool, TransportError> {
    let mut moved = false;
    for (op, at) in sends.iter().zip(sent) {
        moved |= push(mesh, op, at, usize::MAX, since)?;
    }
    Ok(moved)
}

/// Writes once, bytes of `op` before `end`. False when the socket takes nothing.
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

/// Sends of which bytes are left.
fn unfinished<'a>(sends: &'a [SendOp<'_>], sent: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
    (0..sends.len()).filter(|&send| sent[send] < send_len(&sends[send]))
}

/// Sleeps until something unfinished can move, the mesh fails, or `patience` is over. Of the sends, until `only` that one can,
/// or any.
fn sleep(
    mesh: &MeshState,
    sends: &[SendOp<'_>],
    sent: &[usize],
    only: Option<usize>,
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
    let of_turn = |send: &usize| only.is_none_or(|only| only == *send);
    for op in unfinished(sends, sent).filter(of_turn).map(|send| &sends[send]) {
        fds[count] = PollFd::new(link(mesh, op.to)?.as_fd(), PollFlags::POLLOUT);
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

fn timeout(
    sends: &[SendOp<'_>],
    sent: &[usize],
    recvs: &[RecvOp<'_>],
    received: &[usize],
    waited: Duration,
) -> TransportError {
    let silent = recvs
        .iter()
        .zip(received)
        .filter(|(op, at)| **at < recv_len(op))
        .map(|(op, _)| op.from);
    let mut ranks: Vec<usize> = silent.collect();
    let sending = ranks.is_empty();
    if sending {
        ranks.extend(unfinished(sends, sent).map(|send| sends[send].to));
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
