//! What only the TCP mesh does: joining, refusing, noise on the port, heartbeats, killed processes.

#[path = "collective/coarse.rs"]
#[allow(dead_code)]
mod coarse;
#[path = "collective/group.rs"]
#[allow(dead_code)]
mod group;
#[path = "common/ports.rs"]
mod ports;
#[path = "tcp/ring.rs"]
mod ring;
#[path = "tcp/strangers.rs"]
mod strangers;
#[path = "tcp/transfers.rs"]
mod transfers;

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mistralrs_tpq::codec::{Dtype, Values, ValuesMut};
use mistralrs_tpq::exchange::{Communicator, ExchangeConfig, Site};
use mistralrs_tpq::transport::tcp::{Congestion, JoinError, MeshConfig, TcpMesh};
use mistralrs_tpq::transport::{Patience, Transport, TransportError};
use mistralrs_tpq::wire::{HelloField, Refusal, WireError};

use group::{identity, on_all, tcp_group, PATIENCE};

fn listeners(count: usize) -> (Vec<TcpListener>, Vec<String>) {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    (listeners, peers)
}

fn mesh_config(rank: usize, peers: &[String]) -> MeshConfig {
    MeshConfig {
        connect_timeout: PATIENCE / 2,
        ..MeshConfig::new(rank, peers.to_vec(), identity())
    }
}

/// Lets all ranks of `configs` join at once; results in the same order.
fn join_all(listeners: Vec<TcpListener>, configs: Vec<MeshConfig>) -> Vec<Result<TcpMesh, JoinError>> {
    let start = Instant::now();
    let threads: Vec<_> = listeners
        .into_iter()
        .zip(configs)
        .map(|(listener, config)| thread::spawn(move || TcpMesh::connect_on(listener, config)))
        .collect();
    let results = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(start.elapsed() < PATIENCE);
    results
}

fn refusal(result: Result<TcpMesh, JoinError>) -> Refusal {
    match result {
        Err(JoinError::Refused(refusal)) => refusal,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("joined"),
    }
}

#[test]
fn a_mismatch_is_the_same_refusal_on_both_sides() {
    type Change = fn(&mut MeshConfig);
    let cases: [(HelloField, Change); 5] = [
        (HelloField::Manifest, |c| c.identity.manifest = [0x9f; 32]),
        (HelloField::Model, |c| c.identity.model = [0; 32]),
        (HelloField::Codec, |c| c.identity.codec = "none".into()),
        (HelloField::Policy, |c| c.identity.policy = "one_shot".into()),
        (HelloField::Dtype, |c| c.identity.dtype = Dtype::Bf16),
    ];
    for (field, change) in cases {
        let (listeners, peers) = listeners(2);
        let mut configs: Vec<_> = (0..2).map(|rank| mesh_config(rank, &peers)).collect();
        change(&mut configs[1]);
        let refusals: Vec<_> = join_all(listeners, configs).into_iter().map(refusal).collect();
        assert_eq!(refusals[0], refusals[1]);
        assert_eq!((refusals[0].field, refusals[0].sender, refusals[0].by), (field, 1, 0));
    }
}

#[test]
fn a_refused_manifest_says_what_to_do() {
    let (listeners, peers) = listeners(2);
    let mut configs: Vec<_> = (0..2).map(|rank| mesh_config(rank, &peers)).collect();
    configs[1].identity.manifest = [0x9f; 32];
    let errors: Vec<_> = join_all(listeners, configs)
        .into_iter()
        .map(|r| r.unwrap_err().to_string())
        .collect();
    let text = "rank 1 sent manifest 9f9f9f9f.., rank 0 expected 02020202..: copy manifest.yaml from rank 0";
    assert_eq!(errors, [text, text]);
}

#[test]
fn ranks_with_another_number_or_order_of_peers_are_refused() {
    let (mut sockets, peers) = listeners(3);
    sockets.truncate(2);
    let configs = vec![mesh_config(0, &peers[..2]), mesh_config(1, &peers)];
    let refusals: Vec<_> = join_all(sockets, configs).into_iter().map(refusal).collect();
    assert_eq!(
        (refusals[0].field, refusals[1].field),
        (HelloField::WorldSize, HelloField::WorldSize)
    );

    let (listeners, peers) = listeners(3);
    let mut swapped = peers.clone();
    swapped.swap(0, 1);
    let configs = vec![mesh_config(0, &peers), mesh_config(1, &peers), mesh_config(2, &swapped)];
    let results = join_all(listeners, configs);
    let text = results[2].as_ref().unwrap_err().to_string();
    assert!(text.contains("same order"), "{text}");
    assert!(
        results[..2].iter().all(Result::is_err),
        "the others must not wait for a rank that was refused"
    );
}

