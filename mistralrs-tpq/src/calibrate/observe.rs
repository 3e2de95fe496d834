//! Static ranges of one layer's partial sums on one rank.
//!
//! Per sequence s and feature e the observer takes min and max over the tokens, and smooths them over sequences
//! (arXiv 2411.07942, static quantization from an exponential moving average of min/max over 256 sequences):
//!
//! ```text
//! m_1 = min_1        m_s = ema * m_(s-1) + (1 - ema) * min_s        likewise M_s with max
//! range = max(|m|, |M|)
//! ```
//! The paper does not print its factor; `calibration.ema` defaults to 0.99.
//!
//! It also counts magnitudes relative to their token's gain ([`GainHistogram`], for `rd`), and sums squares, from which [`super::expected_sqnr_db`] estimates the quantization noise.

use serde::{Deserialize, Serialize};

use super::GainHistogram;

/// Serializes to its finished sequences: an unfinished one is dropped, so a resumed run starts at a sequence boundary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "State", try_from = "State")]
pub struct RangeObserver {
    state: State,
    /// The sequence under way.
    min: Vec<f32>,
    max: Vec<f32>,
    sum_squares: Vec<f64>,
    gains: GainHistogram,
    rows: u64,
    nonfinite: u64,
}

/// All finished sequences. Vectors have `features` elements, or none before the first sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    features: usize,
    ema: f64,
    sequences: u64,
    rows: u64,
    nonfinite: u64,
    min: Vec<f64>,
    max: Vec<f64>,
    /// The first sequence's: without it, smoothed ranges could not be continued by those of another observer.
    first_min: Vec<f32>,
    first_max: Vec<f32>,
    sum_squares: Vec<f64>,
    gains: GainHistogram,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ObserveError {
    #[error("{got} values, expected a multiple of {features} features")]
    Shape { features: usize, got: usize },
    #[error("EMA factor {got}, expected a number above 0 and below 1")]
    Ema { got: f64 },
    #[error("{got} features, expected 1 to {limit}")]
    Features { got: usize, limit: usize },
    #[error("saved statistics: {what}")]
    State { what: String },
    #[error("statistics of {got} features with EMA factor {got_ema} cannot continue {features} features with {ema}")]
    Append {
        features: usize,
        ema: f64,
        got: usize,
        got_ema: f64,
    },
}

impl RangeObserver {
    /// For rows of `features` values; `ema` in (0, 1).
    ///
    /// # Errors
    /// No features or too many, a factor out of range.
    pub fn new(features: usize, ema: f64) -> Result<Self, ObserveError> {
        let limit = crate::config::defaults::MAX_FEATURES;
        if !(1..=limit).contains(&features) {
            return Err(ObserveError::Features { got: features, limit });
        }
        if !(ema > 0.0 && ema < 1.0) {
            return Err(ObserveError::Ema { got: ema });
        }
        Ok(Self::from_state(State {
            features,
            ema,
            sequences: 0,
            rows: 0,
            nonfinite: 0,
            min: Vec::new(),
            max: Vec::new(),
            first_min: Vec::new(),
            first_max: Vec::new(),
            sum_squares: Vec::new(),
            gains: GainHistogram::new(features),
        }))
    }

    fn from_state(state: State) -> Self {
        let features = state.features;
        Self {
            state,
            min: vec![f32::INFINITY; features],
            max: vec![f32::NEG_INFINITY; features],
            sum_squares: vec![0.0; features],
            gains: GainHistogram::new(features),
            rows: 0,
            nonfinite: 0,
        }
    }

    /// Takes rows of the sequence under way: `[tokens, features]`, row-major. A sequence may come in several calls.
    ///
    /// NaN and infinity are counted and otherwise left out: one of them would make a range useless for good.
    ///
    /// # Errors
    /// A length that is not a multiple of `features`; nothing is taken then.
    pub fn observe(&mut self, rows: &[f32]) -> Result<(), ObserveError> {
        let features = self.state.features;
        if !rows.len().is_multiple_of(features) {
            return Err(ObserveError::Shape {
                features,
                got: rows.len(),
            });
        }
        for row in rows.chunks_exact(features) {
            self.nonfinite += take_row(row, &mut self.min, &mut self.max, &mut self.sum_squares);
            self.gains.observe_row(row);
            self.rows += 1;
        }
        Ok(())
    }

