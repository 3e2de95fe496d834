//! Framing of control messages: kind and length, then the body.
//!
//! ```text
//! 0  "TC"          magic
//! 2  kind    u8    1 message, 2 heartbeat, 3 goodbye
//! 3  0             reserved
//! 4  length  u32   bytes of the body that follows
//! ```

use super::{cursor::Cursor, WireError};

pub const CONTROL_PREFIX_LEN: usize = 8;

/// Longest body accepted unless configured otherwise: a request with images fits, a wild length does not.
pub const DEFAULT_MESSAGE_LIMIT: usize = 64 << 20;

const MAGIC: [u8; 2] = *b"TC";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ControlKind {
    /// A body for the caller.
    Message = 1,
    /// "Still here"; empty.
    Heartbeat = 2,
    /// The sender leaves: the rank it blames as u32 (itself when it leaves in order), then the reason in UTF-8.
    Goodbye = 3,
}

/// The eight bytes before a control body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlPrefix {
    pub kind: ControlKind,
    pub len: u32,
}

impl ControlPrefix {
    pub fn encode(&self) -> [u8; CONTROL_PREFIX_LEN] {
        let mut out = [0; CONTROL_PREFIX_LEN];
        out[..2].copy_from_slice(&MAGIC);
        out[2] = self.kind as u8;
        out[4..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    /// Reads a prefix; a body longer than `limit` is refused here, so that nothing is allocated for it.
    ///
    /// # Errors
    /// Other magic, an unknown kind, a body that is too long, or too few bytes.
    pub fn parse(bytes: &[u8], limit: usize) -> Result<Self, WireError> {
        let what = "control message";
        let mut cursor = Cursor::new(what, bytes);
        let head = cursor.array::<4>()?;
        if head[..2] != MAGIC || head[3] != 0 {
            return Err(WireError::Magic {
                what,
                expected: [MAGIC[0], MAGIC[1], head[2], 0],
                got: head,
            });
        }
        let kind = match head[2] {
            1 => ControlKind::Message,
            2 => ControlKind::Heartbeat,
            3 => ControlKind::Goodbye,
            got => {
                return Err(WireError::UnknownTag {
                    what: "control message kind",
                    got: u64::from(got),
                })
            }
        };
        let len = cursor.u32()?;
        if u64::from(len) > limit as u64 {
            return Err(WireError::TooLong {
                what,
                len: u64::from(len),
                limit: limit as u64,
            });
        }
        Ok(Self { kind, len })
    }
}