#[test]
fn the_same_rank_twice_is_refused_and_named() {
    let (sockets, peers) = listeners(4);
    // Rank 1 is missing, and two processes say that they are rank 2.
    let peers = &peers[..3];
    let mut sockets: Vec<_> = sockets.into_iter().map(Some).collect();
    let order = [(0, 0), (2, 2), (2, 3)];
    let sockets = order
        .iter()
        .map(|(_, socket)| sockets[*socket].take().unwrap())
        .collect();
    let configs = order.iter().map(|(rank, _)| mesh_config(*rank, peers)).collect();
    let results = join_all(sockets, configs);
    let text = results[0].as_ref().unwrap_err().to_string();
    assert!(text.starts_with("two processes say that they are rank 2"), "{text}");
    let told = results[1..]
        .iter()
        .filter(|r| matches!(r, Err(JoinError::Refused(r)) if r.field == HelloField::SameRankTwice));
    assert_eq!(told.count(), 1);
}

#[test]
fn an_absent_rank_is_named_with_address_and_time() {
    for (rank, absent) in [(0, 1), (1, 0)] {
        let (mut sockets, peers) = listeners(2);
        drop(sockets.remove(absent));
        let config = MeshConfig {
            connect_timeout: Duration::from_millis(300),
            ..mesh_config(rank, &peers)
        };
        let start = Instant::now();
        let error = TcpMesh::connect_on(sockets.remove(0), config).unwrap_err();
        assert!(
            matches!(&error, JoinError::Absent { rank, .. } if *rank == absent),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains(&peers[absent]) && text.contains("within 3"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn a_rank_that_starts_late_is_waited_for() {
    let (mut sockets, peers) = listeners(2);
    drop(sockets.remove(0));
    let early = {
        let (socket, config) = (sockets.remove(0), mesh_config(1, &peers));
        thread::spawn(move || TcpMesh::connect_on(socket, config))
    };
    thread::sleep(Duration::from_millis(300));
    let late = TcpMesh::connect(mesh_config(0, &peers)).unwrap();
    let early = early.join().unwrap().unwrap();
    late.send_message(1, b"here").unwrap();
    assert_eq!(early.recv_message(0, Patience::Total(PATIENCE)).unwrap(), b"here");
}

#[test]
fn a_port_in_use_names_address_and_key() {
    let (_sockets, peers) = listeners(2);
    let error = TcpMesh::connect(mesh_config(1, &peers)).unwrap_err();
    assert_eq!(
        error,
        JoinError::PortInUse {
            rank: 1,
            address: peers[1].clone()
        }
    );
    assert!(error.to_string().contains("`peers[1]`"), "{error}");
}

#[test]
fn an_address_of_another_host_cannot_be_listened_on() {
    // 192.0.2.0/24 is reserved for documentation: no host has it.
    let peers = vec!["192.0.2.1:7000".to_owned(), "127.0.0.1:7001".to_owned()];
    let error = TcpMesh::connect(MeshConfig {
        insecure: true,
        ..mesh_config(0, &peers)
    })
    .unwrap_err();
    assert!(matches!(error, JoinError::NotThisHost { rank: 0, .. }), "{error}");
}

#[test]
fn addresses_beyond_loopback_need_insecure() {
    let (mut sockets, mut peers) = listeners(2);
    peers[0] = "192.0.2.1:7000".to_owned();
    for result in [
        TcpMesh::connect(mesh_config(0, &peers)),
        TcpMesh::connect_on(sockets.remove(1), mesh_config(1, &peers)),
        TcpMesh::connect_on(TcpListener::bind("0.0.0.0:0").unwrap(), mesh_config(1, &peers)),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, JoinError::NotLoopback { .. }), "{error}");
        assert!(error.to_string().contains("insecure: true"), "{error}");
    }
}

#[test]
fn a_congestion_control_that_the_host_does_not_have_is_named_before_ranks_meet() {
    let (listeners, peers) = listeners(2);
    let config = MeshConfig {
        congestion: Congestion::from_name("no_such"),
        ..mesh_config(0, &peers)
    };
    let error = TcpMesh::connect_on(listeners.into_iter().next().unwrap(), config).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, JoinError::Congestion { .. }), "{text}");
    assert!(
        text.contains("`congestion_control`") && text.contains("no_such") && text.contains("allowed are"),
        "{text}"
    );
}

#[test]
fn a_rank_outside_the_list_is_an_error() {
    let error = TcpMesh::connect(mesh_config(2, &["127.0.0.1:1".into(), "127.0.0.1:2".into()])).unwrap_err();
    assert_eq!(error, JoinError::NoSuchRank { rank: 2, len: 2 });
    assert!(matches!(
        TcpMesh::connect(mesh_config(0, &[])),
        Err(JoinError::PeerCount { len: 0, .. })
    ));
}

