//! Whatever else connects to a rank's port, or sits at a rank's address.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use mistralrs_tpq::transport::tcp::{JoinError, MeshConfig, TcpMesh};
use mistralrs_tpq::transport::{Patience, Transport, TransportError};
use mistralrs_tpq::wire::{Hello, HelloField, Prefix, Purpose, Reply, WireError, PREFIX_LEN};

use crate::group::{identity, PATIENCE};
use crate::{listeners, mesh_config, refusal};

#[test]
fn noise_on_the_port_does_not_disturb_the_join() {
    let (mut sockets, peers) = listeners(2);
    let other = sockets.remove(1);
    let first = {
        let (socket, config) = (sockets.remove(0), mesh_config(0, &peers));
        thread::spawn(move || TcpMesh::connect_on(socket, config))
    };
    let mut noise = Vec::new();
    for i in 0..150 {
        let mut stream = TcpStream::connect(&peers[0]).unwrap();
        let bytes: &[u8] = match i % 4 {
            0 => b"",
            1 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            2 => b"TPQ?\x01\x00\x00\x00\x01\x00\x00\x00\xff\xff\xff\xff",
            _ => b"TPQ?\x01",
        };
        // The other end may have hung up already.
        let _ = stream.write_all(bytes);
        noise.push(stream);
    }
    let start = Instant::now();
    let second = TcpMesh::connect_on(other, mesh_config(1, &peers)).unwrap();
    let first = first.join().unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    second.send_message(0, b"hi").unwrap();
    assert_eq!(first.recv_message(1, Patience::Total(PATIENCE)).unwrap(), b"hi");
}

fn hello_of_rank_1() -> Hello {
    Hello {
        purpose: Purpose::Data,
        rank: 1,
        to: 0,
        world_size: 2,
        identity: identity(),
    }
}

fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut head = [0; PREFIX_LEN];
    stream.read_exact(&mut head).unwrap();
    let prefix = Prefix::of_reply(&head).unwrap();
    let mut body = vec![0; prefix.body_len as usize];
    stream.read_exact(&mut body).unwrap();
    Reply::parse(&prefix, &body).unwrap()
}

/// Rank 0 of two as it waits for rank 1, and its address.
fn rank_0_joins() -> (thread::JoinHandle<Result<TcpMesh, JoinError>>, String) {
    let (mut sockets, mut peers) = listeners(2);
    let (socket, config) = (sockets.remove(0), mesh_config(0, &peers));
    let first = thread::spawn(move || TcpMesh::connect_on(socket, config));
    (first, peers.remove(0))
}

/// Both connections of rank 1, its hellos written by `write`.
fn connect_by_hand(address: &str, write: impl Fn(&mut TcpStream, &[u8])) -> [TcpStream; 2] {
    [Purpose::Data, Purpose::Control].map(|purpose| {
        let mut stream = TcpStream::connect(address).unwrap();
        let hello = Hello {
            purpose,
            ..hello_of_rank_1()
        };
        write(&mut stream, &hello.encode());
        assert!(matches!(read_reply(&mut stream), Reply::Accepted(_)));
        stream
    })
}

#[test]
fn another_protocol_version_is_refused_on_both_sides() {
    let (first, address) = rank_0_joins();
    let mut bytes = hello_of_rank_1().encode();
    bytes[4] = 9;
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(&bytes).unwrap();
    let Reply::Refused(told) = read_reply(&mut stream) else {
        panic!("accepted")
    };
    assert_eq!(told, refusal(first.join().unwrap()));
    assert_eq!((told.field, told.got.as_str()), (HelloField::Version, "9"));
}

#[test]
fn a_hello_that_comes_byte_by_byte_is_understood() {
    let (first, address) = rank_0_joins();
    let _streams = connect_by_hand(&address, |stream, hello| {
        stream.set_nodelay(true).unwrap();
        for byte in hello {
            stream.write_all(&[*byte]).unwrap();
        }
    });
    first.join().unwrap().unwrap();
}

#[test]
fn another_service_at_the_address_of_a_rank_is_reported_as_such() {
    let (mut sockets, peers) = listeners(2);
    let service = sockets.remove(0);
    thread::spawn(move || {
        while let Ok((mut stream, _)) = service.accept() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let config = MeshConfig {
        connect_timeout: Duration::from_millis(400),
        ..mesh_config(1, &peers)
    };
    let text = TcpMesh::connect_on(sockets.remove(0), config).unwrap_err().to_string();
    assert!(text.contains("another service"), "{text}");
}

#[test]
fn control_bytes_that_are_not_the_protocol_end_the_mesh_and_name_the_rank() {
    let (first, address) = rank_0_joins();
    let [_data, mut control] = connect_by_hand(&address, |stream, hello| stream.write_all(hello).unwrap());
    let first = first.join().unwrap().unwrap();
    control.write_all(b"garbage!").unwrap();
    let error = first.recv_message(1, Patience::Total(PATIENCE)).unwrap_err();
    assert!(
        matches!(
            error,
            TransportError::PeerMisbehaved {
                rank: 1,
                source: WireError::Magic { .. }
            }
        ),
        "{error}"
    );
}
