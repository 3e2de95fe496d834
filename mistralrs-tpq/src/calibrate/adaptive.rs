//! A budget for all layers together: outliers of `paper`, and bits of `rd`, where they lower the error most.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::LayerStatistics;
use crate::config::Fraction;

/// Most of a layer that may be outliers, as a share of its features: a layer that is nearly all BF16 would starve the others for little.
const MOST: usize = 4;

/// Outliers of each layer under `paper`, as many in all as the same `fraction` of every layer would make. Each next one goes to the layer in which it takes
/// away the largest part of the noise, in units of that layer's signal: the noise of layers adds up in the residual stream, and a layer's own scale says nothing
/// of how much its noise matters. Within a layer the largest ranges come first, as ever. Ties go to the earlier layer.
pub fn adaptive_outliers(layers: &[LayerStatistics], fraction: Fraction) -> Vec<usize> {
    let total: usize = layers.iter().map(|layer| fraction.floor_of(layer.features)).sum();
    let gains: Vec<Vec<f64>> = layers.iter().map(gains).collect();
    let next = |layer: usize, taken: usize| {
        let most = layers[layer].features / MOST;
        let gain = gains[layer].get(taken).filter(|_| taken < most);
        gain.map(|gain| Candidate { gain: *gain, layer })
    };
    let mut taken = vec![0; layers.len()];
    let mut heap: BinaryHeap<Candidate> = (0..layers.len()).filter_map(|layer| next(layer, 0)).collect();
    for _ in 0..total {
        let Some(Candidate { layer, .. }) = heap.pop() else {
            break;
        };
        taken[layer] += 1;
        heap.extend(next(layer, taken[layer]));
    }
    taken
}

/// Of each feature, the largest range first: noise it takes away over the layer's signal, all ranks together.
fn gains(layer: &LayerStatistics) -> Vec<f64> {
    let features = layer.features;
    let signal: f64 = layer.second_moments.iter().sum();
    let mut by_feature = vec![(0.0f64, 0.0f64); features];
    for (at, (range, moment)) in layer.ranges.iter().zip(&layer.second_moments).enumerate() {
        let step = f64::from(*range) / 7.0;
        let of_feature = &mut by_feature[at % features];
        of_feature.0 += f64::from(*range);
        // Rounding to zero costs no more than the value itself.
        of_feature.1 += (step * step / 12.0).min(*moment);
    }
    by_feature.sort_by(|a, b| b.0.total_cmp(&a.0));
    let relative = |noise: f64| if signal > 0.0 { noise / signal } else { 0.0 };
    by_feature.into_iter().map(|(_, noise)| relative(noise)).collect()
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    gain: f64,
    layer: usize,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.gain.total_cmp(&other.gain).then(other.layer.cmp(&self.layer))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Bits a value that each layer gets more than the average, from its sensitivity s (what a unit of noise, in units of the layer's signal, moves the logits) and its
/// features: with the noise of a layer falling as 2^-2b, the sum of s 2^-2b is least at b + log2(s)/2 - mean. Limited to one bit either way, as that law holds
/// for a while only; in sixteenths, so that no host rounds differently; the mean over values is never above zero.
///
/// Layers without a usable sensitivity get the average.
pub fn extra_bits(layers: &[(f64, usize)]) -> Vec<f32> {
    const STEP: f64 = 16.0;
    let values: f64 = layers.iter().map(|(_, features)| *features as f64).sum();
    let half_log = |s: f64| {
        if s > 0.0 && s.is_finite() {
            Some(0.5 * s.log2())
        } else {
            None
        }
    };
    let known = || {
        layers
            .iter()
            .filter_map(|(s, features)| Some((half_log(*s)?, *features as f64)))
    };
    let weight: f64 = known().map(|(_, features)| features).sum();
    if weight == 0.0 {
        return vec![0.0; layers.len()];
    }
    let mean = known().map(|(log, features)| log * features).sum::<f64>() / weight;
    let mut bits: Vec<f64> = layers
        .iter()
        .map(|(s, _)| half_log(*s).map_or(0.0, |log| (log - mean).clamp(-1.0, 1.0)))
        .collect();
    // Limits move the mean; turns bring it back.
    for _ in 0..64 {
        let excess: f64 = bits
            .iter()
            .zip(layers)
            .map(|(bits, (_, features))| bits * *features as f64)
            .sum::<f64>()
            / values;
        bits.iter_mut()
            .for_each(|bits| *bits = (*bits - excess).clamp(-1.0, 1.0));
    }
    bits.into_iter()
        .map(|bits| ((bits * STEP).floor() / STEP) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::RangeObserver;
    use proptest::prelude::*;

    const FRACTION: Fraction = Fraction {
        numerator: 1,
        denominator: 16,
    };

    /// Features alike but for the first `wide`, which are 20 times as wide.
    fn layer(name: &str, scale: f32, wide: usize) -> LayerStatistics {
        let mut observer = RangeObserver::new(64, 0.9).unwrap();
        for token in 0..32 {
            let value = |feature: usize| {
                let wide = if feature < wide { 20.0 } else { 1.0 };
                scale * wide * (((token * 31 + feature * 17) % 41) as f32 - 20.0)
            };
            observer.observe(&(0..64).map(value).collect::<Vec<_>>()).unwrap();
        }
        observer.end_sequence();
        LayerStatistics::gather(name, &[observer]).unwrap()
    }

    #[test]
    fn outliers_go_where_features_are_wide_and_their_number_stays() {
        let layers = [layer("a", 1.0, 0), layer("b", 100.0, 7), layer("c", 1.0, 1)];
        let taken = adaptive_outliers(&layers, FRACTION);
        assert_eq!(taken.iter().sum::<usize>(), 12);
        assert!(taken[1] >= 7 && taken[2] >= 1 && taken[1] > taken[0], "{taken:?}");
        // A layer's scale does not count.
        let scaled = [layer("a", 50.0, 0), layer("b", 1.0, 7), layer("c", 9.0, 1)];
        assert_eq!(adaptive_outliers(&scaled, FRACTION), taken);
        // Nothing to choose by: no layer beyond its limit, and no panic.
        let silent = [layer("a", 0.0, 0), layer("b", 0.0, 0)];
        assert_eq!(adaptive_outliers(&silent, FRACTION).iter().sum::<usize>(), 8);
    }

    #[test]
    fn a_layer_four_times_as_sensitive_gets_a_bit_more_and_unknown_ones_the_average() {
        assert_eq!(extra_bits(&[(4.0, 8), (1.0, 8)]), [0.5, -0.5]);
        assert_eq!(extra_bits(&[(0.0, 8), (f64::NAN, 8)]), [0.0, 0.0]);
        // At the limit, and never more than the budget.
        let bits = extra_bits(&[(1e9, 8), (1.0, 8), (1.0, 8)]);
        assert!(
            bits[0] <= 1.0 && bits[0] > 0.9 && bits.iter().sum::<f32>() <= 0.0,
            "{bits:?}"
        );
    }

    proptest! {
        #[test]
        fn extra_bits_never_cost_more_than_the_budget(
            layers in prop::collection::vec((0.0f64..1e6, 1usize..10_000), 1..40),
        ) {
            let bits = extra_bits(&layers);
            let total: f64 = bits.iter().zip(&layers).map(|(b, (_, features))| f64::from(*b) * *features as f64).sum();
            let values: usize = layers.iter().map(|(_, features)| features).sum();
            prop_assert!(total <= 1e-6 * values as f64, "{bits:?}");
            prop_assert!(bits.iter().all(|bits| bits.abs() <= 1.0));
        }
    }
}
