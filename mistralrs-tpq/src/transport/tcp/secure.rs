//! Authentication and encryption of a connection: Noise NNpsk0 (noiseprotocol.org), by the crate `snow`.
//!
//! Both ends prove that they know the group's secret and agree on keys that no recording can recover later. Nobody sends a hello
//! before that, and the acceptor takes a connection for a rank's only once the hello came under the new keys: a recorded first
//! message, sent again, gets no further.
//!
//! ```text
//! connecting                                     listening
//! prefix "TPQN" + 48 bytes: e, proof of psk  ->
//!                                            <-  prefix "TPQN" + 48 bytes: e, proof of psk and of both e
//! record(hello)                              ->
//!                                            <-  record(reply)
//! ```
//! A record is a u16 length and that many bytes: at most 16 KiB of plaintext and a tag of 16 bytes. Its nonce is its number, so a
//! record that was changed, dropped, repeated or moved does not open.

use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};
use snow::{Builder, HandshakeState, StatelessTransportState};

/// Bytes of each of the two handshake messages.
pub(super) const HANDSHAKE_LEN: usize = 48;

/// Bytes before a record's ciphertext.
pub(super) const RECORD_PREFIX_LEN: usize = 2;

/// Plaintext of one record. Larger ones would keep the receiver from decoding what has arrived; smaller ones cost more
/// system calls. 18 bytes in 16 KiB are 0.1 %.
const RECORD_LIMIT: usize = 16 << 10;
const TAG_LEN: usize = 16;

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"mistralrs-tpq links 1";

/// What the ranks of a group know and nobody else does.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// Fewer characters than [`Secret::MIN_LEN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the secret has {got} bytes, expected at least {}: make one with `openssl rand -hex 32`",
    Secret::MIN_LEN
)]
pub struct SecretTooShort {
    pub got: usize,
}

impl Secret {
    /// A recorded handshake lets an attacker try secrets at home, so this has to be random text and not a password.
    pub const MIN_LEN: usize = 32;

