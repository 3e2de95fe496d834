//! Transfers: who is served when, and how long one token takes.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use mistralrs_tpq::codec::{Values, ValuesMut};
use mistralrs_tpq::exchange::{Communicator, ExchangeConfig, Site};
use mistralrs_tpq::transport::{Arrival, RecvOp, SendOp, PACE_BYTES};

use crate::coarse::Coarse;
use crate::group::{on_all, tcp_group, PATIENCE};

#[test]
fn a_peer_that_does_not_read_does_not_keep_the_others_from_their_messages() {
    // More than the buffers of a socket hold.
    let len = 12 << 20;
    // Rank 1, whose message is the first, reads only once rank 2 has everything.
    let served = Barrier::new(2);
    on_all(tcp_group(3, |_| ()), |rank, transport| {
        let message = vec![7_u8; len];
        let (mut header, mut payload) = ([0; 4], vec![0; len]);
        let (mut sends, mut recvs) = (Vec::new(), Vec::new());
        if rank == 0 {
            sends.extend([1, 2].map(|to| SendOp::new(to, [b"head", &message])));
        } else {
            recvs.push(RecvOp {
                from: 0,
                header: &mut header,
                payload: &mut payload,
            });
        }
        if rank == 1 {
            served.wait();
        }
        let moved = transport.transfer(&sends, &mut recvs, PATIENCE, &mut |_| Ok(()));
        if rank == 2 {
            served.wait();
        }
        moved.unwrap();
    });
}

#[test]
fn a_rank_that_sends_to_two_waits_for_the_slower_until_nothing_moves() {
    // After as long, whoever can is served.
    const STALL: Duration = Duration::from_millis(100);
    let len = 4 << 20;
    // When rank 0 began, and when the others had more than it may be ahead of rank 2, which sends nothing before it has all.
    let times = on_all(tcp_group(3, |_| ()), |rank, transport| {
        let message = vec![7_u8; len];
        let peers: &[usize] = if rank == 0 { &[1, 2] } else { &[0] };
        let mut rooms = vec![([0; 4], vec![0; len]); peers.len()];
        let mut recvs: Vec<_> = peers
            .iter()
            .zip(&mut rooms)
            .map(|(&from, (header, payload))| RecvOp { from, header, payload })
            .collect();
        let sends: Vec<_> = peers.iter().map(|&to| SendOp::new(to, [b"head", &message])).collect();
        let (now, later) = if rank == 2 {
            (&[][..], &sends[..])
        } else {
            (&sends[..], &[][..])
        };
        let mut beyond = None;
        let began = Instant::now();
        let mut on_progress = |arrival: Arrival<'_>| {
            if matches!(arrival, Arrival::Payload { bytes, .. } if bytes.len() > PACE_BYTES) {
                beyond.get_or_insert_with(Instant::now);
            }
            Ok(())
        };
        transport.transfer(now, &mut recvs, PATIENCE, &mut on_progress).unwrap();
        transport.transfer(later, &mut [], PATIENCE, &mut |_| Ok(())).unwrap();
        if rank == 0 {
            began
        } else {
            beyond.unwrap()
        }
    });
    for rank in [1, 2] {
        let after = times[rank] - times[0];
        assert!(after >= STALL, "rank {rank} after {after:?}");
    }
}

#[test]
#[ignore = "a measurement: cargo test --release --no-default-features --test tcp -- --ignored --nocapture latency"]
fn latency_of_one_token_at_hidden_size_4096_between_two_local_ranks() {
    const ROUNDS: usize = 20_000;
    // 2144 bytes: 4096 features at 4.1875 bits. The codec's own time is not what is measured.
    let codec = Coarse {
        features: 2144,
        name: "coarse",
        tag: 7,
    };
    let times = on_all(tcp_group(2, |_| {}), |_, transport| {
        let communicator = Communicator::new(transport, ExchangeConfig::default());
        let (site, input, mut output) = (
            Site {
                id: 0,
                name: "x".into(),
            },
            vec![1.0; 2144],
            vec![0.0; 2144],
        );
        let mut times: Vec<Duration> = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let stats = communicator
                .all_reduce(&site, &codec, Values::F32(&input), ValuesMut::F32(&mut output))
                .unwrap();
            times.push(stats.wire);
        }
        assert!(output.iter().all(|x| *x == 2.0));
        times.sort();
        times
    });
    for (rank, times) in times.iter().enumerate() {
        println!(
            "rank {rank}: median {:?}, p99 {:?}",
            times[ROUNDS / 2],
            times[ROUNDS / 100 * 99]
        );
    }
    assert!(times[0][ROUNDS / 2] < Duration::from_micros(100));
}
