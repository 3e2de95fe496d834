//! New ranges from what a rank sees: the observers of `tpq calibrate`, fed while serving.

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};

use crate::calibrate::{Curve, LayerStatistics, RangeObserver, Selection};
use crate::codec::CLASSES;
use crate::config::OutlierCount;
use crate::manifest::Layer;

/// Sequences that the tokens to learn from are cut into, where calibration's are longer.
const SEQUENCES: u64 = 4;

/// How much to learn from, the same on every rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lesson {
    pub sequences: u64,
    /// Of each sequence.
    pub tokens: u64,
    pub ema: f64,
}

impl Lesson {
    /// `total` tokens in sequences as long as those of the calibration, whose extremes depend on that length. A moving average that
    /// remembers more sequences than there are would be little but its first.
    pub fn new(total: u64, calibrated_tokens: u64, ema: f64) -> Self {
        let tokens = calibrated_tokens.min(total / SEQUENCES).max(1);
        let sequences = (total / tokens).max(1);
        let short = 1.0 - 1.0 / (sequences + 1) as f64;
        Self {
            sequences,
            tokens,
            ema: ema.min(short),
        }
    }
}

/// One layer's observer while it learns.
#[derive(Debug)]
pub(super) struct Learner {
    observer: RangeObserver,
    lesson: Lesson,
    /// Of the sequence under way.
    rows: u64,
}

impl Learner {
    pub(super) fn new(features: usize, lesson: Lesson) -> Result<Self> {
        Ok(Self {
            observer: RangeObserver::new(features, lesson.ema)?,
            lesson,
            rows: 0,
        })
    }

    pub(super) fn is_done(&self) -> bool {
        self.observer.sequences() >= self.lesson.sequences
    }

    pub(super) fn observer(&self) -> &RangeObserver {
        &self.observer
    }

    /// Takes one token; nothing once it is done, so that all ranks have seen the same.
    pub(super) fn observe(&mut self, row: &[f32]) -> Result<()> {
        if self.is_done() {
            return Ok(());
        }
        self.observer.observe(row)?;
        self.rows += 1;
        if self.rows == self.lesson.tokens {
            self.observer.end_sequence();
            self.rows = 0;
        }
        Ok(())
    }
}

/// A layer as it travels from rank 0: floats as their bits, so that every rank has the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedLayer {
    name: String,
    features: usize,
    outliers: Vec<u32>,
    ranges: Vec<u32>,
    /// Errors and steps by class, curve after curve.
    curves: Vec<u32>,
    shape: Vec<u32>,
    expected_sqnr_db: u32,
    /// Of a sequence that it was learned from.
    pub(super) tokens: u64,
}

