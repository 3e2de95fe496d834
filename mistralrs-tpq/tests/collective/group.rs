//! Groups of ranks, one thread each, over any transport.

use std::net::TcpListener;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use mistralrs_tpq::codec::Dtype;
use mistralrs_tpq::transport::memory;
use mistralrs_tpq::transport::tcp::{MeshConfig, TcpMesh};
use mistralrs_tpq::transport::Transport;
use mistralrs_tpq::wire::Identity;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Memory,
    Tcp,
}

/// No test of this suite may take longer; a hang fails instead of stopping the run.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn identity() -> Identity {
    Identity {
        dtype: Dtype::F32,
        model: [1; 32],
        manifest: [2; 32],
        codec: "coarse".into(),
        policy: "auto".into(),
    }
}

pub fn group(kind: Kind, world_size: usize) -> Vec<Arc<dyn Transport>> {
    match kind {
        Kind::Memory => memory::group(world_size)
            .into_iter()
            .map(|t| Arc::new(t) as Arc<dyn Transport>)
            .collect(),
        Kind::Tcp => tcp_group(world_size, |_| {}),
    }
}

pub fn tcp_group(world_size: usize, change: impl Fn(&mut MeshConfig) + Sync) -> Vec<Arc<dyn Transport>> {
    let listeners: Vec<TcpListener> = (0..world_size)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    std::thread::scope(|scope| {
        let join = |(rank, listener)| {
            let (peers, change) = (peers.clone(), &change);
            scope.spawn(move || {
                let mut config = MeshConfig::new(rank, peers, identity());
                config.connect_timeout = PATIENCE;
                change(&mut config);
                Arc::new(TcpMesh::connect_on(listener, config).unwrap()) as Arc<dyn Transport>
            })
        };
        let threads: Vec<_> = listeners.into_iter().enumerate().map(join).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Runs `work` on every rank at once; results in rank order. No rank leaves before all are done, or one panicked: a
/// failed assertion of one rank must end the test and not leave the others at the barrier.
pub fn on_all<R: Send>(group: Vec<Arc<dyn Transport>>, work: impl Fn(usize, Arc<dyn Transport>) -> R + Sync) -> Vec<R> {
    let barrier = Barrier::new(group.len());
    let start = Instant::now();
    let results = std::thread::scope(|scope| {
        let run = |(rank, transport): (usize, Arc<dyn Transport>)| {
            let (work, barrier) = (&work, &barrier);
            scope.spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| work(rank, Arc::clone(&transport))));
                if result.is_err() {
                    transport.close();
                }
                barrier.wait();
                result.unwrap_or_else(|panic| resume_unwind(panic))
            })
        };
        let threads: Vec<_> = group.into_iter().enumerate().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(start.elapsed() < PATIENCE, "took {:?}", start.elapsed());
    results
}
