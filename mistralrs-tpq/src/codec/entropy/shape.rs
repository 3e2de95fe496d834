//! How magnitudes of a layer's features are distributed, each over its own root mean square.

use crate::codec::bins::Bins;

const BINS: Bins = Bins {
    lowest_log2: -8,
    octaves: 14,
};
/// Numbers that make a shape.
pub const SHAPE_LEN: usize = BINS.count();

/// A density that is constant within bins, and its integrals.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Under each edge: probability, and integral of the magnitude.
    below: Vec<[f64; 2]>,
    density: Vec<f64>,
}

impl Shape {
    /// From the mass of each bin, in any unit. `None` when that is no distribution.
    pub fn new(mass: &[f32]) -> Option<Self> {
        let total: f64 = mass.iter().map(|mass| f64::from(*mass)).sum();
        let usable = mass.iter().all(|mass| *mass >= 0.0) && total.is_finite() && total > 0.0;
        if mass.len() != SHAPE_LEN || !usable {
            return None;
        }
        let mut below = vec![[0.0; 2]];
        let mut density = Vec::with_capacity(SHAPE_LEN);
        for (bin, mass) in mass.iter().enumerate() {
            let (low, high) = (BINS.edge(bin), BINS.edge(bin + 1));
            let here = f64::from(*mass) / total / (high - low);
            let [probability, magnitude] = below[bin];
            below.push([
                probability + here * (high - low),
                magnitude + here * (high * high - low * low) / 2.0,
            ]);
            density.push(here);
        }
        Some(Self { below, density })
    }

    /// Adds the mass of `density` a unit between `low` and `high` to bins.
    pub fn spread(mass: &mut [f64], low: f64, high: f64, density: f64) {
        let last = SHAPE_LEN - 1;
        for (bin, mass) in mass.iter_mut().enumerate().skip(BINS.of(low as f32)) {
            let (from, to) = (BINS.edge(bin).max(low), BINS.edge(bin + 1).min(high));
            let to = if bin == last { high } else { to };
            if to <= from {
                break;
            }
            *mass += density * (to - from);
        }
    }

    /// Probability of magnitudes below `y`, and their integral.
    pub fn below(&self, y: f64) -> [f64; 2] {
        if y >= BINS.edge(SHAPE_LEN) {
            return self.below[SHAPE_LEN];
        }
        let bin = BINS.of(y as f32);
        // The bin of y rounded to f32 may be its neighbour.
        let low = BINS.edge(bin);
        let y = y.max(low);
        let ([probability, magnitude], density) = (self.below[bin], self.density[bin]);
        [
            probability + density * (y - low),
            magnitude + density * (y * y - low * low) / 2.0,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_mass_is_kept_and_its_integrals_are_those_of_the_density() {
        let mut mass = vec![0.0; SHAPE_LEN];
        Shape::spread(&mut mass, 0.0, 3.0, 1.0 / 3.0);
        assert!((mass.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let mass: Vec<f32> = mass.iter().map(|mass| *mass as f32).collect();
        let shape = Shape::new(&mass).unwrap();
        for y in [0.001, 0.3, 1.0, 2.5] {
            let [probability, magnitude] = shape.below(y);
            assert!((probability - y / 3.0).abs() < 1e-6, "{y}");
            assert!((magnitude - y * y / 6.0).abs() < 1e-6, "{y}");
        }
        Shape::spread(&mut vec![0.0; SHAPE_LEN], 1e9, 2e9, 1.0);
    }

    #[test]
    fn what_is_no_distribution_is_none() {
        let mut mass = vec![0.0; SHAPE_LEN];
        assert_eq!(Shape::new(&mass), None);
        assert_eq!(Shape::new(&[1.0]), None);
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            mass[3] = bad;
            assert_eq!(Shape::new(&mass), None, "{bad}");
        }
    }
}