impl LearnedLayer {
    /// From the observers of all ranks, with as many outliers as `old` has: the layer costs as many bits as before.
    ///
    /// # Errors
    /// Observers that saw nothing, or different things.
    pub fn learn(old: &Layer, observers: &[RangeObserver], lesson: Lesson) -> Result<Self> {
        let statistics = LayerStatistics::gather(old.name(), observers)?;
        let layer = statistics.into_layer(OutlierCount::Count(old.outliers().len()), Selection::Largest)?;
        let numbers = layer
            .curves()
            .iter()
            .flat_map(|curve| curve.error.iter().chain(&curve.step));
        Ok(Self {
            name: layer.name().to_owned(),
            features: layer.features(),
            outliers: layer.outliers().to_vec(),
            ranges: bits(layer.ranges()),
            curves: numbers.map(|x| x.to_bits()).collect(),
            shape: bits(layer.shape()),
            expected_sqnr_db: layer.summary().expected_sqnr_db.to_bits(),
            tokens: lesson.tokens,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The layer, every number checked. How much its noise matters stays as `old` has it: that takes passes of its own to measure.
    ///
    /// # Errors
    /// What no calibration gives.
    pub fn to_layer(&self, old: &Layer) -> Result<Layer> {
        const NUMBERS: usize = 2 * CLASSES.len();
        ensure!(
            self.curves.len().is_multiple_of(NUMBERS),
            "learned layer {} has {} numbers of curves, expected a multiple of {NUMBERS}",
            self.name,
            self.curves.len()
        );
        let db = f32::from_bits(self.expected_sqnr_db);
        let layer = Layer::new(
            &self.name,
            self.features,
            self.outliers.clone(),
            floats(&self.ranges),
            db,
        )?;
        let curves = self.curves.chunks_exact(NUMBERS).map(|numbers| {
            let number = |at: usize| f32::from_bits(numbers[at]);
            Curve {
                error: std::array::from_fn(number),
                step: std::array::from_fn(|at| number(CLASSES.len() + at)),
            }
        });
        let layer = layer.with_curves(curves.collect(), floats(&self.shape))?;
        match old.priority() {
            None => Ok(layer),
            Some(priority) => Ok(layer.with_priority(priority)?),
        }
    }
}

fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|x| x.to_bits()).collect()
}

fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().copied().map(f32::from_bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Priority;

    fn learned(lesson: Lesson, rows: u64) -> RangeObserver {
        let mut learner = Learner::new(2, lesson).unwrap();
        (0..rows).for_each(|i| learner.observe(&[1.0 + (i % 7) as f32, -0.5]).unwrap());
        learner.observer().clone()
    }

    #[test]
    fn a_lesson_has_calibrations_sequence_length_where_it_is_long_enough_for_four() {
        let lesson = Lesson::new(1024, 128, 0.99);
        assert_eq!((lesson.sequences, lesson.tokens), (8, 128));
        assert!(lesson.ema < 0.9);
        let lesson = Lesson::new(100, 256, 0.5);
        assert_eq!((lesson.sequences, lesson.tokens, lesson.ema), (4, 25, 0.5));
    }

    #[test]
    fn a_learner_stops_at_the_end_of_its_lesson() {
        let lesson = Lesson::new(64, 16, 0.9);
        assert_eq!(learned(lesson, 64), learned(lesson, 1000));
        assert_eq!(
            (learned(lesson, 63).sequences(), learned(lesson, 64).sequences()),
            (3, 4)
        );
    }

    #[test]
    fn a_learned_layer_arrives_to_the_bit_and_nonsense_is_refused() {
        let lesson = Lesson::new(64, 16, 0.9);
        let ranks = [learned(lesson, 64), learned(lesson, 64)];
        let priority = Priority {
            sensitivity: 0.5,
            extra_bits: -0.25,
        };
        let old = Layer::new("a.b", 2, vec![1], vec![1.0; 4], 0.0).unwrap();
        let old = old.with_priority(priority).unwrap();
        let sent = LearnedLayer::learn(&old, &ranks, lesson).unwrap();
        let text = serde_json::to_string(&sent).unwrap();
        let arrived: LearnedLayer = serde_json::from_str(&text).unwrap();
        assert_eq!(arrived, sent);
        let layer = arrived.to_layer(&old).unwrap();
        assert_eq!((layer.outliers(), layer.curves().len()), (&[0][..], 4));
        assert_eq!(layer.priority(), Some(priority));
        let broken = |change: fn(&mut LearnedLayer)| {
            let mut bad = sent.clone();
            change(&mut bad);
            bad.to_layer(&old).unwrap_err().to_string()
        };
        broken(|layer| layer.ranges[0] = f32::NAN.to_bits());
        broken(|layer| layer.ranges.truncate(1));
        broken(|layer| layer.features = 0);
        broken(|layer| layer.features = usize::MAX);
        broken(|layer| layer.outliers = vec![7]);
        broken(|layer| layer.shape.clear());
        assert!(broken(|layer| layer.curves.truncate(5)).contains("5 numbers"));
        assert!(LearnedLayer::learn(&old, &[ranks[0].clone(), learned(lesson, 16)], lesson).is_err());
    }
}
