//! Station 2: what travels between ranks, as bytes. No socket, clock or tensor in here.
//!
//! | format | when | size |
//! |---|---|---|
//! | [`Hello`], [`Reply`] | once per connection | 16 bytes + body, at most 4 KiB |
//! | [`FrameHeader`] | before each payload on a data connection | 32 bytes |
//! | [`ControlPrefix`] | before each message on a control connection | 8 bytes |
//!
//! All numbers are little endian. Whatever comes from a peer is parsed, never trusted: a length is compared with a
//! limit before anything is allocated, and no input panics. `tests/golden/wire/` pins the bytes; whoever changes them
//! raises [`PROTOCOL_VERSION`].

mod cursor;
mod frame;
mod header;
mod hello;
mod refusal;

pub use frame::{ControlKind, ControlPrefix, CONTROL_PREFIX_LEN, DEFAULT_MESSAGE_LIMIT};
pub use header::{FrameHeader, FrameKind, FLAG_NONFINITE, FRAME_HEADER_LEN, FRAME_TRAILER_LEN};
pub use hello::{handshake, Digest, Hello, Identity, Prefix, Purpose, Reply, HELLO_BODY_LIMIT, PREFIX_LEN};
pub use refusal::{HelloField, Refusal};

/// Raised by every change of the bytes in this module or of the order in which an exchange sends them; ranks with different versions
/// refuse each other.
pub const PROTOCOL_VERSION: u16 = 3;

// Lossless payloads are the host's own f32/bf16/f16 bytes; the format says little endian.
#[cfg(target_endian = "big")]
compile_error!("the wire format is little endian and payloads are not swapped");

/// Bytes that are not what their place in the stream calls for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    #[error("{what} ends after {got} bytes, expected {needed}")]
    Truncated {
        what: &'static str,
        needed: usize,
        got: usize,
    },
    #[error("{what} starts with {got:02x?}, expected {expected:02x?}: not the tpq protocol")]
    Magic {
        what: &'static str,
        expected: [u8; 4],
        got: [u8; 4],
    },
    #[error("{what} is {len} bytes long, the limit is {limit}")]
    TooLong { what: &'static str, len: u64, limit: u64 },
    #[error("{what} is {got}, which this version does not know")]
    UnknownTag { what: &'static str, got: u64 },
    #[error("{what} is not UTF-8")]
    Utf8 { what: &'static str },
    #[error("{what} has {extra} bytes after its end")]
    Trailing { what: &'static str, extra: usize },
    #[error("{what} speaks protocol version {got}, expected {expected}")]
    Version {
        what: &'static str,
        expected: u16,
        got: u16,
    },
}