#[test]
fn ranks_meet_over_ipv6() {
    let Ok(socket) = TcpListener::bind("[::1]:0") else {
        return;
    };
    let sockets = vec![socket, TcpListener::bind("[::1]:0").unwrap()];
    let peers: Vec<_> = sockets.iter().map(|s| s.local_addr().unwrap().to_string()).collect();
    let configs = (0..2).map(|rank| mesh_config(rank, &peers)).collect();
    assert!(join_all(sockets, configs).iter().all(Result::is_ok));
}

#[test]
fn heartbeats_keep_a_patient_receiver_waiting_and_a_plain_deadline_does_not_wait() {
    let group = tcp_group(2, |config| config.heartbeat = Duration::from_millis(30));
    on_all(group, |rank, transport| {
        if rank == 1 {
            thread::sleep(Duration::from_millis(700));
            return transport.send_message(0, b"computed").unwrap();
        }
        let error = transport
            .recv_message(1, Patience::Total(Duration::from_millis(100)))
            .unwrap_err();
        assert!(
            matches!(
                error,
                TransportError::NoMessage {
                    rank: 1,
                    silent: false,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(
            transport
                .recv_message(1, Patience::Silence(Duration::from_millis(300)))
                .unwrap(),
            b"computed"
        );
    });
}

#[test]
fn a_rank_without_heartbeats_is_silent() {
    let group = tcp_group(2, |config| config.heartbeat = Duration::from_secs(3600));
    on_all(group, |rank, transport| {
        if rank == 0 {
            let error = transport
                .recv_message(1, Patience::Silence(Duration::from_millis(200)))
                .unwrap_err();
            let TransportError::NoMessage {
                rank: 1,
                silent: true,
                waited,
            } = error
            else {
                panic!("{error}")
            };
            assert!(waited >= Duration::from_millis(200), "{waited:?}");
        }
    });
}

#[test]
fn a_message_beyond_the_limit_is_refused_by_sender_and_receiver() {
    on_all(tcp_group(2, |config| config.message_limit = 1000), |rank, transport| {
        let error = transport.send_message(1 - rank, &[0; 1001]).unwrap_err();
        assert_eq!(
            error,
            TransportError::MessageTooLong {
                rank: 1 - rank,
                len: 1001,
                limit: 1000
            }
        );
        transport.send_message(1 - rank, &[0; 1000]).unwrap();
        assert_eq!(
            transport
                .recv_message(1 - rank, Patience::Total(PATIENCE))
                .unwrap()
                .len(),
            1000
        );
    });
    let uneven = tcp_group(2, |config| {
        config.message_limit = if config.rank == 0 { 2000 } else { 1000 }
    });
    on_all(uneven, |rank, transport| {
        if rank == 0 {
            return transport.send_message(1, &[0; 1500]).unwrap();
        }
        let error = transport.recv_message(0, Patience::Total(PATIENCE)).unwrap_err();
        assert!(
            matches!(
                error,
                TransportError::PeerMisbehaved {
                    rank: 0,
                    source: WireError::TooLong { .. }
                }
            ),
            "{error}"
        );
    });
}

/// Runs as a process of its own, started by the test below; on its own it has nothing to join.
#[test]
#[ignore = "the process that a_killed_process_is_named_at_once starts"]
fn rank_1_that_gets_killed() {
    let Ok(peers) = std::env::var("TPQ_TEST_PEERS") else {
        return;
    };
    let peers: Vec<String> = peers.split(',').map(str::to_owned).collect();
    let mesh = TcpMesh::connect(mesh_config(1, &peers)).unwrap();
    mesh.send_message(0, b"joined").unwrap();
    thread::sleep(PATIENCE);
}

#[test]
fn a_killed_process_is_named_at_once() {
    let (mut sockets, peers) = listeners(2);
    drop(sockets.remove(1));
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "rank_1_that_gets_killed", "--ignored"])
        .env("TPQ_TEST_PEERS", peers.join(","))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mesh = TcpMesh::connect_on(sockets.remove(0), mesh_config(0, &peers)).unwrap();
    assert_eq!(mesh.recv_message(1, Patience::Total(PATIENCE)).unwrap(), b"joined");
    let communicator = Communicator::new(Arc::new(mesh), ExchangeConfig::default());
    let waiting = thread::spawn(move || {
        let (id, name) = (0, "layer 0".into());
        let (values, mut output) = (Values::F32(&[0.0; 64]), [0.0; 64]);
        let result = communicator.all_reduce(
            &Site { id, name },
            &coarse::coarse(64),
            values,
            ValuesMut::F32(&mut output),
        );
        (Instant::now(), result.unwrap_err())
    });
    thread::sleep(Duration::from_millis(50));
    let killed = Instant::now();
    child.kill().unwrap();
    child.wait().unwrap();
    let (noticed, error) = waiting.join().unwrap();
    assert!(noticed - killed < Duration::from_secs(1));
    assert!(
        error.rank() == Some(1) && error.to_string().starts_with("at layer 0: rank 1 was lost"),
        "{error}"
    );
}