    /// Folds the sequence under way into the ranges. `false`, and nothing done, when it had no rows.
    pub fn end_sequence(&mut self) -> bool {
        if self.rows == 0 {
            return false;
        }
        // A feature that never had a finite value in this sequence counts as zero.
        let seen = |value: &f32| if value.is_finite() { *value } else { 0.0 };
        let min: Vec<f32> = self.min.iter().map(seen).collect();
        let max: Vec<f32> = self.max.iter().map(seen).collect();
        let state = &mut self.state;
        if state.sequences == 0 {
            state.min = min.iter().copied().map(f64::from).collect();
            state.max = max.iter().copied().map(f64::from).collect();
            state.sum_squares = vec![0.0; state.features];
            (state.first_min, state.first_max) = (min, max);
        } else {
            smooth(&mut state.min, &min, state.ema);
            smooth(&mut state.max, &max, state.ema);
        }
        state
            .sum_squares
            .iter_mut()
            .zip(&self.sum_squares)
            .for_each(|(sum, more)| *sum += more);
        state.gains.add(&self.gains);
        state.sequences += 1;
        state.rows += self.rows;
        state.nonfinite += self.nonfinite;
        self.discard_sequence();
        true
    }

    /// Forgets the sequence under way, as after a failed request.
    pub fn discard_sequence(&mut self) {
        self.min.fill(f32::INFINITY);
        self.max.fill(f32::NEG_INFINITY);
        self.sum_squares.fill(0.0);
        self.gains.clear();
        self.rows = 0;
        self.nonfinite = 0;
    }

    /// Continues with the finished sequences of `later`, as if this observer had seen them next. With n sequences in `later`,
    /// whose first is x_1 and whose smoothed value is m', `m = ema^n * m + m' - ema^n * x_1`: the recurrence unrolled, with the
    /// first sequence's full weight in m' taken back to `1 - ema`.
    ///
    /// # Errors
    /// Another number of features or another EMA factor.
    pub fn append(&mut self, later: &Self) -> Result<(), ObserveError> {
        let (mine, other) = (&mut self.state, &later.state);
        if mine.features != other.features || mine.ema != other.ema {
            let (got, got_ema) = (other.features, other.ema);
            return Err(ObserveError::Append {
                features: mine.features,
                ema: mine.ema,
                got,
                got_ema,
            });
        }
        if mine.sequences == 0 || other.sequences == 0 {
            if mine.sequences == 0 {
                mine.clone_from(other);
            }
            return Ok(());
        }
        let decay = mine.ema.powf(other.sequences as f64);
        let join = |mine: &mut [f64], other: &[f64], first: &[f32]| {
            for ((m, later), first) in mine.iter_mut().zip(other).zip(first) {
                *m = decay * *m + later - decay * f64::from(*first);
            }
        };
        join(&mut mine.min, &other.min, &other.first_min);
        join(&mut mine.max, &other.max, &other.first_max);
        mine.sum_squares
            .iter_mut()
            .zip(&other.sum_squares)
            .for_each(|(sum, more)| *sum += more);
        mine.gains.add(&other.gains);
        mine.sequences += other.sequences;
        mine.rows += other.rows;
        mine.nonfinite += other.nonfinite;
        Ok(())
    }

    pub const fn features(&self) -> usize {
        self.state.features
    }

    /// Magnitudes relative to their token's gain, of finished sequences.
    pub const fn gains(&self) -> &GainHistogram {
        &self.state.gains
    }

    /// Finished sequences.
    pub const fn sequences(&self) -> u64 {
        self.state.sequences
    }

    /// Tokens of finished sequences.
    pub const fn rows(&self) -> u64 {
        self.state.rows
    }

    /// NaN and infinite values in finished sequences. Not zero means that the model overflows in this dtype.
    pub const fn nonfinite(&self) -> u64 {
        self.state.nonfinite
    }

    /// The `features` absmax ranges; zeros before the first sequence.
    pub fn ranges(&self) -> Vec<f32> {
        if self.state.sequences == 0 {
            return vec![0.0; self.state.features];
        }
        self.state
            .min
            .iter()
            .zip(&self.state.max)
            .map(|(min, max)| min.abs().max(max.abs()) as f32)
            .collect()
    }

