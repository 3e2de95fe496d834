//! Larger groups than anybody has at hand: recorded partial sums, cut for N ranks and exchanged in this process with every algorithm.
//!
//! ```text
//! sums (recorded) -> parts for N ranks -> codecs, calibrated on the first half -> sums of the second half by each algorithm -> SQNR
//!                                                                             -> errors of `paper`, value by value, against a prediction
//! shapes and what a link costs -> time, up to 1024 ranks
//! ```
//! No transport: the sums are [`crate::exchange::sum_in_process`], which makes the exchange's codec calls in the exchange's order and ends with its bits.

mod codecs;
mod errors;
mod page;
mod parts;
mod prediction;
#[cfg(feature = "engine")]
mod record;
pub mod sums;
mod time;

use std::path::PathBuf;

use serde::Serialize;

pub use codecs::Calibration;
pub use errors::{Distribution, Errors};
pub use page::page;
pub use parts::parts;
pub use prediction::Prediction;
#[cfg(feature = "engine")]
pub use record::{record, RecordOptions};
pub use sums::{LayerSums, Origin, RankSums, Recorded, RecordedLayer};
pub use time::{predict, Costs, Predicted};

use crate::calibrate::{ObserveError, SelectError};
use crate::codec::{Codec, CodecError, CodecKind, Dtype};
use crate::config::defaults::CALIBRATION_EMA;
use crate::exchange::{predict_bytes_sent, sum_in_process, Chosen, GatherBits, Shape};
use crate::manifest::{Manifest, ManifestError};

