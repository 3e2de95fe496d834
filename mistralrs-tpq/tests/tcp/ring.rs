//! Deployments that have a RING_CONFIG.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mistralrs_tpq::transport::tcp::ring::{RingConfig, RingError, RingTopology};
use mistralrs_tpq::transport::tcp::TcpMesh;
use mistralrs_tpq::transport::{Patience, Transport};

use crate::group::{on_all, PATIENCE};
use crate::mesh_config;
use crate::ports::free_ports;

fn ring_file(dir: &std::path::Path, rank: usize, ports: &[u16]) -> RingConfig {
    let right = ports[(rank + 1) % ports.len()];
    let text = format!(
        r#"{{"master_ip": "127.0.0.1", "master_port": 1, "port": {}, "right_port": {right}, "rank": {rank}, "world_size": {}}}"#,
        ports[rank],
        ports.len()
    );
    let path = dir.join(format!("ring{rank}.json"));
    std::fs::write(&path, text).unwrap();
    RingConfig::load(&path).unwrap()
}

#[test]
fn a_ring_config_becomes_a_mesh() {
    let dir = tempfile::tempdir().unwrap();
    for world_size in [1, 2, 3, 5] {
        let ports = free_ports(world_size);
        let expected: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let join = |rank| {
            let (config, expected) = (ring_file(dir.path(), rank, &ports), expected.clone());
            thread::spawn(move || {
                let ring = RingTopology::learn(&config, PATIENCE, false).unwrap();
                assert_eq!(ring.peers, expected);
                TcpMesh::connect_on(ring.listener, mesh_config(ring.rank, &ring.peers)).unwrap()
            })
        };
        let threads: Vec<_> = (0..world_size).map(join).collect();
        let group = threads
            .into_iter()
            .map(|t| Arc::new(t.join().unwrap()) as Arc<dyn Transport>)
            .collect();
        on_all(group, |rank, transport| {
            for peer in (0..world_size).filter(|peer| *peer != rank) {
                transport.send_message(peer, &[rank as u8]).unwrap();
                assert_eq!(
                    transport.recv_message(peer, Patience::Total(PATIENCE)).unwrap(),
                    [peer as u8]
                );
            }
        });
    }
}

#[test]
fn a_ring_that_does_not_close_names_file_key_and_rank() {
    let dir = tempfile::tempdir().unwrap();
    let ports = free_ports(3);
    let alone = ring_file(dir.path(), 1, &ports);
    let error = RingTopology::learn(&alone, Duration::from_millis(200), false).unwrap_err();
    assert!(matches!(error, RingError::RightAbsent { rank: 2, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("ring1.json") && text.contains("`right_port`"), "{text}");

    let _right = TcpListener::bind(("127.0.0.1", ports[2])).unwrap();
    let error = RingTopology::learn(&alone, Duration::from_millis(200), false).unwrap_err();
    assert!(matches!(error, RingError::LeftAbsent { rank: 0, .. }), "{error}");
}

#[test]
fn ring_configs_that_make_no_sense_name_file_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ring.json");
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        RingConfig::load(&path)
    };
    let error = load(r#"{"master_port": 1, "port": 2, "rank": 0, "world_size": 2}"#)
        .unwrap_err()
        .to_string();
    assert!(error.contains("ring.json") && error.contains("right_port"), "{error}");
    let rank = load(r#"{"master_port": 1, "port": 2, "right_port": 3, "rank": 2, "world_size": 2}"#).unwrap_err();
    assert!(matches!(rank, RingError::Key { key: "rank", .. }), "{rank}");
    let far = load(r#"{"master_port":1,"port":0,"right_port":3,"right_ip":"192.0.2.1","rank":0,"world_size":2}"#);
    let far = RingTopology::learn(&far.unwrap(), PATIENCE, false).unwrap_err();
    assert!(matches!(far, RingError::Key { key: "right_ip", .. }), "{far}");
    assert!(matches!(
        RingConfig::load(&dir.path().join("none")),
        Err(RingError::Unreadable { .. })
    ));
}
