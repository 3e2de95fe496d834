//! Ports for processes under test.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Mutex, PoisonError};

use socket2::{Domain, Socket, Type};

/// Distinct loopback ports. They stay bound, so that the kernel gives them to nobody who asks for any port, and not listened on,
/// so that a process under test can.
pub fn free_ports(count: usize) -> Vec<u16> {
    static HELD: Mutex<Vec<Socket>> = Mutex::new(Vec::new());
    let bind = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        socket
    };
    let bound: Vec<Socket> = (0..count).map(bind).collect();
    let port = |socket: &Socket| socket.local_addr().unwrap().as_socket_ipv4().unwrap().port();
    let ports = bound.iter().map(port).collect();
    if cfg!(target_os = "linux") {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).extend(bound);
    }
    ports
}
