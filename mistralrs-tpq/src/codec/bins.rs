//! Bins of magnitudes, an eighth of an octave each, with one below them. Their edges are exact in binary and need no logarithm
//! or power, so every host finds the same bin.

/// From `2^lowest_log2` over `octaves` octaves.
#[derive(Debug, Clone, Copy)]
pub struct Bins {
    pub lowest_log2: i32,
    pub octaves: usize,
}

const PER_OCTAVE: usize = 8;

impl Bins {
    pub const fn count(self) -> usize {
        1 + self.octaves * PER_OCTAVE
    }

    /// The lower edge of a bin; of `count()` the upper edge of the last.
    pub fn edge(self, bin: usize) -> f64 {
        match bin.checked_sub(1) {
            None => 0.0,
            Some(at) => {
                let octave = self.lowest_log2 + (at / PER_OCTAVE) as i32;
                power_of_two(octave) * (1.0 + (at % PER_OCTAVE) as f64 / PER_OCTAVE as f64)
            }
        }
    }

    /// The bin of a magnitude: from its exponent and the top three bits of its mantissa. Beyond the last edge it is the last.
    #[inline]
    pub fn of(self, magnitude: f32) -> usize {
        let eighths = i64::from(magnitude.to_bits() >> 20) - ((127 + i64::from(self.lowest_log2)) << 3);
        (eighths + 1).clamp(0, self.count() as i64 - 1) as usize
    }
}

/// 2^`exponent`, exactly.
pub fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((1023 + i64::from(exponent)) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_found_where_their_edges_say() {
        let bins = Bins {
            lowest_log2: -12,
            octaves: 20,
        };
        for at in 0..bins.count() {
            let (low, high) = (bins.edge(at), bins.edge(at + 1));
            assert_eq!(bins.of((0.5 * (low + high)) as f32), at);
            assert_eq!(bins.of(low as f32), at, "the lower edge belongs to its bin");
        }
        assert_eq!((bins.of(0.0), bins.of(f32::INFINITY)), (0, bins.count() - 1));
    }
}
