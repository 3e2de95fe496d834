//! What the error of a sum should look like: a sum of independent uniform errors, one for each rank.
//!
//! With equal steps that is the Irwin-Hall distribution, centred (Irwin 1927, Hall 1927): N terms uniform in [-1/2, 1/2] have variance N/12, no
//! skewness and excess kurtosis -6/(5N). Ranks have a step each, so the terms have widths w_r: variance sum w_r^2 / 12, excess kurtosis
//! -6/5 sum w_r^4 / (sum w_r^2)^2. Over features with different widths the standardized error is a mixture of such sums, and its distribution
//! function comes from the mean of their characteristic functions, phi(t) = prod sin(w_r t / 2) / (w_r t / 2) (Gil-Pelaez 1951):
//!
//! ```text
//! F(x) = 1/2 + 1/pi * integral from 0 to infinity of phi(t) sin(t x) / t dt
//! ```

use std::f64::consts::PI;

/// Of a standardized error (variance 1).
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    pub excess_kurtosis: f64,
    /// F at [`point`]s.
    table: Vec<f64>,
}

/// The outermost points of the table. Two terms end at sqrt(6) = 2.4; a normal distribution has 2e-9 beyond 6.
const REACH: f64 = 6.0;
const POINTS: usize = 481;
/// Of the integral: phi falls as t^-N, so with N = 2 what is left out beyond is below 1e-4; in `t`, with variance 1.
const LAST_T: f64 = 60.0;
const T_STEPS: usize = 1200;
/// Features of a mixture that are looked at, spread evenly: its distribution changes little beyond.
const MOST_TERMS: usize = 256;

impl Prediction {
    /// `widths` has the terms of each feature: a feature's error is the sum of one uniform error of each width. Features whose widths are all
    /// zero have no error and do not count; without any other the prediction is a normal distribution.
    pub fn of_uniform(widths: &[Vec<f64>]) -> Self {
        let live: Vec<Vec<f64>> = widths.iter().filter_map(|widths| standardized(widths)).collect();
        if live.is_empty() {
            return Self {
                excess_kurtosis: 0.0,
                table: tabulate(|t| (-t * t / 2.0).exp()),
            };
        }
        let kurtosis = |widths: &Vec<f64>| -1.2 * widths.iter().map(|w| (w * w / 12.0).powi(2)).sum::<f64>();
        let excess_kurtosis = live.iter().map(kurtosis).sum::<f64>() / live.len() as f64;
        let every = live.len().div_ceil(MOST_TERMS);
        let some: Vec<&Vec<f64>> = live.iter().step_by(every).collect();
        let phi = |t: f64| {
            let of_feature = |widths: &&Vec<f64>| widths.iter().map(|w| sinc(w * t / 2.0)).product::<f64>();
            some.iter().map(of_feature).sum::<f64>() / some.len() as f64
        };
        Self {
            excess_kurtosis,
            table: tabulate(phi),
        }
    }

    /// F(x), the share of errors below `x` standard deviations.
    pub fn cdf(&self, x: f64) -> f64 {
        let place = (x + REACH) / (2.0 * REACH) * (POINTS - 1) as f64;
        // NaN compares as neither.
        if place < 0.0 {
            return 0.0;
        }
        let at = place as usize;
        if at >= POINTS - 1 {
            return 1.0;
        }
        let share = place - at as f64;
        self.table[at] * (1.0 - share) + self.table[at + 1] * share
    }

    /// The `x` with F(x) = `p`, for `p` in (0, 1).
    pub fn quantile(&self, p: f64) -> f64 {
        let above = self.table.partition_point(|f| *f < p).clamp(1, POINTS - 1);
        let (low, high) = (self.table[above - 1], self.table[above]);
        let share = if high > low { (p - low) / (high - low) } else { 0.5 };
        point(above - 1) + share.clamp(0.0, 1.0) * (point(above) - point(above - 1))
    }

    /// Kolmogorov-Smirnov distance of a sample: the largest difference between its distribution function and F. `sample` ascends.
    pub fn distance(&self, sample: &[f64]) -> f64 {
        let n = sample.len() as f64;
        let differences = sample.iter().enumerate().map(|(i, x)| {
            let f = self.cdf(*x);
            (f - i as f64 / n).abs().max(((i + 1) as f64 / n - f).abs())
        });
        differences.fold(0.0, f64::max)
    }
}