    /// From text such as the output of `openssl rand -hex 32`; white space around it does not count.
    ///
    /// # Errors
    /// Less than [`Secret::MIN_LEN`] bytes.
    pub fn new(text: &[u8]) -> Result<Self, SecretTooShort> {
        let text = text.trim_ascii();
        if text.len() < Self::MIN_LEN {
            return Err(SecretTooShort { got: text.len() });
        }
        Ok(Self(Sha256::digest(text).into()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A handshake under way.
pub(super) struct Handshake(HandshakeState);

impl Handshake {
    /// Of the connecting side, and its first message.
    pub(super) fn start(secret: &Secret) -> io::Result<(Self, [u8; HANDSHAKE_LEN])> {
        let mut state = builder(secret)?.build_initiator().map_err(broken)?;
        let message = message(&mut state)?;
        Ok((Self(state), message))
    }

    /// Of the connecting side, with the answer to its message.
    pub(super) fn finish(mut self, answer: &[u8]) -> io::Result<Cipher> {
        self.0.read_message(answer, &mut []).map_err(broken)?;
        Cipher::new(self.0)
    }

    /// Of the listening side, all of it: the connection's cipher and the answer to send.
    ///
    /// # Errors
    /// The sender of `first` does not know the secret.
    pub(super) fn answer(secret: &Secret, first: &[u8]) -> io::Result<(Cipher, [u8; HANDSHAKE_LEN])> {
        let mut state = builder(secret)?.build_responder().map_err(broken)?;
        state.read_message(first, &mut []).map_err(broken)?;
        let message = message(&mut state)?;
        Ok((Cipher::new(state)?, message))
    }
}

fn builder(secret: &Secret) -> io::Result<Builder<'_>> {
    let params = PATTERN.parse().map_err(broken)?;
    Builder::new(params)
        .psk(0, &secret.0)
        .and_then(|builder| builder.prologue(PROLOGUE))
        .map_err(broken)
}

fn message(state: &mut HandshakeState) -> io::Result<[u8; HANDSHAKE_LEN]> {
    let mut message = [0; HANDSHAKE_LEN];
    match state.write_message(&[], &mut message).map_err(broken)? {
        HANDSHAKE_LEN => Ok(message),
        len => Err(io::Error::other(format!("a handshake message of {len} bytes"))),
    }
}

/// The keys of one connection, and what is under way in each direction.
pub(super) struct Cipher {
    keys: StatelessTransportState,
    outbound: Mutex<Outbound>,
    inbound: Mutex<Inbound>,
}

struct Outbound {
    /// Records so far.
    count: u64,
    plain: Box<[u8]>,
    record: Box<[u8]>,
    /// Of `record`, what the socket has not taken.
    left: std::ops::Range<usize>,
    /// Plaintext bytes in the record that is under way; 0 when none is.
    held: usize,
}

struct Inbound {
    count: u64,
    raw: Box<[u8]>,
    /// Received and not yet opened.
    unopened: std::ops::Range<usize>,
    plain: Box<[u8]>,
    /// Opened and not yet handed over.
    ready: std::ops::Range<usize>,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

impl Cipher {
    fn new(state: HandshakeState) -> io::Result<Self> {
        let record = || vec![0; RECORD_PREFIX_LEN + RECORD_LIMIT + TAG_LEN].into_boxed_slice();
        let plain = || vec![0; RECORD_LIMIT + TAG_LEN].into_boxed_slice();
        Ok(Self {
            keys: state.into_stateless_transport_mode().map_err(broken)?,
            outbound: Mutex::new(Outbound {
                count: 0,
                plain: plain(),
                record: record(),
                left: 0..0,
                held: 0,
            }),
            inbound: Mutex::new(Inbound {
                count: 0,
                raw: record(),
                unopened: 0..0,
                plain: plain(),
                ready: 0..0,
            }),
        })
    }

    /// One whole record, for the handshake's own messages.
    pub(super) fn seal(&self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = lock(&self.outbound);
        let taken = out.fill([plain, &[]], &self.keys)?;
        let record = out.record[out.left.clone()].to_vec();
        (out.left, out.held) = (0..0, 0);
        if taken < plain.len() {
            return Err(io::Error::other("longer than a record"));
        }
        Ok(record)
    }

    /// What a whole record of [`Cipher::seal`] says; `body` is what follows its length.
    pub(super) fn open(&self, body: &[u8]) -> io::Result<Vec<u8>> {
        let inbound = &mut *lock(&self.inbound);
        let len = decrypt(&self.keys, &mut inbound.count, body, &mut inbound.plain)?;
        Ok(inbound.plain[..len].to_vec())
    }

    /// As `Link::write`. The bytes of a record count as written only when the socket has all of it, so a caller that got
    /// `None` has to come back with the same bytes.
    pub(super) fn write(
        &self,
        parts: [&[u8]; 2],
        mut socket: impl FnMut(&[u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<usize>> {
        let out = &mut *lock(&self.outbound);
        if out.held == 0 {
            out.held = out.fill(parts, &self.keys)?;
        }
        while !out.left.is_empty() {
            match socket(&out.record[out.left.clone()])? {
                Some(written) => out.left.start += written,
                None => return Ok(None),
            }
        }
        Ok(Some(std::mem::take(&mut out.held)))
    }

    /// As `Link::read`.
    pub(super) fn read(
        &self,
        first: &mut [u8],
        second: &mut [u8],
        mut socket: impl FnMut(&mut [u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<usize>> {
        let inbound = &mut *lock(&self.inbound);
        while inbound.ready.is_empty() {
            if !inbound.open_next(&self.keys)? {
                match socket(inbound.room())? {
                    Some(read) => inbound.unopened.end += read,
                    None => return Ok(None),
                }
            }
        }
        let mut taken = 0;
        for part in [first, second] {
            let len = part.len().min(inbound.ready.len());
            part[..len].copy_from_slice(&inbound.plain[inbound.ready.start..][..len]);
            inbound.ready.start += len;
            taken += len;
        }
        Ok(Some(taken))
    }
}

/// Length of the ciphertext that a record's first bytes announce.
///
/// # Errors
/// More than a record holds, or less than its tag.
pub(super) fn record_len(prefix: [u8; RECORD_PREFIX_LEN]) -> io::Result<usize> {
    let len = usize::from(u16::from_le_bytes(prefix));
    match (TAG_LEN..=RECORD_LIMIT + TAG_LEN).contains(&len) {
        true => Ok(len),
        false => Err(invalid(format!(
            "a record of {len} bytes, expected {TAG_LEN} to {}",
            RECORD_LIMIT + TAG_LEN
        ))),
    }
}

impl Outbound {
    /// Makes a record of what fits of `parts`; returns how much that is.
    fn fill(&mut self, parts: [&[u8]; 2], keys: &StatelessTransportState) -> io::Result<usize> {
        let mut filled = 0;
        for part in parts {
            let len = part.len().min(RECORD_LIMIT - filled);
            self.plain[filled..filled + len].copy_from_slice(&part[..len]);
            filled += len;
        }
        let len = keys
            .write_message(self.count, &self.plain[..filled], &mut self.record[RECORD_PREFIX_LEN..])
            .map_err(broken)?;
        self.count += 1;
        self.record[..RECORD_PREFIX_LEN].copy_from_slice(&(len as u16).to_le_bytes());
        self.left = 0..RECORD_PREFIX_LEN + len;
        Ok(filled)
    }
}

impl Inbound {
    /// Opens the next record if it is complete.
    fn open_next(&mut self, keys: &StatelessTransportState) -> io::Result<bool> {
        let unopened = &self.raw[self.unopened.clone()];
        let Some((prefix, rest)) = unopened.split_first_chunk() else {
            return Ok(false);
        };
        let len = record_len(*prefix)?;
        if rest.len() < len {
            return Ok(false);
        }
        let opened = decrypt(keys, &mut self.count, &rest[..len], &mut self.plain)?;
        self.unopened.start += RECORD_PREFIX_LEN + len;
        self.ready = 0..opened;
        Ok(true)
    }

    /// Where more of the stream goes. Never empty: a complete record has been opened before.
    fn room(&mut self) -> &mut [u8] {
        self.raw.copy_within(self.unopened.clone(), 0);
        self.unopened = 0..self.unopened.len();
        &mut self.raw[self.unopened.end..]
    }
}

fn decrypt(keys: &StatelessTransportState, count: &mut u64, body: &[u8], plain: &mut [u8]) -> io::Result<usize> {
    let len = keys.read_message(*count, body, plain).map_err(|_| {
        invalid("a record does not authenticate: it was changed, lost, repeated or moved on the way".to_owned())
    })?;
    *count += 1;
    Ok(len)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whatever a panicking thread left half done, the next record will not authenticate.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn broken(error: snow::Error) -> io::Error {
    invalid(error.to_string())
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn secret(text: &str) -> Secret {
        Secret::new(text.repeat(32).as_bytes()).unwrap()
    }

    fn pair() -> (Cipher, Cipher) {
        let (initiator, first) = Handshake::start(&secret("a")).unwrap();
        let (listening, answer) = Handshake::answer(&secret("a"), &first).unwrap();
        (initiator.finish(&answer).unwrap(), listening)
    }

    /// What `from` writes for `plain` to a socket that takes `step` bytes at a time and blocks in between.
    fn sent(from: &Cipher, plain: &[u8], step: usize) -> Vec<u8> {
        let (mut wire, mut at, mut blocked) = (Vec::new(), 0, false);
        while at < plain.len() {
            let (head, tail) = plain[at..].split_at((plain.len() - at) / 3);
            let written = from.write([head, tail], |bytes| {
                blocked = !blocked;
                let taken = bytes.len().min(step);
                wire.extend_from_slice(if blocked { &[] } else { &bytes[..taken] });
                Ok((!blocked).then_some(taken))
            });
            at += written.unwrap().unwrap_or(0);
        }
        wire
    }

    fn received(to: &Cipher, wire: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let mut wire: VecDeque<u8> = wire.iter().copied().collect();
        let mut plain = Vec::new();
        loop {
            let (mut first, mut second) = ([0; 5], [0; 1000]);
            let read = to.read(&mut first, &mut second, |room| {
                assert!(!room.is_empty());
                let len = room.len().min(step).min(wire.len());
                room[..len]
                    .iter_mut()
                    .for_each(|byte| *byte = wire.pop_front().unwrap());
                Ok((len > 0).then_some(len))
            })?;
            match read {
                None => return Ok(plain),
                Some(n) => plain.extend(first.into_iter().chain(second).take(n)),
            }
        }
    }

    #[test]
    fn bytes_arrive_as_they_were_whatever_the_sockets_take_at_a_time() {
        let (a, b) = pair();
        for (len, step) in [(0, 1), (1, 1), (70, 3), (40_000, 977), (100_000, 1 << 20)] {
            let plain: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            assert_eq!(received(&b, &sent(&a, &plain, step), step).unwrap(), plain);
            assert_eq!(received(&a, &sent(&b, &plain, step), 13).unwrap(), plain);
        }
    }

    #[test]
    fn changed_repeated_swapped_and_cut_records_do_not_open() {
        let wire_of = |a: &Cipher| [sent(a, b"first", 1 << 20), sent(a, b"second", 1 << 20)];
        type Change = fn([Vec<u8>; 2]) -> Vec<u8>;
        let changes: [Change; 5] = [
            |[mut first, _]| {
                *first.last_mut().unwrap() ^= 1;
                first
            },
            |[mut first, _]| {
                first[4] ^= 0x80;
                first
            },
            |[first, _]| [first.clone(), first].concat(),
            |[first, second]| [second, first].concat(),
            |_| vec![0xff; 64],
        ];
        for change in changes {
            let (a, b) = pair();
            let error = received(&b, &change(wire_of(&a)), 1 << 20).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
        let (a, b) = pair();
        let [first, _] = wire_of(&a);
        assert_eq!(received(&b, &first[..first.len() - 1], 1 << 20).unwrap(), b"");
    }

    #[test]
    fn another_secret_fails_on_both_sides() {
        let (initiator, first) = Handshake::start(&secret("a")).unwrap();
        assert!(Handshake::answer(&secret("b"), &first).is_err());
        let (_, others_answer) = Handshake::start(&secret("b")).unwrap();
        assert!(initiator.finish(&others_answer).is_err());
    }

    #[test]
    fn a_short_secret_is_refused_and_none_is_printed() {
        let error = Secret::new(b" hunter2\n").unwrap_err();
        assert!(error.to_string().contains("7 bytes") && !error.to_string().contains("hunter2"));
        assert_eq!(format!("{:?}", secret("a")), "Secret(..)");
        assert_eq!(Secret::new(format!("{}\n", "a".repeat(32)).as_bytes()), Ok(secret("a")));
    }
}
