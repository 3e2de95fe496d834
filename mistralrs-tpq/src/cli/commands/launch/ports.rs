//! Loopback ports that stay free until their ranks listen on them.

use crate::cli::CliError;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

/// One port for each rank, bound and not listened on, for as long as this lives.
///
/// Linux gives such a port to no connection and to nobody who asks for any port, but lets a listener that reuses addresses bind
/// it, as the ranks do. A port that was only seen to be free goes to a stranger at times: once to the server that rank 0 had
/// just started on a port the kernel chose. Elsewhere a bound port would be refused to the rank too, so it is given back at once.
pub(super) struct Reserved {
    ports: Vec<u16>,
    _held: Vec<Socket>,
}

impl Reserved {
    /// Ports that the kernel chooses.
    pub(super) fn any(ranks: u16) -> Result<Self, CliError> {
        let bound = (0..ranks).map(|_| bind(0)).collect::<io::Result<Vec<_>>>();
        bound
            .map(Self::hold)
            .map_err(|error| CliError::io("cannot find a free loopback port", error))
    }

    /// `base` for rank 0, the next for rank 1, and so on.
    pub(super) fn from(base: u16, ranks: u16) -> Result<Self, CliError> {
        let last = base.checked_add(ranks - 1).ok_or_else(|| {
            CliError::Usage(format!(
                "--base-port {base}: {ranks} ranks need ports up to {}, expected at most 65535",
                u32::from(base) + u32::from(ranks) - 1
            ))
        })?;
        let one = |(rank, port)| {
            bind(port).map_err(|error| {
                CliError::Usage(format!(
                    "--base-port {base}: port {port} of rank {rank} cannot be used: {error}"
                ))
            })
        };
        (base..=last)
            .enumerate()
            .map(one)
            .collect::<Result<Vec<_>, _>>()
            .map(Self::hold)
    }

    fn hold(bound: Vec<(u16, Socket)>) -> Self {
        let (ports, mut held): (Vec<_>, Vec<_>) = bound.into_iter().unzip();
        if !cfg!(target_os = "linux") {
            held.clear();
        }
        Self { ports, _held: held }
    }

    /// As `TPQ_PEERS` has them.
    pub(super) fn peers(&self) -> String {
        let address = |port: &u16| SocketAddrV4::new(Ipv4Addr::LOCALHOST, *port).to_string();
        self.ports.iter().map(address).collect::<Vec<_>>().join(",")
    }
}

fn bind(port: u16) -> io::Result<(u16, Socket)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())?;
    let bound = socket.local_addr()?.as_socket_ipv4();
    let port = bound
        .ok_or_else(|| io::Error::other("no IPv4 address was bound"))?
        .port();
    Ok((port, socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn reserved_ports_are_distinct_and_a_rank_can_listen_on_its_own() {
        let reserved = Reserved::any(16).unwrap();
        let distinct: std::collections::BTreeSet<u16> = reserved.ports.iter().copied().collect();
        assert_eq!(distinct.len(), 16);
        let rank = TcpListener::bind((Ipv4Addr::LOCALHOST, reserved.ports[0])).unwrap();
        drop(rank);
        // As a restarted rank does.
        TcpListener::bind((Ipv4Addr::LOCALHOST, reserved.ports[0])).unwrap();
        assert!(reserved
            .peers()
            .starts_with(&format!("127.0.0.1:{},127.0.0.1:", reserved.ports[0])));
    }

    #[test]
    fn a_port_beyond_the_last_or_in_use_names_the_rank() {
        let message = |base, ranks| Reserved::from(base, ranks).err().unwrap().to_string();
        assert_eq!(
            message(65530, 8),
            "--base-port 65530: 8 ranks need ports up to 65537, expected at most 65535"
        );
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = message(port, 1);
        assert!(
            refused.contains(&format!("port {port} of rank 0 cannot be used")),
            "{refused}"
        );
    }
}
