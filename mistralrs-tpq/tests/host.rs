//! Faults of the host: a link that is cut, a disk that is full. In namespaces of their own, which need no privileges; where the
//! host forbids those, a test says so and has checked nothing.
#![cfg(target_os = "linux")]

mod common;
#[path = "collective/group.rs"]
#[allow(dead_code)]
mod group;

use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mistralrs_tpq::codec::{Dynamic, Values, ValuesMut};
use mistralrs_tpq::exchange::{Communicator, ExchangeConfig, Site};
use mistralrs_tpq::manifest::Manifest;
use mistralrs_tpq::transport::tcp::{MeshConfig, Secret, TcpMesh};

use common::manifest::{layer, manifest};
use common::namespace::{inside, run_inside, sh};
use common::within;
use group::{identity, PATIENCE};

/// Without a heartbeat or a byte for this long a rank counts as lost.
const TIMEOUT: Duration = Duration::from_secs(2);
const FEATURES: usize = 512;
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(PATIENCE, condition), "{what} did not happen");
}

#[test]
fn a_cut_link_between_two_hosts_is_an_error_on_both_sides_that_names_the_rank() {
    let Some(text) = run_inside(&["-r", "-n"], "rank_0_whose_link_is_cut") else {
        return;
    };
    for (rank, peer) in [(0, 1), (1, 0)] {
        let line = text.lines().find(|line| line.starts_with(&format!("rank {rank}:")));
        let line = line.unwrap_or_else(|| panic!("no word of rank {rank}: {text}"));
        assert!(line.contains(&format!("rank {peer}")), "{line}");
        println!("{line}");
    }
}

#[test]
#[ignore = "runs inside the namespace that a_cut_link_... makes"]
fn rank_0_whose_link_is_cut() {
    let mut rank_1 = inside(&["-n"], "rank_1_in_a_network_of_its_own").spawn().unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let theirs = format!("/proc/{}/ns/net", rank_1.id());
    until("a namespace for rank 1", || {
        std::fs::read_link(&theirs).is_ok_and(|theirs| theirs != own)
    });
    let pid = rank_1.id();
    assert!(sh(&format!("ip link add tpq0 type veth peer name tpq1 netns {pid}")));
    assert!(sh(&format!(
        "ip addr add {}/24 dev tpq0 && ip link set tpq0 up",
        ADDRESSES[0]
    )));
    let cut = || assert!(sh("ip link set tpq0 down"));
    exchange_until_it_fails(0, Some(&cut));
    wait_for(&mut rank_1);
}

#[test]
#[ignore = "runs inside the namespace that rank_0_whose_link_is_cut makes"]
fn rank_1_in_a_network_of_its_own() {
    until("a link", || sh(&format!("ip addr add {}/24 dev tpq1", ADDRESSES[1])));
    assert!(sh("ip link set tpq1 up"));
    exchange_until_it_fails(1, None);
}

/// Prints the error and how long after the last good exchange it came.
fn exchange_until_it_fails(rank: usize, cut: Option<&dyn Fn()>) {
    let peers = ADDRESSES.map(|address| format!("{address}:7700")).to_vec();
    let config = MeshConfig {
        secret: Some(Secret::new(&[b'n'; 40]).unwrap()),
        connect_timeout: PATIENCE,
        timeout: TIMEOUT,
        heartbeat: TIMEOUT / 10,
        ..MeshConfig::new(rank, peers, identity())
    };
    let exchange = ExchangeConfig {
        timeout: TIMEOUT,
        ..ExchangeConfig::default()
    };
    let communicator = Communicator::new(Arc::new(TcpMesh::connect(config).unwrap()), exchange);
    let site = Site {
        id: 1,
        name: "layer 1".into(),
    };
    let (partial, mut sum) = (vec![1.0; FEATURES], vec![0.0; FEATURES]);
    let mut last = Instant::now();
    for round in 0.. {
        if round == 50 {
            cut.iter().for_each(|cut| cut());
        }
        let values = Values::F32(&partial);
        let result = communicator.all_reduce(&site, &Dynamic::new(FEATURES), values, ValuesMut::F32(&mut sum));
        if let Err(error) = result {
            println!("\nrank {rank}: after {:.1} s: {error}", last.elapsed().as_secs_f64());
            assert!(last.elapsed() < TIMEOUT * 2, "{:?}: {error}", last.elapsed());
            assert!(round >= 50 || cut.is_none(), "before the cut: {error}");
            return;
        }
        last = Instant::now();
    }
}

fn wait_for(child: &mut Child) {
    let mut status = None;
    until("the end of rank 1", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_leaves_the_older_manifest_whole() {
    run_inside(&["-r", "-m"], "a_manifest_on_a_full_disk");
}

#[test]
#[ignore = "runs inside the namespace that a_full_disk_... makes"]
fn a_manifest_on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path();
    assert!(sh(&format!("mount -t tmpfs -o size=64k tmpfs {}", disk.display())));
    let older = of_size(64);
    let path = older.write(disk).unwrap();
    let files = || std::fs::read_dir(disk).unwrap().count();
    assert_eq!(files(), 2);

    let message = of_size(32_768).write(disk).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("cannot write {}", disk.join("scales.safetensors").display()))
            && message.contains("No space left"),
        "{message}"
    );
    assert_eq!(files(), 2, "a temporary file is left");
    assert_eq!(Manifest::load(&path).unwrap(), older);
    unmount(disk);
}

fn unmount(disk: &Path) {
    assert!(sh(&format!("umount {}", disk.display())));
}

/// Two ranks' ranges of one layer: 8 bytes a feature.
fn of_size(features: usize) -> Manifest {
    manifest(vec![layer(
        "model.layers.0.mlp.down_proj",
        &[3],
        vec![1.0; 2 * features],
    )])
}
