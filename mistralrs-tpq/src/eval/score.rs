//! Perplexity, KL divergence and top-1 agreement from raw logits.
//!
//! All sums are f64: a vocabulary of 128,000 in f32 loses the third digit of a KL of 0.01.

/// Sum over the predicted tokens of one window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WindowScore {
    /// Negative log-likelihood in nats.
    pub nll: f64,
    pub predicted: u64,
}

/// Quantized against lossless on the same tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    pub lossless: WindowScore,
    pub quantized: WindowScore,
    /// Sum over positions of KL(lossless || quantized) in nats.
    pub kl: f64,
    /// Positions at which both have the same most likely token.
    pub agreed: u64,
    pub positions: u64,
    /// Mean KL of each window, in their order.
    pub window_kl: Vec<f64>,
    /// Sum of KL, and windows, by position in the window.
    by_position: Vec<(f64, u64)>,
}

impl WindowScore {
    /// exp of the mean negative log-likelihood a token. NaN for an empty score.
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.predicted as f64).exp()
    }

    /// Adds one window: `logits` is `[tokens.len(), vocab]`; the first token is context only.
    pub fn add_window(&mut self, tokens: &[u32], vocab: usize, logits: &[f32]) {
        for (row, &next) in logits.chunks_exact(vocab).zip(&tokens[1..]) {
            let Some(&logit) = row.get(next as usize) else { continue };
            self.nll += log_sum_exp(row) - f64::from(logit);
            self.predicted += 1;
        }
    }
}

impl Comparison {
    /// Adds one window run both ways.
    pub fn add_window(&mut self, tokens: &[u32], vocab: usize, lossless: &[f32], quantized: &[f32]) {
        self.lossless.add_window(tokens, vocab, lossless);
        self.quantized.add_window(tokens, vocab, quantized);
        let rows = lossless.chunks_exact(vocab).zip(quantized.chunks_exact(vocab));
        self.by_position
            .resize(self.by_position.len().max(tokens.len()), (0.0, 0));
        let (before, first) = (self.kl, self.positions);
        for ((p, q), (sum, windows)) in rows.zip(&mut self.by_position) {
            let kl = divergence(p, q);
            self.kl += kl;
            self.agreed += u64::from(argmax(p) == argmax(q));
            self.positions += 1;
            *sum += kl;
            *windows += 1;
        }
        self.window_kl
            .push((self.kl - before) / (self.positions - first).max(1) as f64);
    }

    /// Mean KL in nats a token.
    pub fn mean_kl(&self) -> f64 {
        self.kl / self.positions as f64
    }

    /// Standard error of [`mean_kl`](Self::mean_kl), from the spread over windows. NaN for fewer than two.
    pub fn kl_stderr(&self) -> f64 {
        paired_difference(&vec![0.0; self.window_kl.len()], &self.window_kl).1
    }

    /// Mean KL of `parts` equal parts of the window, the first tokens first; fewer for shorter windows.
    pub fn kl_by_position(&self, parts: usize) -> Vec<f64> {
        let part = self.by_position.len().div_ceil(parts).max(1);
        let mean = |positions: &[(f64, u64)]| {
            let (kl, windows) = positions
                .iter()
                .fold((0.0, 0), |(a, b), (kl, windows)| (a + kl, b + windows));
            kl / windows as f64
        };
        self.by_position.chunks(part).map(mean).collect()
    }

    /// Share of positions with the same most likely token.
    pub fn top1_agreement(&self) -> f64 {
        self.agreed as f64 / self.positions as f64
    }
}

/// Mean of `b - a` window by window, and its standard error. Windows differ much more from each other than two codecs on one window, so this
/// tells codecs apart where the errors of their means overlap. The error is NaN for fewer than two windows.
pub fn paired_difference(a: &[f64], b: &[f64]) -> (f64, f64) {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let squares: f64 = differences.iter().map(|d| (d - mean) * (d - mean)).sum();
    (mean, (squares / (n - 1.0) / n).sqrt())
}

pub(super) fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(max) + sum.ln()
}

/// KL(p || q) of two rows of logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (zp, zq) = (log_sum_exp(p), log_sum_exp(q));
    p.iter()
        .zip(q)
        .map(|(&p, &q)| {
            let log_p = f64::from(p) - zp;
            log_p.exp() * (log_p - (f64::from(q) - zq))
        })
        .sum()
}

/// First index of the largest value.
pub(super) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in row.iter().enumerate() {
        if x > row[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_logits_have_the_vocabulary_as_perplexity() {
        let mut score = WindowScore::default();
        score.add_window(&[0, 3, 1, 2], 5, &[0.5; 20]);
        assert_eq!(score.predicted, 3);
        assert!((score.perplexity() - 5.0).abs() < 1e-9);
    }

    #[test]
    fn a_window_compared_with_itself_has_no_divergence() {
        let logits: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut comparison = Comparison::default();
        comparison.add_window(&[0, 1, 2], 4, &logits, &logits);
        assert_eq!(comparison.mean_kl(), 0.0);
        assert_eq!(comparison.top1_agreement(), 1.0);
        assert_eq!(comparison.lossless, comparison.quantized);
    }

    #[test]
    fn divergence_is_told_apart_by_window_and_by_position() {
        let lossless = [0.0f32; 8];
        let mut shifted = lossless;
        shifted[6] = 3.0;
        let mut comparison = Comparison::default();
        comparison.add_window(&[0, 1, 1, 0], 2, &lossless, &shifted);
        comparison.add_window(&[0, 1, 1, 0], 2, &lossless, &lossless);
        let halves = comparison.kl_by_position(2);
        assert_eq!((halves.len(), halves[0]), (2, 0.0));
        assert!((halves[1] - 2.0 * comparison.mean_kl()).abs() < 1e-12);
        // Two windows, d and 0: mean d/2, standard error d/2.
        assert!((comparison.kl_stderr() - comparison.mean_kl()).abs() < 1e-12);
    }

    #[test]
    fn windows_that_all_differ_by_the_same_leave_no_error() {
        let (mean, error) = paired_difference(&[0.1, 0.5, 0.9], &[0.2, 0.6, 1.0]);
        assert!((mean - 0.1).abs() < 1e-12 && error < 1e-12);
        assert_eq!(paired_difference(&[0.0, 0.0], &[0.0, 2.0]), (1.0, 1.0));
    }

    #[test]
    fn divergence_matches_the_closed_form_of_two_outcomes() {
        // p = (3/4, 1/4), q = (1/2, 1/2)
        let p = [3f32.ln(), 0.0];
        let expected = 0.75 * (0.75f64 / 0.5).ln() + 0.25 * (0.25f64 / 0.5).ln();
        assert!((divergence(&p, &[0.0, 0.0]) - expected).abs() < 1e-6);
    }
}
