//! Where compression pays: on a fast link a small message is sent sooner than it is encoded. Measured on the links of a group,
//! and part of the policy, so that all ranks decide alike; below it exchanges are exact.

use super::policy::Shape;
use crate::codec::Dtype;

/// Entries that a table may have: a few world sizes of three dtypes.
const ENTRIES: usize = 24;

/// From how many raw bytes on messages of a world size and dtype are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateEntry {
    pub ranks: usize,
    pub dtype: Dtype,
    /// `u64::MAX`: never.
    pub from_bytes: u64,
}

/// Without an entry for a message, it is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gate {
    entries: [Option<GateEntry>; ENTRIES],
}

impl Gate {
    /// False when there is no room, or an entry for that world size and dtype already.
    pub fn add(&mut self, entry: GateEntry) -> bool {
        let same = |other: &GateEntry| (other.ranks, other.dtype) == (entry.ranks, entry.dtype);
        if self.entries().any(|other| same(&other)) {
            return false;
        }
        match self.entries.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(entry),
            None => return false,
        }
        true
    }

    pub fn entries(&self) -> impl Iterator<Item = GateEntry> + '_ {
        self.entries.iter().flatten().copied()
    }

    /// Whether a message of that shape is exchanged without a codec.
    pub(super) fn is_closed(&self, shape: Shape) -> bool {
        let entry = self
            .entries()
            .find(|entry| (entry.ranks, entry.dtype) == (shape.world_size, shape.dtype));
        entry.is_some_and(|entry| (shape.bytes() as u64) < entry.from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn shape(world_size: usize, tokens: usize, dtype: Dtype) -> Shape {
        Shape {
            world_size,
            tokens,
            features: 1024,
            dtype,
        }
    }

    #[test]
    fn only_messages_of_the_measured_kind_below_the_measured_size_stay_exact() {
        let mut gate = Gate::default();
        let entry = GateEntry {
            ranks: 4,
            dtype: Dtype::Bf16,
            from_bytes: 8192,
        };
        assert!(gate.add(entry));
        assert!(!gate.add(entry), "one entry for each kind");
        assert!(gate.is_closed(shape(4, 3, Dtype::Bf16)));
        assert!(!gate.is_closed(shape(4, 4, Dtype::Bf16)));
        assert!(!gate.is_closed(shape(2, 1, Dtype::Bf16)));
        assert!(!gate.is_closed(shape(4, 1, Dtype::F32)));
        assert_eq!(gate.entries().collect::<Vec<_>>(), [entry]);
    }
}
