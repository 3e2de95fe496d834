//! Latency and bandwidth of each link, one link at a time, by one clock.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::transport::{Patience, RecvOp, SendOp, Transport, TransportError};

const ROUNDS: usize = 300;
const BYTES: usize = 8 << 20;

/// As the lower rank measured it. Up: from the lower rank to the higher.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Link {
    pub(super) ranks: [usize; 2],
    /// Median of half a round trip of one byte.
    pub(super) latency_us: f64,
    pub(super) p99_us: f64,
    pub(super) up_mbit_s: f64,
    pub(super) down_mbit_s: f64,
}

impl Link {
    pub(super) fn slower_mbit_s(&self) -> f64 {
        self.up_mbit_s.min(self.down_mbit_s)
    }
}

/// All ranks call this; rank 0 gets the links.
pub(super) fn all_links(mesh: &dyn Transport, patience: Duration) -> Result<Vec<Link>, TransportError> {
    let (rank, ranks) = (mesh.rank(), mesh.world_size());
    let mut links = Vec::new();
    for a in 0..ranks {
        for b in a + 1..ranks {
            // Everybody waits for the pair whose turn it is, or two links would share a wire.
            barrier(mesh, patience)?;
            if rank == a {
                links.push(measure(mesh, b, patience)?);
            } else if rank == b {
                answer(mesh, a, patience)?;
            }
        }
    }
    gather(mesh, links, patience)
}

fn barrier(mesh: &dyn Transport, patience: Duration) -> Result<(), TransportError> {
    let patience = Patience::Total(patience);
    if mesh.rank() == 0 {
        for rank in 1..mesh.world_size() {
            mesh.recv_message(rank, patience)?;
        }
        (1..mesh.world_size()).try_for_each(|rank| mesh.send_message(rank, &[]))
    } else {
        mesh.send_message(0, &[])?;
        mesh.recv_message(0, patience).map(drop)
    }
}

fn measure(mesh: &dyn Transport, to: usize, patience: Duration) -> Result<Link, TransportError> {
    let mut one_way_us = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        send(mesh, to, &[1], patience)?;
        receive(mesh, to, &mut [0], patience)?;
        one_way_us.push(start.elapsed().as_secs_f64() * 1e6 / 2.0);
    }
    one_way_us.sort_by(f64::total_cmp);
    let mut buffer = vec![0; BYTES];
    let start = Instant::now();
    send(mesh, to, &buffer, patience)?;
    receive(mesh, to, &mut [0], patience)?;
    let up = start.elapsed();
    let start = Instant::now();
    send(mesh, to, &[1], patience)?;
    receive(mesh, to, &mut buffer, patience)?;
    let down = start.elapsed();
    let mbit_s = |time: Duration| BYTES as f64 * 8.0 / 1e6 / time.as_secs_f64();
    Ok(Link {
        ranks: [mesh.rank(), to],
        latency_us: one_way_us[ROUNDS / 2],
        p99_us: one_way_us[ROUNDS * 99 / 100],
        up_mbit_s: mbit_s(up),
        down_mbit_s: mbit_s(down),
    })
}

fn answer(mesh: &dyn Transport, to: usize, patience: Duration) -> Result<(), TransportError> {
    for _ in 0..ROUNDS {
        receive(mesh, to, &mut [0], patience)?;
        send(mesh, to, &[1], patience)?;
    }
    let mut buffer = vec![0; BYTES];
    receive(mesh, to, &mut buffer, patience)?;
    send(mesh, to, &[1], patience)?;
    receive(mesh, to, &mut [0], patience)?;
    send(mesh, to, &buffer, patience)
}

fn send(mesh: &dyn Transport, to: usize, bytes: &[u8], patience: Duration) -> Result<(), TransportError> {
    let send = SendOp::new(to, [bytes, &[]]);
    mesh.transfer(&[send], &mut [], patience, &mut |_| Ok(()))
}

fn receive(mesh: &dyn Transport, from: usize, bytes: &mut [u8], patience: Duration) -> Result<(), TransportError> {
    let receive = RecvOp {
        from,
        header: &mut [],
        payload: bytes,
    };
    mesh.transfer(&[], &mut [receive], patience, &mut |_| Ok(()))
}

/// On rank 0: everybody's links, in order; elsewhere nothing.
fn gather(mesh: &dyn Transport, mut links: Vec<Link>, patience: Duration) -> Result<Vec<Link>, TransportError> {
    if mesh.rank() != 0 {
        let text = serde_json::to_vec(&links).unwrap_or_default();
        mesh.send_message(0, &text)?;
        // Rank 0 leaves first: a rank that left earlier would look lost to it.
        let _ = mesh.recv_message(0, Patience::Total(patience));
        return Ok(Vec::new());
    }
    for rank in 1..mesh.world_size() {
        let text = mesh.recv_message(rank, Patience::Total(patience))?;
        match serde_json::from_slice::<Vec<Link>>(&text) {
            Ok(theirs) => links.extend(theirs),
            Err(error) => mesh.abort(
                rank,
                &format!("its measurements are not what this version reads: {error}"),
            ),
        }
    }
    match mesh.failure() {
        Some(error) => Err(error),
        None => Ok(links),
    }
}
