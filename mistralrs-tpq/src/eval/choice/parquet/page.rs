//! What is in a page: levels and values.

use serde_json::Value;

use super::Broken;

/// Physical types by their number in the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Physical {
    Boolean,
    Int32,
    Int64,
    /// Of a known width; skipped over, as no task has them.
    Other(usize),
    Bytes,
}

impl Physical {
    pub(super) fn new(number: i64, length: usize) -> Result<Self, Broken> {
        Ok(match number {
            0 => Self::Boolean,
            1 => Self::Int32,
            2 => Self::Int64,
            3 => Self::Other(12),
            4 => Self::Other(4),
            5 => Self::Other(8),
            6 => Self::Bytes,
            7 => Self::Other(length),
            _ => return Err(Broken("a column has an unknown type")),
        })
    }

    /// `count` values, one after another.
    pub(super) fn plain(self, bytes: &[u8], count: usize) -> Result<Vec<Value>, Broken> {
        const CUT: Broken = Broken("a page has fewer values than it says");
        // The shortest value takes a bit.
        if count > bytes.len().saturating_mul(8) && self != Self::Other(0) {
            return Err(CUT);
        }
        let mut rest = bytes;
        let mut take = |len: usize| {
            let (head, tail) = rest.split_at_checked(len).ok_or(CUT)?;
            rest = tail;
            Ok(head)
        };
        let one = |at: usize| {
            Ok(match self {
                Self::Boolean => Value::from(bytes[at / 8] >> (at % 8) & 1 == 1),
                Self::Int32 => Value::from(i32::from_le_bytes(array(take(4)?))),
                Self::Int64 => Value::from(i64::from_le_bytes(array(take(8)?))),
                Self::Other(len) => {
                    take(len)?;
                    Value::Null
                }
                Self::Bytes => {
                    let len = u32::from_le_bytes(array(take(4)?)) as usize;
                    std::str::from_utf8(take(len)?).map_or(Value::Null, Value::from)
                }
            })
        };
        (0..count).map(one).collect()
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

/// Numbers of `width` bits in runs, repeated or packed eight by eight (the format's RLE and bit-packing hybrid). `count` of them.
pub(super) fn hybrid(bytes: &[u8], width: u32, count: usize) -> Result<Vec<u32>, Broken> {
    const CUT: Broken = Broken("levels or indices are cut off");
    if width > 32 {
        return Err(Broken("levels or indices are wider than 32 bits"));
    }
    let mut numbers = Vec::new();
    let mut rest = bytes;
    while numbers.len() < count {
        let (head, after) = varint(rest).ok_or(CUT)?;
        let left = count - numbers.len();
        if head & 1 == 0 {
            let value_len = width.div_ceil(8) as usize;
            let (value, after) = after.split_at_checked(value_len).ok_or(CUT)?;
            let value = value
                .iter()
                .rev()
                .fold(0u32, |value, byte| value << 8 | u32::from(*byte));
            let run = usize::try_from(head >> 1).unwrap_or(usize::MAX).min(left);
            if run == 0 {
                return Err(Broken("a run of no values"));
            }
            numbers.resize(numbers.len() + run, value);
            rest = after;
        } else {
            let groups = usize::try_from(head >> 1).unwrap_or(usize::MAX);
            let len = groups.checked_mul(width as usize).ok_or(CUT)?;
            // The last run may be shorter than its groups say.
            let (packed, after) = after.split_at(len.min(after.len()));
            let here = groups.saturating_mul(8).min(left);
            if here == 0 || packed.len() < (here * width as usize).div_ceil(8) {
                return Err(CUT);
            }
            numbers.extend((0..here).map(|at| bits(packed, at * width as usize, width)));
            rest = after;
        }
    }
    Ok(numbers)
}

/// `width` bits from bit `start` on, the least significant first.
fn bits(bytes: &[u8], start: usize, width: u32) -> u32 {
    let bit = |at: usize| u32::from(bytes[at / 8] >> (at % 8) & 1);
    (0..width).fold(0, |value, i| value | bit(start + i as usize) << i)
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_packed_groups_follow_each_other() {
        // The format's own example: 0 to 7 in three bits, packed; before it, a run of four fives.
        let bytes = [4 << 1, 5, 1 << 1 | 1, 0b1000_1000, 0b1100_0110, 0b1111_1010];
        let numbers = hybrid(&bytes, 3, 12).unwrap();
        assert_eq!(numbers, [5, 5, 5, 5, 0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(hybrid(&bytes[..5], 3, 12).is_err() && hybrid(&bytes, 3, 13).is_err());
        assert!(hybrid(&[0, 0], 3, 1).is_err(), "a run of none would never end");
    }

    #[test]
    fn plain_values_of_each_type() {
        let text = [2, 0, 0, 0, b'h', b'i', 0, 0, 0, 0];
        assert_eq!(Physical::Bytes.plain(&text, 2).unwrap(), ["hi", ""]);
        assert!(Physical::Bytes.plain(&text[..5], 1).is_err());
        assert_eq!(Physical::Boolean.plain(&[0b10], 2).unwrap(), [false, true]);
        assert_eq!(Physical::Int32.plain(&(-3i32).to_le_bytes(), 1).unwrap(), [-3]);
        assert!(Physical::Int64.plain(&[0; 8], 2).is_err());
    }
}
