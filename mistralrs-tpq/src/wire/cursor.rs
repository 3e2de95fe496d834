//! A reader over received bytes that returns errors where indexing would panic, and its counterpart for writing.

use super::WireError;

/// Bytes of one structure, consumed from the front. `what` names the structure in errors.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes, at: 0 }
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let rest = &self.bytes[self.at..];
        let Some(head) = rest.get(..len) else {
            return Err(WireError::Truncated {
                what: self.what,
                needed: self.at + len,
                got: self.bytes.len(),
            });
        };
        self.at += len;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A u16 length, then that many bytes of UTF-8; a length above `limit` is refused before anything is allocated.
    pub(super) fn text(&mut self, what: &'static str, limit: usize) -> Result<String, WireError> {
        let len = usize::from(self.u16()?);
        if len > limit {
            return Err(WireError::TooLong {
                what,
                len: len as u64,
                limit: limit as u64,
            });
        }
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| WireError::Utf8 { what })
    }

    pub(super) fn finish(self) -> Result<(), WireError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            extra => Err(WireError::Trailing { what: self.what, extra }),
        }
    }
}

/// Appends `text` as [`Cursor::text`] reads it, cut at a character boundary to fit `limit`.
///
/// Cut, not refused: the texts are names and error values, and a long one must not keep a rank from being told.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str, limit: usize) {
    let mut end = text.len().min(limit).min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&(end as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}
