//! The address of a rank as a message: how [`ring`](super::ring) and [`star`](super::star) pass them on.
//!
//! Fixed: magic "TPQR", sender u32, world_size u32, rank the address is of u32, port u16, family u16 (4 or 6), address 16
//! bytes.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Between two attempts to reach a rank that may not have started yet.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// For one attempt: a host that drops packets must not use up the whole time.
const ATTEMPT: Duration = Duration::from_secs(3);
const MAGIC: [u8; 4] = *b"TPQR";
const MESSAGE_LEN: usize = 36;

/// Where a rank listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) sender: u32,
    pub(super) world_size: u32,
    pub(super) rank: u32,
    pub(super) address: SocketAddr,
}

impl Entry {
    pub(super) fn encode(&self) -> [u8; MESSAGE_LEN] {
        let mut out = [0; MESSAGE_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&self.sender.to_le_bytes());
        out[8..12].copy_from_slice(&self.world_size.to_le_bytes());
        out[12..16].copy_from_slice(&self.rank.to_le_bytes());
        out[16..18].copy_from_slice(&self.address.port().to_le_bytes());
        let (family, ip) = match self.address.ip() {
            IpAddr::V4(ip) => (4_u16, ip.to_ipv6_mapped()),
            IpAddr::V6(ip) => (6, ip),
        };
        out[18..20].copy_from_slice(&family.to_le_bytes());
        out[20..].copy_from_slice(&ip.octets());
        out
    }

    /// "This host" means the host of the rank that says so.
    pub(super) fn as_seen_from(&mut self, sender: IpAddr) {
        if self.address.ip().is_loopback() && !sender.is_loopback() {
            self.address.set_ip(sender);
        }
    }

    fn parse(bytes: &[u8; MESSAGE_LEN]) -> io::Result<Self> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if bytes[..4] != MAGIC {
            return Err(io::Error::other("not an address of tpq"));
        }
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[20..]);
        let ip = Ipv6Addr::from(octets);
        let ip = match (u16_at(18), ip.to_ipv4_mapped()) {
            (4, Some(ip)) => IpAddr::V4(ip),
            (6, _) => IpAddr::V6(ip),
            _ => return Err(io::Error::other("unknown address family")),
        };
        let address = SocketAddr::new(ip, u16_at(16));
        Ok(Self {
            sender: u32_at(4),
            world_size: u32_at(8),
            rank: u32_at(12),
            address,
        })
    }
}

/// Connects to `address` by `deadline`, as often as it takes, and sends `entry`. Fails with what the last attempt met.
pub(super) fn dial(address: &SocketAddr, entry: &Entry, deadline: Instant) -> io::Result<TcpStream> {
    let remaining = || deadline.saturating_duration_since(Instant::now());
    loop {
        let patience = remaining().clamp(Duration::from_millis(1), ATTEMPT);
        let connected = TcpStream::connect_timeout(address, patience).and_then(|mut stream| {
            // A free port of this host may connect to itself.
            if stream.local_addr()? == stream.peer_addr()? {
                return Err(io::Error::other("nobody listens"));
            }
            stream.write_all(&entry.encode()).map(|()| stream)
        });
        match connected {
            Err(_) if !remaining().is_zero() => std::thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

/// Reads one entry by `deadline`, in steps: a single read timeout would start anew with every byte.
pub(super) fn read_entry(stream: &mut TcpStream, deadline: Instant) -> io::Result<Entry> {
    let mut bytes = [0; MESSAGE_LEN];
    let mut at = 0;
    while at < MESSAGE_LEN {
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came in time"));
        }
        stream.set_read_timeout(Some(remaining))?;
        match stream.read(&mut bytes[at..]) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed")),
            Ok(n) => at += n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if at >= 4 && bytes[..4] != MAGIC {
            break;
        }
    }
    Entry::parse(&bytes)
}