    /// Mean square of each feature over the tokens of finished sequences; zeros before the first.
    pub fn second_moments(&self) -> Vec<f64> {
        if self.state.rows == 0 {
            return vec![0.0; self.state.features];
        }
        self.state
            .sum_squares
            .iter()
            .map(|sum| sum / self.state.rows as f64)
            .collect()
    }
}

impl From<RangeObserver> for State {
    fn from(observer: RangeObserver) -> Self {
        observer.state
    }
}

/// The state comes from a file or from another rank: every number is checked.
impl TryFrom<State> for RangeObserver {
    type Error = ObserveError;

    fn try_from(state: State) -> Result<Self, ObserveError> {
        let fresh = Self::new(state.features, state.ema)?;
        let broken = |what: &str| Err(ObserveError::State { what: what.to_owned() });
        let expected = if state.sequences == 0 { 0 } else { state.features };
        let lengths = [
            state.min.len(),
            state.max.len(),
            state.first_min.len(),
            state.first_max.len(),
            state.sum_squares.len(),
        ];
        if let Some(got) = lengths.into_iter().find(|length| *length != expected) {
            return broken(&format!("{got} values, expected {expected}"));
        }
        state.gains.check(state.features)?;
        // Sums of finite f32 stay far inside f64, and a range has to fit f32 again.
        let in_f32 = |value: &f64| value.abs() <= f64::from(f32::MAX);
        let finite = state.min.iter().all(in_f32)
            && state.max.iter().all(in_f32)
            && state
                .first_min
                .iter()
                .chain(&state.first_max)
                .all(|value| value.is_finite())
            && state.sum_squares.iter().all(|sum| sum.is_finite() && *sum >= 0.0);
        if !finite {
            return broken("a value is not finite, or a sum of squares is negative");
        }
        if state.rows < state.sequences {
            return broken(&format!("{} rows in {} sequences", state.rows, state.sequences));
        }
        Ok(Self { state, ..fresh })
    }
}

/// Returns how many values were not finite. Branch-free, so that the compiler vectorises it.
fn take_row(row: &[f32], min: &mut [f32], max: &mut [f32], sum_squares: &mut [f64]) -> u64 {
    let mut nonfinite = 0u32;
    for (((value, min), max), sum) in row.iter().zip(min).zip(max).zip(sum_squares) {
        let finite = value.abs() < f32::INFINITY;
        let low = if finite { *value } else { f32::INFINITY };
        let high = if finite { *value } else { f32::NEG_INFINITY };
        let square = if finite {
            f64::from(*value) * f64::from(*value)
        } else {
            0.0
        };
        *min = if low < *min { low } else { *min };
        *max = if high > *max { high } else { *max };
        *sum += square;
        nonfinite += u32::from(!finite);
    }
    u64::from(nonfinite)
}

