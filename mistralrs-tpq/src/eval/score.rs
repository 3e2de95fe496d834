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
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Comparison {
    pub lossless: WindowScore,
    pub quantized: WindowScore,
    /// Sum over positions of KL(lossless || quantized) in nats.
    pub kl: f64,
    /// Positions at which both have the same most likely token.
    pub agreed: u64,
    pub positions: u64,
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
        for (p, q) in lossless.chunks_exact(vocab).zip(quantized.chunks_exact(vocab)) {
            self.kl += divergence(p, q);
            self.agreed += u64::from(argmax(p) == argmax(q));
            self.positions += 1;
        }
    }

    /// Mean KL in nats a token.
    pub fn mean_kl(&self) -> f64 {
        self.kl / self.positions as f64
    }

    /// Share of positions with the same most likely token.
    pub fn top1_agreement(&self) -> f64 {
        self.agreed as f64 / self.positions as f64
    }
}

fn log_sum_exp(row: &[f32]) -> f64 {
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
fn argmax(row: &[f32]) -> usize {
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
    fn divergence_matches_the_closed_form_of_two_outcomes() {
        // p = (3/4, 1/4), q = (1/2, 1/2)
        let p = [3f32.ln(), 0.0];
        let expected = 0.75 * (0.75f64 / 0.5).ln() + 0.25 * (0.25f64 / 0.5).ln();
        assert!((divergence(&p, &[0.0, 0.0]) - expected).abs() < 1e-6);
    }
}
