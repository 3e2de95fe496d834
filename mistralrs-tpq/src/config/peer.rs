//! The address of a rank.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// `host:port`, where the host is an IPv4 address, an IPv6 address in brackets or a DNS name. Not resolved here: a name may
/// become known only once its host is up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerAddr {
    host: String,
    port: u16,
}

/// What an address must look like; the second half of every message about a bad one.
pub(crate) const EXPECTED: &str =
    "an address that the other ranks can connect to, such as 10.0.0.1:7700, [fd00::1]:7700 or host-a:7700";

impl PeerAddr {
    /// Without brackets for IPv6.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether traffic to this address stays on the host. A DNS name other than `localhost` does not count: what it means
    /// can change after the check.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => self.host == "localhost",
        }
    }
}

/// The text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {EXPECTED}")]
pub struct BadPeerAddr;

impl FromStr for PeerAddr {
    type Err = BadPeerAddr;

    fn from_str(text: &str) -> Result<Self, BadPeerAddr> {
        let (host, port) = text.trim().rsplit_once(':').ok_or(BadPeerAddr)?;
        // `+7700` parses as a number.
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(BadPeerAddr);
        }
        let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or(BadPeerAddr)?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => IpAddr::V6(v6.parse().map_err(|_| BadPeerAddr)?).to_string(),
            None => host_name(host)?,
        };
        // 0.0.0.0 is a place to listen, not one to connect to.
        if host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_unspecified() || ip.is_multicast())
        {
            return Err(BadPeerAddr);
        }
        Ok(Self { host, port })
    }
}

/// Lower case, so that `Host-A:7700` and `host-a:7700` are found to be duplicates.
fn host_name(host: &str) -> Result<String, BadPeerAddr> {
    let host = host.to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if host.len() > 253 || !host.split('.').all(label) {
        return Err(BadPeerAddr);
    }
    // `10.0.0.256` and `10.0.0` are misspelt addresses rather than names.
    let all_numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if all_numeric && host.parse::<IpAddr>().is_err() {
        return Err(BadPeerAddr);
    }
    Ok(host)
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_can_be_connected_to_parse_and_print_back() {
        for text in [
            "10.0.0.1:7700",
            "[fd00::1]:7700",
            "localhost:1",
            "node-3.rack_2.example:65535",
        ] {
            assert_eq!(text.parse::<PeerAddr>().unwrap().to_string(), text);
        }
        assert_eq!("Node-A:7700".parse::<PeerAddr>(), "node-a:7700".parse());
    }

    #[test]
    fn addresses_that_cannot_be_connected_to_are_refused() {
        for text in [
            "",
            ":",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:+1",
            ":7700",
            "0.0.0.0:7700",
            "[::]:7700",
            "fd00::1:7700",
            "[10.0.0.1]:7700",
            "10.0.0.256:7700",
            "a b:7700",
            "a..b:7700",
            "224.0.0.1:7700",
            "tcp://h:7700",
        ] {
            assert_eq!(text.parse::<PeerAddr>(), Err(BadPeerAddr), "{text}");
        }
    }

    #[test]
    fn only_loopback_addresses_count_as_loopback() {
        let loopback = |text: &str| text.parse::<PeerAddr>().unwrap().is_loopback();
        assert!(loopback("127.0.0.1:1") && loopback("127.8.8.8:1") && loopback("[::1]:1") && loopback("localhost:1"));
        assert!(loopback("[::ffff:127.0.0.1]:1"));
        assert!(!loopback("10.0.0.1:1") && !loopback("[fe80::1]:1") && !loopback("localhost.example:1"));
    }
}
