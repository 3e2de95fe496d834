//! The first message on each connection, and the answer to it.
//!
//! The connecting side sends a [`Hello`]; the other side compares it with its own and answers with its own hello, or
//! with a [`Refusal`](super::Refusal) that names the field and both values. Either way both ends know.
//!
//! ```text
//!  0  magic    [u8;4]  "TPQ?" hello, "TPQ!" accepted, "TPQX" refused, "TPQN" a handshake that goes before them
//!  4  version  u16     this prefix never changes, so that any two versions can tell each other apart
//!  6  purpose  u8      0 data, 1 control
//!  7  0                reserved
//!  8  rank     u32     the sender
//! 12  length   u32     bytes of the body that follows, at most 4096
//! body of a hello: to u32, world_size u32, dtype u8, model [u8;32], manifest [u8;32], codec text, policy text
//! body of a refusal: field u8, rank refused u32, expected text, got text
//! ```
//! A text is a u16 length and that many bytes of UTF-8.

use super::cursor::{put_text, Cursor};
use super::{HelloField, Refusal, WireError, PROTOCOL_VERSION};
use crate::codec::Dtype;

pub const PREFIX_LEN: usize = 16;
pub const HELLO_BODY_LIMIT: usize = 4096;

const HELLO: [u8; 4] = *b"TPQ?";
const ACCEPTED: [u8; 4] = *b"TPQ!";
const REFUSED: [u8; 4] = *b"TPQX";
const HANDSHAKE: [u8; 4] = *b"TPQN";
const NAME_LIMIT: usize = 64;
const POLICY_LIMIT: usize = 1024;
const VALUE_LIMIT: usize = 1024;

/// SHA-256 of something both ranks must have alike; all zero when there is none.
pub type Digest = [u8; 32];

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    Data = 0,
    Control = 1,
}

/// What all ranks must have alike, or their sums would silently differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub dtype: Dtype,
    /// Fingerprint of the model.
    pub model: Digest,
    /// Digest of manifest.yaml and its scales.
    pub manifest: Digest,
    /// Name of the codec, at most 64 bytes.
    pub codec: String,
    /// The exchange policy in words or as a digest, at most 1024 bytes.
    pub policy: String,
}

/// What a rank says on a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub purpose: Purpose,
    pub rank: u32,
    /// The rank that the sender believes to be talking to.
    pub to: u32,
    pub world_size: u32,
    pub identity: Identity,
}

/// The acceptor's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Accepted(Hello),
    Refused(Refusal),
}

/// The first 16 bytes of a hello or reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    magic: [u8; 4],
    pub version: u16,
    purpose: u8,
    pub rank: u32,
    pub body_len: u32,
}

impl Prefix {
    /// Reads the prefix of a hello. Its version may differ: the caller answers with a refusal.
    ///
    /// # Errors
    /// Other magic (a port scan, HTTP), or a body above 4096 bytes.
    pub fn of_hello(bytes: &[u8]) -> Result<Self, WireError> {
        Self::parse("hello", bytes, &[HELLO, HANDSHAKE])
    }

    /// Reads the prefix of a reply.
    ///
    /// # Errors
    /// As for [`Prefix::of_hello`].
    pub fn of_reply(bytes: &[u8]) -> Result<Self, WireError> {
        Self::parse("reply to the hello", bytes, &[ACCEPTED, REFUSED, HANDSHAKE])
    }

    /// Whether the body is a message of the handshake that authenticates, not a hello or reply.
    pub fn is_handshake(&self) -> bool {
        self.magic == HANDSHAKE
    }

    fn parse(what: &'static str, bytes: &[u8], magics: &[[u8; 4]]) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(what, bytes);
        let magic = cursor.array()?;
        if !magics.contains(&magic) {
            return Err(WireError::Magic {
                what,
                expected: magics[0],
                got: magic,
            });
        }
        let version = cursor.u16()?;
        let purpose = cursor.u8()?;
        cursor.u8()?;
        let rank = cursor.u32()?;
        let body_len = cursor.u32()?;
        if body_len as usize > HELLO_BODY_LIMIT {
            return Err(WireError::TooLong {
                what,
                len: u64::from(body_len),
                limit: HELLO_BODY_LIMIT as u64,
            });
        }
        Ok(Self {
            magic,
            version,
            purpose,
            rank,
            body_len,
        })
    }

    fn purpose(&self) -> Result<Purpose, WireError> {
        match self.purpose {
            0 => Ok(Purpose::Data),
            1 => Ok(Purpose::Control),
            got => Err(WireError::UnknownTag {
                what: "purpose of the connection",
                got: u64::from(got),
            }),
        }
    }
}

/// A message of the handshake that goes before the hello where the group has a secret.
pub fn handshake(rank: u32, message: &[u8]) -> Vec<u8> {
    with_prefix(HANDSHAKE, 0, rank, message)
}

impl Hello {
    pub fn encode(&self) -> Vec<u8> {
        self.encode_as(HELLO)
    }

    /// Reads the body that follows `prefix`.
    ///
    /// # Errors
    /// Another version, or a body that is not a hello's.
    pub fn parse(prefix: &Prefix, body: &[u8]) -> Result<Self, WireError> {
        let what = "hello";
        if prefix.version != PROTOCOL_VERSION {
            return Err(WireError::Version {
                what,
                expected: PROTOCOL_VERSION,
                got: prefix.version,
            });
        }
        let mut cursor = Cursor::new(what, body);
        let hello = Self {
            purpose: prefix.purpose()?,
            rank: prefix.rank,
            to: cursor.u32()?,
            world_size: cursor.u32()?,
            identity: Identity {
                dtype: dtype(cursor.u8()?)?,
                model: cursor.array()?,
                manifest: cursor.array()?,
                codec: cursor.text("codec name", NAME_LIMIT)?,
                policy: cursor.text("policy", POLICY_LIMIT)?,
            },
        };
        cursor.finish()?;
        Ok(hello)
    }