fn smooth(smoothed: &mut [f64], values: &[f32], ema: f64) {
    for (smoothed, value) in smoothed.iter_mut().zip(values) {
        *smoothed = ema * *smoothed + (1.0 - ema) * f64::from(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn observer(sequences: &[Vec<f32>], features: usize, ema: f64) -> RangeObserver {
        let mut observer = RangeObserver::new(features, ema).unwrap();
        for rows in sequences {
            observer.observe(rows).unwrap();
            assert!(observer.end_sequence());
        }
        observer
    }

    #[test]
    fn ranges_follow_the_formula_by_hand() {
        // Sequence 1: min -4, max 2. Sequence 2: min -1, max 10. ema 0.75: m = -3.25, M = 4.
        let two = observer(&[vec![2.0, -4.0], vec![10.0, -1.0]], 1, 0.75);
        assert_eq!(two.ranges(), [4.0]);
        assert_eq!(two.second_moments(), [(4.0 + 16.0 + 100.0 + 1.0) / 4.0]);
        assert_eq!((two.sequences(), two.rows()), (2, 4));
    }

    #[test]
    fn a_sequence_in_pieces_counts_as_one() {
        let whole = observer(&[vec![1.0, -2.0, 3.0, 4.0]], 2, 0.9);
        let mut pieces = RangeObserver::new(2, 0.9).unwrap();
        pieces.observe(&[1.0, -2.0]).unwrap();
        pieces.observe(&[]).unwrap();
        pieces.observe(&[3.0, 4.0]).unwrap();
        pieces.end_sequence();
        assert_eq!(pieces, whole);
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_do_not_reach_the_ranges() {
        let rows = vec![f32::NAN, 1.0, f32::INFINITY, -2.0, f32::NEG_INFINITY, 0.5];
        let seen = observer(&[rows], 2, 0.9);
        assert_eq!(seen.ranges(), [0.0, 2.0]);
        assert_eq!(seen.nonfinite(), 3);
    }

    #[test]
    fn misshapen_rows_bad_factors_and_empty_sequences_do_nothing() {
        let mut seen = RangeObserver::new(3, 0.9).unwrap();
        assert_eq!(
            seen.observe(&[1.0; 4]),
            Err(ObserveError::Shape { features: 3, got: 4 })
        );
        assert!(!seen.end_sequence());
        assert_eq!(seen.ranges(), [0.0; 3]);
        for ema in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(matches!(RangeObserver::new(3, ema), Err(ObserveError::Ema { .. })));
        }
        assert!(RangeObserver::new(0, 0.9).is_err() && RangeObserver::new(usize::MAX, 0.9).is_err());
    }

    #[test]
    fn a_discarded_sequence_leaves_no_trace() {
        let mut seen = observer(&[vec![1.0, 2.0]], 2, 0.9);
        let before = seen.clone();
        seen.observe(&[100.0, f32::NAN]).unwrap();
        seen.discard_sequence();
        assert_eq!(seen, before);
    }

    #[test]
    fn a_saved_observer_resumes_at_the_last_finished_sequence() {
        let mut seen = observer(&[vec![0.1, -0.7], vec![1e-30, 3.0e38]], 2, 0.99);
        let finished = seen.clone();
        seen.observe(&[5.0, 5.0]).unwrap();
        let resumed: RangeObserver = serde_json::from_str(&serde_json::to_string(&seen).unwrap()).unwrap();
        assert_eq!(resumed, finished);
    }

    #[test]
    fn saved_statistics_that_make_no_sense_are_refused() {
        let good = serde_json::to_value(observer(&[vec![1.0, 2.0]], 2, 0.99)).unwrap();
        let load = |key: &str, value: serde_json::Value| {
            let mut bad = good.clone();
            bad[key] = value;
            serde_json::from_value::<RangeObserver>(bad).unwrap_err().to_string()
        };
        assert_eq!(
            load("min", serde_json::json!([1.0])),
            "saved statistics: 1 values, expected 2"
        );
        assert_eq!(
            load("features", serde_json::json!(u64::MAX)),
            format!("{} features, expected 1 to 1048576", u64::MAX)
        );
        assert!(load("ema", serde_json::json!(1.5)).contains("EMA factor 1.5"));
        assert!(load("max", serde_json::json!([1e300, 1.0])).contains("not finite"));
        assert!(load("sum_squares", serde_json::json!([-1.0, 1.0])).contains("negative"));
        assert!(load("rows", serde_json::json!(0)).contains("0 rows in 1 sequences"));
    }

    proptest! {
        #[test]
        fn appending_equals_having_seen_all_sequences_in_order(
            values in prop::collection::vec(prop::collection::vec(-1e3f32..1e3, 6), 2..12),
            split in 0usize..12,
            ema in 0.1f64..0.999,
        ) {
            let split = split.min(values.len());
            let whole = observer(&values, 3, ema);
            let mut joined = observer(&values[..split], 3, ema);
            joined.append(&observer(&values[split..], 3, ema)).unwrap();
            prop_assert_eq!((joined.sequences(), joined.rows()), (whole.sequences(), whole.rows()));
            for (got, expected) in joined.ranges().iter().zip(whole.ranges()) {
                prop_assert!((got - expected).abs() <= 1e-3, "{} {}", got, expected);
            }
        }
    }

    #[test]
    fn observers_of_different_layers_do_not_append() {
        let mut two = RangeObserver::new(2, 0.9).unwrap();
        assert!(two.append(&RangeObserver::new(3, 0.9).unwrap()).is_err());
        assert!(two.append(&RangeObserver::new(2, 0.8).unwrap()).is_err());
    }
}
