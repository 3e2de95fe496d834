//! A codec cut by features, for exchanges of fewer tokens than ranks.

use std::sync::{Arc, Mutex, PoisonError};

use super::Codec;

/// Codecs of consecutive feature ranges, which together make up a row.
pub type Split = Arc<[Box<dyn Codec>]>;

/// Ranges start at whole multiples of this where there are enough features: groups of `dynamic` stay groups, and no two
/// ranges share a byte of codes.
const ALIGNMENT: usize = 32;

/// Features `start..end` of part `index` of `ways`. As even as the alignment allows; empty parts when there are fewer
/// features than parts. E = 4096 in 3: 0..1344, 1344..2720, 2720..4096.
///
/// # Panics
/// When `ways` is 0.
pub fn split_bounds(features: usize, ways: usize, index: usize) -> (usize, usize) {
    let unit = if features / ALIGNMENT >= ways { ALIGNMENT } else { 1 };
    let at = |index: usize| {
        if index >= ways {
            return features;
        }
        // In 128 bits the product cannot overflow.
        ((features / unit) as u128 * index as u128 / ways as u128) as usize * unit
    };
    (at(index), at(index + 1))
}

/// The splits a codec was asked for, made once each. A process has one world size, so there is one entry in practice.
#[derive(Debug, Default)]
pub(super) struct Splits(Mutex<Vec<(usize, Split)>>);

impl Splits {
    pub(super) fn get(&self, features: usize, ways: usize, part: impl Fn(usize, usize) -> Box<dyn Codec>) -> Split {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, split)) = made.iter().find(|(other, _)| *other == ways) {
            return Arc::clone(split);
        }
        let split: Split = (0..ways)
            .map(|index| split_bounds(features, ways, index))
            .map(|(start, end)| part(start, end))
            .collect();
        made.push((ways, Arc::clone(&split)));
        split
    }
}

/// A copy makes its own: what was cut from the original may run at another [`Level`](super::Level).
impl Clone for Splits {
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other_and_cover_the_row() {
        for (features, ways) in [(4096, 3), (4096, 8), (100, 3), (257, 8), (5, 8), (0, 4), (1, 2)] {
            let mut next = 0;
            for index in 0..ways {
                let (start, end) = split_bounds(features, ways, index);
                assert!(start == next && end >= start, "{features} in {ways}: {start}..{end}");
                next = end;
            }
            assert_eq!(next, features);
        }
        assert_eq!(split_bounds(4096, 3, 1), (1344, 2720));
    }
}