/// Scaled to variance 1; `None` without any width.
fn standardized(widths: &[f64]) -> Option<Vec<f64>> {
    let variance: f64 = widths.iter().map(|w| w * w / 12.0).sum();
    (variance > 0.0).then(|| widths.iter().map(|w| w / variance.sqrt()).collect())
}

fn point(index: usize) -> f64 {
    (index as f64 / (POINTS - 1) as f64 * 2.0 - 1.0) * REACH
}

/// F at every point, by the trapezoidal rule in t. F rises; what the truncated integral swings around that is smoothed out.
fn tabulate(phi: impl Fn(f64) -> f64) -> Vec<f64> {
    let h = LAST_T / T_STEPS as f64;
    let mut values = Vec::new();
    let mut small = 0;
    for i in 1..=T_STEPS {
        let t = h * i as f64;
        let value = phi(t);
        values.push((t, value / t));
        // Beyond a few zeros in a row there is only more of them: of a hundred ranks, phi is gone at t = 7.
        small = if value.abs() < 1e-9 { small + 1 } else { 0 };
        if small == 20 {
            break;
        }
    }
    let mut highest = 0.0f64;
    (0..POINTS)
        .map(|index| {
            let x = point(index);
            // At t = 0 the integrand is x.
            let integral = h * (0.5 * x + values.iter().map(|(t, value)| value * (t * x).sin()).sum::<f64>());
            highest = highest.max((0.5 + integral / PI).clamp(0.0, 1.0));
            highest
        })
        .collect()
}

fn sinc(x: f64) -> f64 {
    if x.abs() < 1e-8 {
        1.0
    } else {
        x.sin() / x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal(terms: usize) -> Prediction {
        Prediction::of_uniform(&[vec![2.0; terms]])
    }

    #[test]
    fn two_and_three_equal_terms_have_the_distributions_of_irwin_and_hall() {
        // Two terms of width 1: triangular on [-1, 1], standard deviation sqrt(1/6).
        let triangular = |x: f64| match x {
            x if x < 0.0 => (1.0 + x).powi(2) / 2.0,
            x => 1.0 - (1.0 - x).powi(2) / 2.0,
        };
        // Three: (1/6) (3/2 + x)^3 below -1/2, and 1/2 + 3x/4 - x^3/3 between.
        let three = |x: f64| match x {
            x if x < -0.5 => (1.5 + x).powi(3) / 6.0,
            x if x <= 0.5 => 0.5 + 0.75 * x - x.powi(3) / 3.0,
            x => 1.0 - (1.5 - x).powi(3) / 6.0,
        };
        for i in -8..=8 {
            let x = f64::from(i) / 9.0;
            assert!((equal(2).cdf(x * 6f64.sqrt()) - triangular(x)).abs() < 1e-3, "{x}");
            assert!((equal(3).cdf(x * 2.0) - three(x)).abs() < 1e-3, "{x}");
        }
        for terms in [2, 3, 8, 128] {
            assert!((equal(terms).excess_kurtosis + 1.2 / terms as f64).abs() < 1e-12);
        }
    }

    #[test]
    fn many_terms_and_none_are_normal() {
        for prediction in [equal(128), Prediction::of_uniform(&[])] {
            assert!((prediction.cdf(1.0) - 0.841_34).abs() < 2e-3);
            assert!((prediction.quantile(0.975) - 1.959_96).abs() < 1e-2);
        }
    }

    #[test]
    fn one_wide_term_among_narrow_ones_is_nearly_uniform() {
        let prediction = Prediction::of_uniform(&[vec![1.0, 0.05, 0.05]]);
        assert!(prediction.excess_kurtosis < -1.15, "{prediction:?}");
        assert!((prediction.cdf(1.0) - (0.5 + 1.0 / 12f64.sqrt())).abs() < 5e-3);
    }

    #[test]
    fn a_quantile_is_the_inverse_and_the_distance_of_its_own_quantiles_is_small() {
        let prediction = equal(4);
        let n = 1000;
        let sample: Vec<f64> = (0..n)
            .map(|i| prediction.quantile((i as f64 + 0.5) / n as f64))
            .collect();
        assert!((prediction.cdf(prediction.quantile(0.1)) - 0.1).abs() < 1e-6);
        assert!(prediction.distance(&sample) < 1e-3);
        let shifted: Vec<f64> = sample.iter().map(|x| x + 0.5).collect();
        assert!((0.17..0.22).contains(&prediction.distance(&shifted)));
    }
}