    /// Compares a peer's hello with this rank's own; `None` when they fit.
    pub fn refuse(&self, theirs: &Self) -> Option<Refusal> {
        let (field, expected, got) = self.first_difference(theirs)?;
        Some(Refusal {
            sender: theirs.rank,
            by: self.rank,
            field,
            expected,
            got,
        })
    }

    fn first_difference(&self, theirs: &Self) -> Option<(HelloField, String, String)> {
        let number = |field, a: u32, b: u32| (a != b).then(|| (field, a.to_string(), b.to_string()));
        let digest = |field, a: &Digest, b: &Digest| {
            let first = a.iter().zip(b).position(|(a, b)| a != b)?;
            Some((field, digest_text(a, first), digest_text(b, first)))
        };
        let text = |field, a: &str, b: &str| (a != b).then(|| (field, a.to_owned(), b.to_owned()));
        let (ours, their) = (&self.identity, &theirs.identity);
        number(HelloField::WorldSize, self.world_size, theirs.world_size)
            .or_else(|| number(HelloField::Address, self.rank, theirs.to))
            .or_else(|| digest(HelloField::Model, &ours.model, &their.model))
            .or_else(|| text(HelloField::Dtype, ours.dtype.name(), their.dtype.name()))
            .or_else(|| text(HelloField::Codec, &ours.codec, &their.codec))
            .or_else(|| digest(HelloField::Manifest, &ours.manifest, &their.manifest))
            .or_else(|| text(HelloField::Policy, &ours.policy, &their.policy))
            .or_else(|| {
                (theirs.rank >= self.world_size || theirs.rank == self.rank).then(|| {
                    let expected = format!("one of 0..{} but {}", self.world_size, self.rank);
                    (HelloField::Rank, expected, theirs.rank.to_string())
                })
            })
    }

    fn encode_as(&self, magic: [u8; 4]) -> Vec<u8> {
        let mut body = Vec::with_capacity(128);
        body.extend_from_slice(&self.to.to_le_bytes());
        body.extend_from_slice(&self.world_size.to_le_bytes());
        body.push(self.identity.dtype as u8);
        body.extend_from_slice(&self.identity.model);
        body.extend_from_slice(&self.identity.manifest);
        put_text(&mut body, &self.identity.codec, NAME_LIMIT);
        put_text(&mut body, &self.identity.policy, POLICY_LIMIT);
        with_prefix(magic, self.purpose as u8, self.rank, &body)
    }
}

impl Reply {
    pub fn encode(&self) -> Vec<u8> {
        let refusal = match self {
            Self::Accepted(hello) => return hello.encode_as(ACCEPTED),
            Self::Refused(refusal) => refusal,
        };
        let mut body = vec![refusal.field as u8];
        body.extend_from_slice(&refusal.sender.to_le_bytes());
        put_text(&mut body, &refusal.expected, VALUE_LIMIT);
        put_text(&mut body, &refusal.got, VALUE_LIMIT);
        with_prefix(REFUSED, 0, refusal.by, &body)
    }

    /// Reads the body that follows `prefix`. A refusal is read whatever the version: that may be what it is about.
    ///
    /// # Errors
    /// An accepting reply of another version, or a body that is not a reply's.
    pub fn parse(prefix: &Prefix, body: &[u8]) -> Result<Self, WireError> {
        if prefix.magic == ACCEPTED {
            return Hello::parse(prefix, body).map(Self::Accepted);
        }
        let mut cursor = Cursor::new("refusal", body);
        let tag = cursor.u8()?;
        let field = HelloField::from_tag(tag).ok_or(WireError::UnknownTag {
            what: "refused field",
            got: u64::from(tag),
        })?;
        let sender = cursor.u32()?;
        let expected = cursor.text("expected value", VALUE_LIMIT)?;
        let got = cursor.text("received value", VALUE_LIMIT)?;
        cursor.finish()?;
        Ok(Self::Refused(Refusal {
            sender,
            by: prefix.rank,
            field,
            expected,
            got,
        }))
    }
}

fn with_prefix(magic: [u8; 4], purpose: u8, rank: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX_LEN + body.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    out.extend_from_slice(&[purpose, 0]);
    out.extend_from_slice(&rank.to_le_bytes());
    // At most 4 * 4 + 65 + 64 + 1024 + 6 bytes: every text has its own limit.
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(body);
    out
}

fn dtype(tag: u8) -> Result<Dtype, WireError> {
    Dtype::from_tag(tag).ok_or(WireError::UnknownTag {
        what: "dtype",
        got: u64::from(tag),
    })
}

/// The first bytes, at least four: enough to see the difference, which starts at byte `first`, and short in a log line.
fn digest_text(digest: &Digest, first: usize) -> String {
    if *digest == [0; 32] {
        return "none".to_owned();
    }
    let shown = (first + 1).max(4);
    let text: String = digest.iter().take(shown).map(|byte| format!("{byte:02x}")).collect();
    if shown < digest.len() {
        text + ".."
    } else {
        text
    }
}
