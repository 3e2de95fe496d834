//! The values of one tensor, a block at a time.
//!
//! Each tensor has a random stream of its own, chosen by its name: adding a tensor, or changing the number of layers, leaves
//! the noise of the others as it is. The generator is SplitMix64 (Steele, Lea and Flood 2014) rather than the `rand_chacha` used
//! elsewhere: weights need no secrecy, and it is optimised with this crate where a development build leaves dependencies
//! alone (over 300 ns a value with ChaCha8 there, ten minutes for a billion weights).

use half::{bf16, f16};
use sha2::{Digest, Sha256};

use super::layout::{Fill, TensorSpec};
use super::spec::{CheckpointSpec, OUTLIER_GAIN};
use crate::codec::Dtype;

/// Values drawn at once: 256 KiB of f32, which fits a second-level cache.
const BLOCK: usize = 1 << 16;

/// Draws tensors of one checkpoint.
pub(super) struct Source {
    seed: u64,
    dtype: Dtype,
    outliers: Vec<usize>,
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Source {
    pub(super) fn new(spec: &CheckpointSpec) -> Self {
        Self {
            seed: spec.seed,
            dtype: spec.dtype,
            outliers: spec.outlier_features(),
            values: vec![0.0; BLOCK],
            bytes: Vec::with_capacity(BLOCK * spec.dtype.size()),
        }
    }

    /// Hands `sink` the tensor's bytes, little-endian, in order.
    ///
    /// # Errors
    /// The sink's.
    pub(super) fn tensor<E>(
        &mut self,
        tensor: &TensorSpec,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let noise = Noise::new(self.seed, &tensor.name);
        let total = tensor.elements();
        let row = tensor.shape.last().map_or(1, |&columns| columns as u64);
        let mut start = 0;
        while start < total {
            let len = (total - start).min(BLOCK as u64) as usize;
            match tensor.fill {
                Fill::Constant(value) => self.values[..len].fill(value),
                Fill::Normal { std } => self.draw(noise, start, len, std),
                Fill::Residual { std } => {
                    self.draw(noise, start, len, std);
                    self.enlarge(start, len, row);
                }
            }
            self.encode(len);
            sink(&self.bytes)?;
            start += len as u64;
        }
        Ok(())
    }

    /// The sum of four uniform 16-bit numbers: variance exact, excess kurtosis -0.3, no value beyond 3.5 standard deviations.
    /// A partial sum adds hundreds of products, so its distribution does not show the difference, and there is no logarithm
    /// or cosine whose last bit depends on the platform.
    fn draw(&mut self, noise: Noise, start: u64, len: usize, std: f32) {
        let step = std / DEVIATION;
        for (value, index) in self.values[..len].iter_mut().zip(start..) {
            let bits = noise.at(index);
            let sum: i32 = (0..4).map(|part| i32::from((bits >> (16 * part)) as u16)).sum();
            *value = (sum - MEAN) as f32 * step;
        }
    }

    /// Multiplies the rows of outlier features in the block that starts at element `start`.
    fn enlarge(&mut self, start: u64, len: usize, row: u64) {
        let end = start + len as u64;
        for &feature in &self.outliers {
            let (first, last) = (feature as u64 * row, (feature as u64 + 1) * row);
            let (first, last) = (first.clamp(start, end), last.clamp(start, end));
            for value in &mut self.values[(first - start) as usize..(last - start) as usize] {
                *value *= OUTLIER_GAIN;
            }
        }
    }

    fn encode(&mut self, len: usize) {
        self.bytes.clear();
        let values = self.values[..len].iter();
        match self.dtype {
            Dtype::F32 => self.bytes.extend(values.flat_map(|value| value.to_le_bytes())),
            Dtype::Bf16 => self
                .bytes
                .extend(values.flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
            Dtype::F16 => self
                .bytes
                .extend(values.flat_map(|&value| f16::from_f32(value).to_le_bytes())),
        }
    }
}

/// Of four uniform numbers 0..=65535: mean 4 * 65535 / 2, variance 4 * (65536^2 - 1) / 12.
const MEAN: i32 = 2 * 65535;
const DEVIATION: f32 = 37837.227;

/// The numbers of one tensor, by index.
#[derive(Clone, Copy)]
struct Noise(u64);

impl Noise {
    fn new(seed: u64, tensor: &str) -> Self {
        let digest = Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(tensor)
            .finalize();
        let mut start = [0; 8];
        start.copy_from_slice(&digest[..8]);
        Self(u64::from_le_bytes(start))
    }

    /// The output of SplitMix64 after `index` others.
    fn at(self, index: u64) -> u64 {
        let z = self
            .0
            .wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> CheckpointSpec {
        CheckpointSpec {
            outliers: 3,
            ..CheckpointSpec::preset("tiny-llama").unwrap()
        }
    }

    fn draw(spec: &CheckpointSpec, name: &str, shape: &[usize], fill: Fill) -> Vec<f32> {
        let mut values = Vec::new();
        let tensor = TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            fill,
        };
        let sink = |bytes: &[u8]| {
            values.extend(
                bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            );
            Ok::<(), ()>(())
        };
        Source::new(spec).tensor(&tensor, sink).unwrap();
        values
    }

    fn deviation(values: &[f32]) -> f64 {
        (values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    }

    #[test]
    fn drawn_values_have_the_mean_and_deviation_asked_for() {
        // Several blocks, and a last one that is not full.
        let values = draw(&spec(), "w", &[700, 333], Fill::Normal { std: 0.02 });
        assert_eq!(values.len(), 700 * 333);
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
        // Five standard errors: 0.02 / sqrt(233100) and 0.02 / sqrt(2 * 233100).
        assert!(mean.abs() < 5.0 * 4.15e-5, "{mean}");
        assert!(
            (deviation(&values) - 0.02).abs() < 5.0 * 2.93e-5,
            "{}",
            deviation(&values)
        );
    }

    #[test]
    fn deviation_constant_is_that_of_four_uniform_numbers() {
        let exact = ((65536f64 * 65536.0 - 1.0) / 3.0).sqrt();
        assert_eq!(DEVIATION, exact as f32);
    }

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let fill = Fill::Normal { std: 1.0 };
        let base = draw(&spec(), "a", &[40, 10], fill);
        assert_eq!(base, draw(&spec(), "a", &[40, 10], fill));
        assert_eq!(base[..100], draw(&spec(), "a", &[10, 10], fill)[..]);
        assert_ne!(base, draw(&spec(), "b", &[40, 10], fill));
        assert_ne!(base, draw(&CheckpointSpec { seed: 9, ..spec() }, "a", &[40, 10], fill));
    }

    #[test]
    fn rows_of_outlier_features_are_larger_in_residual_matrices_across_blocks() {
        let spec = spec();
        // 128 rows of 1000: rows straddle the block borders.
        let plain = draw(&spec, "w", &[128, 1000], Fill::Normal { std: 0.02 });
        let large = draw(&spec, "w", &[128, 1000], Fill::Residual { std: 0.02 });
        let outliers = spec.outlier_features();
        for (feature, (plain, large)) in plain.chunks(1000).zip(large.chunks(1000)).enumerate() {
            let gain = if outliers.contains(&feature) { OUTLIER_GAIN } else { 1.0 };
            assert!(
                plain.iter().zip(large).all(|(plain, large)| plain * gain == *large),
                "feature {feature}"
            );
        }
    }

    /// The first outputs for seed 1234567, as published with the reference implementation.
    #[test]
    fn the_generator_is_splitmix64() {
        let noise = Noise(1_234_567);
        let outputs = [0, 1, 2, 3, 4].map(|index| noise.at(index));
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(outputs, published);
    }

    #[test]
    fn the_first_values_of_a_stream_are_pinned() {
        let values = draw(&spec(), "model.embed_tokens.weight", &[2, 2], Fill::Normal { std: 1.0 });
        assert_eq!(values, PINNED);
    }

    /// Other values mean that checkpoints of the same seed, and manifests made on them, no longer fit.
    const PINNED: [f32; 4] = [1.4132379, 0.050637964, -0.43195558, 0.8691705];
}