/// Algorithms that lose something, in the order of their quantizations.
pub const ALGORITHMS: [Chosen; 4] = [Chosen::OneShot, Chosen::TwoShot, Chosen::Doubling, Chosen::Ring];

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulateError {
    #[error("{}: {what}", .path.display())]
    Recording { path: PathBuf, what: String },
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("recorded over {have} ranks, which makes no {ranks}: expected a divisor or a multiple of {have}")]
    Ranks { have: usize, ranks: usize },
    #[error(
        "{tokens} recorded tokens are too few to cut a sum into {ways} parts for {ranks} ranks: record more (--tokens)"
    )]
    Tokens { tokens: usize, ways: usize, ranks: usize },
    #[error("{what}")]
    Tables { what: String },
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error(transparent)]
    Select(#[from] SelectError),
    #[error("a payload that was just encoded does not decode: this is a defect, please report it: {0}")]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

#[derive(Debug, Clone)]
pub struct SimulateOptions {
    /// Numbers of ranks, each a divisor or a multiple of the recorded one.
    pub ranks: Vec<usize>,
    pub codecs: Vec<CodecKind>,
    /// A value, for codecs with a budget.
    pub bits: f64,
    pub gather_bits: GatherBits,
}

/// One codec and algorithm over one number of ranks, all layers together.
#[derive(Debug, Clone, Serialize)]
pub struct Simulated {
    pub ranks: usize,
    pub codec: String,
    pub algorithm: &'static str,
    /// What a rank sends for each value of the sum: mean over layers and ranks, frames included.
    pub bits_per_value: f64,
    /// Of the sum.
    pub sqnr_db: f64,
    /// Root mean square error of a value of the sum over the root mean square of a value of the sum.
    pub relative_error: f64,
    /// Of single partial sums, which for real groups `tpq eval` measures too.
    pub partial_sqnr_db: f64,
    /// `recorded`, `added` (neighbours together) or `cut` (see the folder's parts.rs).
    pub parts: &'static str,
    /// `recording` (its first half) or `manifest`.
    pub calibration: &'static str,
    /// That were measured: all of the recording, or its second half.
    pub tokens: usize,
}

/// What a simulation found.
#[derive(Debug, Clone, Serialize)]
pub struct Simulation {
    pub layers: Vec<String>,
    pub rows: Vec<Simulated>,
    /// `paper` in one shot: of all layers, by ranks, then of each layer.
    pub distributions: Vec<Distribution>,
}

/// Simulates every number of ranks with every codec and algorithm. A `manifest` calibrates the number of ranks that it was made for; everything
/// else is calibrated on the first half of the recording and measured on the second.
///
/// # Errors
/// Ranks that cannot be made from the recording, too few tokens, a manifest that lacks a layer.
pub fn simulate(
    recorded: &Recorded,
    options: &SimulateOptions,
    manifest: Option<&Manifest>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Simulation, SimulateError> {
    let mut simulation = Simulation {
        layers: recorded.layers.iter().map(|layer| layer.name.clone()).collect(),
        rows: Vec::new(),
        distributions: Vec::new(),
    };
    let mut by_layer = Vec::new();
    let total = options.ranks.len() * recorded.layers.len();
    for (at, &ranks) in options.ranks.iter().enumerate() {
        let manifest = manifest.filter(|manifest| manifest.header().world_size == ranks);
        let mut tally = Tally::new(options, ranks);
        for (i, layer) in recorded.layers.iter().enumerate() {
            progress(at * recorded.layers.len() + i, total);
            let (calibration, unseen) = match manifest {
                Some(manifest) => {
                    let layer = manifest.require(&layer.name, layer.features)?;
                    (Calibration::of_layer(layer), recorded.layers[i].ranks.clone())
                }
                None => calibrated(layer, ranks, recorded.origin.sequence)?,
            };
            by_layer.push(tally.add(options, layer, &calibration, &unseen)?);
        }
        simulation.distributions.push(tally.errors.distribution("", ranks));
        let (have, calibration) = (recorded.origin.world_size, manifest.map_or("recording", |_| "manifest"));
        simulation.rows.extend(tally.rows(ranks, have, calibration));
    }
    progress(total, total);
    simulation.distributions.extend(by_layer);
    Ok(simulation)
}

/// Calibrated on parts of the first half of the tokens; parts of the second half.
fn calibrated(
    layer: &RecordedLayer,
    ranks: usize,
    sequence: usize,
) -> Result<(Calibration, Vec<Vec<f32>>), SimulateError> {
    let tokens = layer.ranks[0].len() / layer.features;
    if tokens < 2 {
        return Err(SimulateError::Tokens { tokens, ways: 2, ranks });
    }
    let halves = layer
        .ranks
        .iter()
        .map(|rank| rank.split_at(tokens / 2 * layer.features));
    let (seen, unseen): (Vec<_>, Vec<_>) = halves.map(|(a, b)| (a.to_vec(), b.to_vec())).unzip();
    let seen = parts(&seen, layer.features, ranks)?;
    let calibration = Calibration::observe(&seen, layer.features, sequence, CALIBRATION_EMA)?;
    Ok((calibration, parts(&unseen, layer.features, ranks)?))
}

/// Energies of one number of ranks, over the layers.
struct Tally {
    /// `[codec][algorithm]`: squared error of the sums, and bits sent.
    cells: Vec<(CodecKind, Vec<(f64, f64)>)>,
    /// `[codec]`: squared error of single partial sums.
    partial_error: Vec<f64>,
    partial_signal: f64,
    signal: f64,
    values: f64,
    tokens: usize,
    errors: Errors,
}

impl Tally {
    fn new(options: &SimulateOptions, ranks: usize) -> Self {
        let cell = |kind: &CodecKind| (*kind, vec![(0.0, 0.0); algorithms(ranks).len()]);
        Self {
            cells: options.codecs.iter().map(cell).collect(),
            partial_error: vec![0.0; options.codecs.len()],
            partial_signal: 0.0,
            signal: 0.0,
            values: 0.0,
            tokens: 0,
            errors: Errors::default(),
        }
    }

    /// Exchanges one layer every way. Returns the distribution of `paper`'s errors there.
    fn add(
        &mut self,
        options: &SimulateOptions,
        layer: &RecordedLayer,
        calibration: &Calibration,
        parts: &[Vec<f32>],
    ) -> Result<Distribution, SimulateError> {
        let exact = exact_sum(parts);
        let shape = Shape {
            world_size: parts.len(),
            tokens: exact.len() / layer.features,
            features: layer.features,
            dtype: Dtype::F32,
        };
        self.signal += exact.iter().map(|x| x * x).sum::<f64>();
        self.values += exact.len() as f64;
        self.tokens = shape.tokens;
        self.partial_signal += parts
            .iter()
            .flatten()
            .map(|x| f64::from(*x) * f64::from(*x))
            .sum::<f64>();
        for ((kind, cells), partial) in self.cells.iter_mut().zip(&mut self.partial_error) {
            let codec = calibration.codec(*kind, options.bits)?;
            for (rank, part) in parts.iter().enumerate() {
                let alone = errors::round_trip(&*codec, rank, part)?;
                *partial += difference(part.iter().map(|x| f64::from(*x)), &alone);
            }
            for (chosen, (error, bits)) in algorithms(parts.len()).iter().zip(cells) {
                let sum = sum_in_process(*chosen, &*codec, options.gather_bits, parts)?;
                *error += difference(exact.iter().copied(), &sum);
                let sent = |rank| predict_bytes_sent(*chosen, shape, rank, &*codec, options.gather_bits) as f64;
                *bits += 8.0 * (0..parts.len()).map(sent).sum::<f64>() / parts.len() as f64;
            }
        }
        let mut errors = Errors::default();
        let paper = calibration.codec(CodecKind::Paper, options.bits)?;
        errors.add(&*paper, calibration, parts)?;
        let distribution = errors.distribution(&layer.name, parts.len());
        self.errors.merge(errors);
        Ok(distribution)
    }

    fn rows(&self, ranks: usize, have: usize, calibration: &'static str) -> Vec<Simulated> {
        let mut rows = Vec::new();
        for ((kind, cells), partial) in self.cells.iter().zip(&self.partial_error) {
            for (chosen, (error, bits)) in algorithms(ranks).iter().zip(cells) {
                rows.push(Simulated {
                    ranks,
                    codec: kind.name().to_owned(),
                    algorithm: chosen.name(),
                    bits_per_value: bits / self.values,
                    sqnr_db: 10.0 * (self.signal / error).log10(),
                    relative_error: (error / self.signal).sqrt(),
                    partial_sqnr_db: 10.0 * (self.partial_signal / partial).log10(),
                    parts: match ranks.cmp(&have) {
                        std::cmp::Ordering::Less => "added",
                        std::cmp::Ordering::Equal => "recorded",
                        std::cmp::Ordering::Greater => "cut",
                    },
                    calibration,
                    tokens: self.tokens,
                });
            }
        }
        rows
    }
}

/// One rank has nothing to exchange.
fn algorithms(ranks: usize) -> &'static [Chosen] {
    match ranks {
        1 => &[],
        _ => &ALGORITHMS,
    }
}

fn exact_sum(parts: &[Vec<f32>]) -> Vec<f64> {
    let mut sum = vec![0.0f64; parts[0].len()];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sum
}

fn difference(exact: impl Iterator<Item = f64>, got: &[f32]) -> f64 {
    exact.zip(got).map(|(x, y)| (x - f64::from(*y)).powi(2)).sum()
}

/// The times of one message of `features` features for every codec, algorithm and number of ranks up to `most`, in powers of two, and of a
/// lossless all-reduce in BF16.
pub fn times(
    costs: &Costs,
    codecs: &[Box<dyn Codec>],
    tokens: &[usize],
    gather_bits: GatherBits,
    most: usize,
) -> Vec<Predicted> {
    let mut rows = Vec::new();
    for &tokens in tokens {
        for codec in codecs {
            for world_size in (1..).map(|power| 1usize << power).take_while(|ranks| *ranks <= most) {
                let features = codec.features();
                let shape = Shape {
                    world_size,
                    tokens,
                    features,
                    dtype: Dtype::Bf16,
                };
                let raw = [Chosen::LosslessOneShot, Chosen::LosslessTwoShot];
                let algorithms = if codec.name() == "none" { &raw[..] } else { &ALGORITHMS };
                rows.extend(
                    algorithms
                        .iter()
                        .map(|chosen| predict(costs, *chosen, shape, &**codec, gather_bits)),
                );
            }
        }
    }
    rows
}
