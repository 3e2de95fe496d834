//! By which rules TCP shares a wire between data connections.
//!
//! BBR, the default of some clouds and distributions, sends at the rate that it believes a connection to have. Ranks send to all
//! peers in turns, each connection at the whole wire's rate for a moment, and that belief is then too low: on links of 20 Mbit/s
//! that make up for no idle time `two_shot` took four ranks 1.3 to 1.7 times the wire's time with BBR, and eight 1.7 to 1.8;
//! with CUBIC or Reno 1.02 to 1.03, and 1.03 to 1.05 (`benches/links/run.py --rate 20mbit --strict --congestion bbr`).

use std::io;
use std::net::TcpStream;

use super::error::JoinError;

/// `group.congestion_control`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Congestion {
    /// The host's default, unless that is a kind of BBR and the host has CUBIC or Reno.
    #[default]
    Auto,
    /// The host's default.
    System,
    /// Such as `cubic`: one of `sysctl net.ipv4.tcp_available_congestion_control`.
    Named(String),
}

/// Instead of BBR, the first that this process may use.
const INSTEAD: [&str; 2] = ["cubic", "reno"];

impl Congestion {
    pub fn from_name(name: &str) -> Self {
        match name {
            "auto" => Self::Auto,
            "system" => Self::System,
            other => Self::Named(other.to_owned()),
        }
    }

    /// Whether this host lets this process use what is asked for: before other ranks are met.
    pub(super) fn check(&self) -> Result<(), JoinError> {
        let Self::Named(name) = self else {
            return Ok(());
        };
        let refused = |reason: String| JoinError::Congestion {
            name: name.clone(),
            reason,
            allowed: allowed(),
        };
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let set = socket.and_then(|socket| set(&socket2::SockRef::from(&socket), name));
        set.map_err(|error| refused(error.to_string()))
    }

    /// Sets it on a connection, and returns its name where that is not the host's own choice.
    pub(super) fn apply(&self, stream: &TcpStream) -> io::Result<Option<String>> {
        let socket = socket2::SockRef::from(stream);
        match self {
            Self::System => Ok(None),
            Self::Named(name) => set(&socket, name).map(|()| Some(name.clone())),
            Self::Auto if current(&socket).is_some_and(|name| name.starts_with("bbr")) => {
                let instead = INSTEAD.into_iter().find(|name| set(&socket, name).is_ok());
                Ok(instead.map(str::to_owned))
            }
            Self::Auto => Ok(None),
        }
    }
}

#[cfg(target_os = "linux")]
fn set(socket: &socket2::SockRef<'_>, name: &str) -> io::Result<()> {
    socket.set_tcp_congestion(name.as_bytes())
}

#[cfg(target_os = "linux")]
fn current(socket: &socket2::SockRef<'_>) -> Option<String> {
    let name = socket.tcp_congestion().ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
}

/// What an unprivileged process may use, for people.
#[cfg(target_os = "linux")]
fn allowed() -> String {
    let names = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
    names.map_or_else(|_| "unknown".to_owned(), |names| names.trim().to_owned())
}

#[cfg(not(target_os = "linux"))]
fn set(_: &socket2::SockRef<'_>, _: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn current(_: &socket2::SockRef<'_>) -> Option<String> {
    None
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> String {
    "only the default of this operating system".to_owned()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_connection_uses_what_is_asked_for_and_not_bbr_by_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let of = |stream: &TcpStream| current(&socket2::SockRef::from(stream)).unwrap();
        let default = of(&connect());

        // Reno is there on every Linux, for every process.
        let stream = connect();
        let applied = Congestion::Named("reno".to_owned()).apply(&stream).unwrap();
        assert_eq!((applied.as_deref(), of(&stream).as_str()), (Some("reno"), "reno"));

        let stream = connect();
        assert_eq!(Congestion::System.apply(&stream).unwrap(), None);
        assert_eq!(of(&stream), default);

        let stream = connect();
        let applied = Congestion::Auto.apply(&stream).unwrap();
        let expected = if default.starts_with("bbr") {
            INSTEAD.as_slice()
        } else {
            &[default.as_str()]
        };
        assert!(expected.contains(&of(&stream).as_str()), "{default}");
        assert_eq!(applied.is_some(), default.starts_with("bbr"));
    }
}
