//! A relay between two ranks that sees, and may change, every byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Which of a pair's two connections, and which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The connecting rank opens its data connection first.
    pub data: bool,
    pub from_dialer: bool,
}

/// Gets each piece of a flow; what it leaves in the vector is sent on.
pub type Tamper = dyn FnMut(Flow, &mut Vec<u8>) + Send;

/// Everything that the relayed ranks sent, in the order in which it came.
type Seen = Mutex<Vec<(Flow, Vec<u8>)>>;
type Tampering = Mutex<Option<Box<Tamper>>>;

pub struct Proxy {
    pub address: SocketAddr,
    seen: Arc<Seen>,
    tamper: Arc<Tampering>,
}

impl Proxy {
    /// Relays the two connections of one dialing rank to `to`. Its threads end with the connections.
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            tamper: Arc::default(),
        };
        let (seen, tamper) = (proxy.seen.clone(), proxy.tamper.clone());
        thread::spawn(move || {
            for data in [true, false] {
                let (dialer, _) = listener.accept().unwrap();
                let acceptor = TcpStream::connect(to).unwrap();
                for (from_dialer, from, to) in [(true, &dialer, &acceptor), (false, &acceptor, &dialer)] {
                    let flow = Flow { data, from_dialer };
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (seen, tamper) = (seen.clone(), tamper.clone());
                    thread::spawn(move || relay(flow, from, to, &seen, &tamper));
                }
            }
        });
        proxy
    }

    pub fn tamper(&self, with: impl FnMut(Flow, &mut Vec<u8>) + Send + 'static) {
        *self.tamper.lock().unwrap() = Some(Box::new(with));
    }

    pub fn bytes(&self, which: impl Fn(Flow) -> bool) -> Vec<u8> {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .filter(|(flow, _)| which(*flow))
            .flat_map(|(_, bytes)| bytes.iter().copied())
            .collect()
    }
}

fn relay(flow: Flow, mut from: TcpStream, mut to: TcpStream, seen: &Seen, tamper: &Tampering) {
    let mut buffer = [0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let mut piece = buffer[..len].to_vec();
        seen.lock().unwrap().push((flow, piece.clone()));
        if let Some(tamper) = &mut *tamper.lock().unwrap() {
            tamper(flow, &mut piece);
        }
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    // An end, however it came, is passed on, so that nothing waits because of the relay.
    let _ = to.shutdown(std::net::Shutdown::Write);
}
