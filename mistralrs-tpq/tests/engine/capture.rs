//! A packet capture of the loopback on which ranks talk: prompts are in it without a secret, and not with one.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mistralrs_tpq::codec::CodecKind;
use mistralrs_tpq::wire::{FrameHeader, FrameKind};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::namespace::{run_inside, sh};
use crate::common::{model, ports::free_ports};
use crate::runs::{launch_command, Server};

const PROMPT: &str = "fn all_reduce(parts: &[Vec<f32>]) -> Vec<f32> {";
/// How a plan names a prompt; it travels as token ids.
const PLAN: &[u8] = b"\"tokens\":[";
const ETHERNET: usize = 14;

/// Everything that TCP carries in this namespace, by source and destination port, in the order of arrival.
struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<(u16, u16), Vec<u8>>>,
}

impl Capture {
    fn start() -> Self {
        // ETH_P_ALL, in network order.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0x0300))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket.set_recv_buffer_size(64 << 20).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut socket, mut packet, mut flows) = (socket, vec![0; 128 << 10], BTreeMap::new());
            while !stopped.load(Ordering::Acquire) {
                let Ok(len) = socket.read(&mut packet) else { continue };
                if let Some((ports, body)) = tcp(&packet[..len]) {
                    flows.entry(ports).or_insert_with(Vec::new).extend_from_slice(body);
                }
            }
            flows
        });
        Self { stop, thread }
    }

    /// All bytes between ports other than `without`.
    fn finish(self, without: u16) -> Vec<u8> {
        self.stop.store(true, Ordering::Release);
        let flows = self.thread.join().unwrap();
        let other = |(from, to): &(u16, u16)| *from != without && *to != without;
        flows
            .into_iter()
            .filter(|(ports, _)| other(ports))
            .flat_map(|(_, bytes)| bytes)
            .collect()
    }
}

/// Ports and payload of a TCP segment in an IPv4 packet in an Ethernet frame.
fn tcp(frame: &[u8]) -> Option<((u16, u16), &[u8])> {
    let ip = frame.get(ETHERNET..)?;
    let (first, protocol) = (*ip.first()?, *ip.get(9)?);
    if first >> 4 != 4 || protocol != 6 {
        return None;
    }
    let segment = ip.get(usize::from(first & 15) * 4..)?;
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    let header = usize::from(*segment.get(12)? >> 4) * 4;
    Some(((port(0)?, port(2)?), segment.get(header..)?))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_packet_capture_shows_no_prompt_with_a_secret_and_would_show_one_without() {
    let _turn = crate::common::turn();
    run_inside(&["-r", "-n"], "capture::prompts_in_a_capture");
}

#[test]
#[ignore = "runs inside the namespace that a_packet_capture_... makes"]
fn prompts_in_a_capture() {
    assert!(sh("ip link set lo up"));
    let folder = tempfile::tempdir().unwrap();
    let mut captured = Vec::new();
    for (secret, encrypt) in [(false, false), (true, false), (true, true)] {
        let group = format!("{{connect_timeout_s: 60, timeout_s: 20, encrypt: {encrypt}}}");
        let config = model::config(folder.path(), "capture", "{kind: dynamic}", &group);
        let port = free_ports(1)[0];
        let mut command = launch_command(2, port, &config, &model::demo(), "f32");
        if secret {
            command.env("TPQ_SECRET", "s".repeat(40));
        }
        let capture = Capture::start();
        let server = Server::start(command, port);
        assert!(!server.complete(PROMPT, 16).is_empty());
        drop(server);
        let bytes = capture.finish(port);
        assert!(bytes.len() > 100_000, "only {} bytes were captured", bytes.len());
        assert!(!contains(&bytes, PROMPT.as_bytes()));
        captured.push((contains(&bytes, PLAN), contains(&bytes, &frame_start())));
    }
    // Without a secret the plan is there, and partial sums without `encrypt`: the capture would see them.
    assert_eq!(captured, [(true, true), (false, true), (false, false)]);
}

/// How the header of a partial sum starts, up to its rank: too long to come about by chance.
fn frame_start() -> Vec<u8> {
    let header = FrameHeader {
        kind: FrameKind::OneShot,
        codec: CodecKind::Dynamic.tag(),
        dtype: 0,
        flags: 0,
        rank: 1,
        sequence: 0,
        site: 0,
        tokens: 0,
        payload_len: 0,
        part: 0,
    };
    header.encode()[..6].to_vec()
}
