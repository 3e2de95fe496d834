//! Asking the model: every choice of every item once lossless and once with each codec.

use std::path::Path;

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};

use super::{Choice, Item, Measured, Paired, Task};
use crate::engine::{Driver, Node, SequenceLogits};
use crate::eval::score::log_sum_exp;
use crate::eval::Session;

/// One row: one configuration on one task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskResult {
    pub config: String,
    pub codec: String,
    pub task: String,
    pub file: String,
    pub ranks: usize,
    pub items: usize,
    pub bits_per_value: f64,
    /// Whether the harness reports `acc_norm` for this task.
    pub has_acc_norm: bool,
    #[serde(flatten)]
    pub quantized: Measured,
    pub lossless: Measured,
    #[serde(flatten)]
    pub paired: Paired,
    pub ranks_bit_identical: bool,
}

/// A choice as tokens.
struct Asked {
    tokens: Vec<u32>,
    /// Where the continuation starts.
    context: usize,
}

impl Session<'_> {
    /// One row for each configuration that is compared. `special` adds the tokenizer's own tokens, such as Gemma's beginning of text.
    ///
    /// # Errors
    /// What running reports.
    pub fn task(
        &mut self,
        task: Task,
        path: &Path,
        items: &[Item],
        special: bool,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Vec<TaskResult>> {
        self.reset()?;
        let choices = self.compared();
        let mut lossless = Vec::with_capacity(items.len());
        let mut quantized = vec![Vec::with_capacity(items.len()); choices.len()];
        for (i, item) in items.iter().enumerate() {
            let asked = asked(&self.driver, item, special)?;
            lossless.push(Choice::of(item, &self.likelihoods(Node::LOSSLESS, &asked)?));
            for (chosen, &choice) in quantized.iter_mut().zip(&choices) {
                let same = match self.ranks() {
                    1 => lossless.last().copied(),
                    _ => None,
                };
                chosen.push(match same {
                    Some(same) => same,
                    None => Choice::of(item, &self.likelihoods(choice, &asked)?),
                });
            }
            progress(i + 1, items.len());
        }
        let mut results = Vec::with_capacity(choices.len());
        for (chosen, &choice) in quantized.iter().zip(&choices) {
            let reports = self.reports(choice)?;
            let first = reports.first();
            results.push(TaskResult {
                config: self.config(choice),
                codec: self.codec(choice).to_owned(),
                task: task.name().to_owned(),
                file: path.display().to_string(),
                ranks: self.ranks(),
                items: items.len(),
                bits_per_value: first.map_or(0.0, |first| first.payload_bits as f64 / first.values as f64),
                has_acc_norm: task.has_acc_norm(),
                quantized: Measured::of(chosen),
                lossless: Measured::of(&lossless),
                paired: Paired::of(&lossless, chosen),
                ranks_bit_identical: reports
                    .iter()
                    .all(|report| first.is_none_or(|first| report.logits_digest == first.logits_digest)),
            });
        }
        Ok(results)
    }

    /// Of each choice, in nats.
    fn likelihoods(&mut self, choice: usize, asked: &[Asked]) -> Result<Vec<f64>> {
        asked
            .iter()
            .map(|asked| Ok(likelihood(&self.logits(choice, &asked.tokens)?, asked.context)))
            .collect()
    }
}

/// As the harness splits them: spaces at the end of the context count as the continuation's, which has the tokens of both together
/// beyond those of the context alone.
fn asked(driver: &Driver, item: &Item, special: bool) -> Result<Vec<Asked>> {
    let mut all = Vec::with_capacity(item.choices.len());
    for (context, continuation) in &item.choices {
        let tokens = driver.tokenize(&format!("{context}{continuation}"), special)?;
        let context = driver.tokenize(context.trim_end(), special)?.len();
        ensure!(
            (1..tokens.len()).contains(&context),
            "the choice `{}` has no token of its own after its context",
            continuation.escape_debug().take(80).collect::<String>()
        );
        all.push(Asked { tokens, context });
    }
    Ok(all)
}

fn likelihood(logits: &SequenceLogits, context: usize) -> f64 {
    let of_token = |at: usize| {
        let row = logits.row(at - 1);
        let token = row.get(logits.tokens[at] as usize);
        token.map_or(f64::NEG_INFINITY, |logit| f64::from(*logit) - log_sum_exp(row))
    };
    (context..logits.tokens.len()).map(of_token).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_likelihood_is_that_of_the_tokens_after_the_context() {
        // Two tokens: logits [0, ln 3] give 3/4 to token 1.
        let row = [0.0, 3f32.ln()];
        let logits = SequenceLogits {
            tokens: vec![0, 1, 1, 0],
            vocab: 2,
            values: row.repeat(4),
        };
        assert!((likelihood(&logits, 2) - (0.75f64.ln() + 0.25f64.ln())).abs() < 1e-6);
        assert!((likelihood(&logits, 3) - 0.25f64.ln()).abs() < 1e-6);
    }
}
