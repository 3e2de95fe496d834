//! A transport that notes how long each peer's bytes were waited for: the slowest rank of a group stands out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Arrival, Patience, RecvOp, Rejected, SendOp, Traffic, Transport, TransportError};

#[derive(Debug)]
pub struct Timed {
    inner: Arc<dyn Transport>,
    /// By rank, in nanoseconds.
    waited: Vec<AtomicU64>,
}

impl Timed {
    pub fn new(inner: Arc<dyn Transport>) -> Self {
        let waited = (0..inner.world_size()).map(|_| AtomicU64::new(0)).collect();
        Self { inner, waited }
    }

    /// From the start of a transfer to the last byte of `rank`, over all transfers so far. In one transfer all peers are
    /// waited for at once, so these do not add up over ranks.
    pub fn waited_for(&self, rank: usize) -> Duration {
        self.waited.get(rank).map_or(Duration::ZERO, |waited| {
            Duration::from_nanos(waited.load(Ordering::Relaxed))
        })
    }
}

impl Transport for Timed {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn transfer(
        &self,
        sends: &[SendOp<'_>],
        recvs: &mut [RecvOp<'_>],
        deadline: Duration,
        on_progress: &mut dyn FnMut(Arrival<'_>) -> Result<(), Rejected>,
    ) -> Result<(), TransportError> {
        let start = Instant::now();
        let mut noted = |arrival: Arrival<'_>| {
            if let Arrival::Payload {
                from, complete: true, ..
            } = arrival
            {
                let waited = start.elapsed().as_nanos() as u64;
                self.waited[from].fetch_add(waited, Ordering::Relaxed);
            }
            on_progress(arrival)
        };
        self.inner.transfer(sends, recvs, deadline, &mut noted)
    }

    fn offer(&self, send: &SendOp<'_>) -> Result<usize, TransportError> {
        self.inner.offer(send)
    }

    fn send_message(&self, to: usize, body: &[u8]) -> Result<(), TransportError> {
        self.inner.send_message(to, body)
    }

    fn recv_message(&self, from: usize, patience: Patience) -> Result<Vec<u8>, TransportError> {
        self.inner.recv_message(from, patience)
    }

    fn traffic(&self, rank: usize) -> Traffic {
        self.inner.traffic(rank)
    }

    fn failure(&self) -> Option<TransportError> {
        self.inner.failure()
    }

    fn abort(&self, culprit: usize, reason: &str) {
        self.inner.abort(culprit, reason);
    }

    fn close(&self) {
        self.inner.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_rank_is_the_one_that_was_waited_for() {
        const LATE: Duration = Duration::from_millis(60);
        let waited = std::thread::scope(|scope| {
            let ranks = super::super::memory::group(3)
                .into_iter()
                .enumerate()
                .map(|(rank, transport)| {
                    scope.spawn(move || {
                        let timed = Timed::new(Arc::new(transport));
                        std::thread::sleep(if rank == 2 { LATE } else { Duration::ZERO });
                        let others: Vec<usize> = (0..3).filter(|other| *other != rank).collect();
                        let sends: Vec<_> = others.iter().map(|&to| SendOp::new(to, [b"head", b"body"])).collect();
                        let mut room = [[0; 8]; 2];
                        let mut recvs: Vec<_> = others
                            .iter()
                            .zip(&mut room)
                            .map(|(&from, room)| {
                                let (header, payload) = room.split_at_mut(4);
                                RecvOp { from, header, payload }
                            })
                            .collect();
                        timed
                            .transfer(&sends, &mut recvs, Duration::from_secs(10), &mut |_| Ok(()))
                            .unwrap();
                        [0, 1, 2].map(|of| timed.waited_for(of))
                    })
                });
            let ranks: Vec<_> = ranks.collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        // Rank 2 waits for nobody; ranks 0 and 1 wait for it and not for each other.
        assert!(waited[0][2] > LATE / 2 && waited[0][2] > waited[0][1], "{waited:?}");
        assert!(waited[0][2] > waited[2][0], "{waited:?}");
        assert_eq!(waited[0][0], Duration::ZERO);
    }
}
