//! The compact protocol of Apache Thrift, as far as parquet's headers use it (thrift/doc/specs/thrift-compact-protocol.md).

use std::collections::BTreeMap;

use super::Broken;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Thrift {
    Bool(bool),
    Number(i64),
    Bytes(Vec<u8>),
    List(Vec<Thrift>),
    Struct(BTreeMap<i16, Thrift>),
}

/// Headers nest five deep.
const DEEPEST: usize = 16;

impl Thrift {
    /// A struct from the start of `bytes`, and how many bytes it takes.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, usize), Broken> {
        let mut reader = Reader { bytes, at: 0 };
        let value = reader.structure(DEEPEST)?;
        Ok((value, reader.at))
    }

    pub(super) fn field(&self, id: i16) -> Option<&Self> {
        match self {
            Self::Struct(fields) => fields.get(&id),
            _ => None,
        }
    }

    pub(super) fn number(&self, id: i16) -> Option<i64> {
        match self.field(id)? {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A number that counts or places something.
    pub(super) fn size(&self, id: i16) -> Result<usize, Broken> {
        let number = self.number(id).and_then(|number| usize::try_from(number).ok());
        number.ok_or(Broken("a header lacks a size"))
    }

    pub(super) fn list(&self, id: i16) -> &[Self] {
        match self.field(id) {
            Some(Self::List(items)) => items,
            _ => &[],
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, Broken> {
        let byte = self.bytes.get(self.at).ok_or(Broken("a header is cut off"))?;
        self.at += 1;
        Ok(*byte)
    }

    fn varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Broken("a number in a header has no end"))
    }

    fn zigzag(&mut self) -> Result<i64, Broken> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>, Broken> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(Broken("a header is cut off"))?;
        let taken = self.bytes[self.at..end].to_vec();
        self.at = end;
        Ok(taken)
    }

    fn structure(&mut self, deepest: usize) -> Result<Thrift, Broken> {
        let deepest = deepest.checked_sub(1).ok_or(Broken("a header nests too deep"))?;
        let mut fields = BTreeMap::new();
        let mut id = 0i16;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(Thrift::Struct(fields));
            }
            id = match head >> 4 {
                0 => self.zigzag()? as i16,
                step => id.wrapping_add(i16::from(step)),
            };
            let value = match head & 0x0F {
                1 => Thrift::Bool(true),
                2 => Thrift::Bool(false),
                kind => self.value(kind, deepest)?,
            };
            fields.insert(id, value);
        }
    }

    fn value(&mut self, kind: u8, deepest: usize) -> Result<Thrift, Broken> {
        Ok(match kind {
            // In a list a truth value is a byte.
            1 | 2 => Thrift::Bool(self.byte()? == 1),
            3 => Thrift::Number(i64::from(self.byte()? as i8)),
            4..=6 => Thrift::Number(self.zigzag()?),
            7 => Thrift::Bytes(self.take(8)?),
            8 => {
                let len = usize::try_from(self.varint()?).map_err(|_| Broken("a header is cut off"))?;
                Thrift::Bytes(self.take(len)?)
            }
            9 | 10 => self.list(deepest)?,
            12 => self.structure(deepest)?,
            _ => return Err(Broken("a header has a field of a type that parquet does not use")),
        })
    }

    fn list(&mut self, deepest: usize) -> Result<Thrift, Broken> {
        let deepest = deepest.checked_sub(1).ok_or(Broken("a header nests too deep"))?;
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        // Each takes a byte at least.
        if count > (self.bytes.len() - self.at) as u64 {
            return Err(Broken("a header is cut off"));
        }
        let items = (0..count).map(|_| self.value(head & 0x0F, deepest));
        Ok(Thrift::List(items.collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_reads_as_the_specification_writes_it() {
        // 1: i32 -1, 3: binary "ab", 4: true, 5: list of i32 1, 2, 6: struct {1: i64 300}
        let bytes = [
            0x15, 0x01, 0x28, 2, b'a', b'b', 0x11, 0x19, 0x25, 2, 4, 0x1C, 0x16, 0xD8, 0x04, 0, 0, 99,
        ];
        let (value, len) = Thrift::read(&bytes).unwrap();
        assert_eq!((len, value.number(1)), (17, Some(-1)));
        assert_eq!(value.field(3).and_then(Thrift::text), Some("ab"));
        assert_eq!(value.field(4), Some(&Thrift::Bool(true)));
        assert_eq!(value.list(5), [Thrift::Number(1), Thrift::Number(2)]);
        assert_eq!(value.field(6).unwrap().number(1), Some(300));
        for cut in 0..17 {
            assert!(Thrift::read(&bytes[..cut]).is_err(), "{cut}");
        }
        // A struct in a struct without end, and a list that claims more than there is.
        assert!(Thrift::read(&[0x1C; 100]).is_err());
        assert!(Thrift::read(&[0x19, 0xF5, 0xFF, 0xFF, 0xFF, 0x7F]).is_err());
    }
}
