//! How long a greedy continuation stays the same as the lossless one.
//!
//! Up to the first token that differs both have the same context. So it is enough to run the lossless continuation once with each codec: the first
//! position at which the likeliest token is another one is where a continuation of its own would have left it.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::score::argmax;
use super::Session;
use crate::engine::{Node, SequenceLogits};

/// Tokens that a continuation gets as its prompt, from a window's start, and tokens that it may have.
const PROMPT: usize = 64;
const CONTINUATION: usize = 128;

/// Over several continuations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Greedy {
    pub continuations: usize,
    /// Tokens of the lossless continuations, mean.
    pub tokens: f64,
    /// Tokens before the first that differs, mean; a continuation that stays the same counts with its whole length.
    pub same_tokens: f64,
    /// Share of continuations that stay the same to their end.
    pub same_to_the_end: f64,
}

/// For each of `choices`, over the first `count` windows; `None` when that is none.
pub(super) fn lengths(
    session: &mut Session<'_>,
    windows: &[Vec<u32>],
    count: usize,
    choices: &[usize],
) -> Result<Vec<Option<Greedy>>> {
    let mut totals = vec![Total::default(); choices.len()];
    for window in windows.iter().take(count) {
        let prompt = &window[..window.len().min(PROMPT)];
        session.select(Node::LOSSLESS)?;
        let mut tokens = prompt.to_vec();
        tokens.extend(session.driver.generate(prompt, CONTINUATION)?.tokens);
        let lossless = session.logits(Node::LOSSLESS, &tokens)?;
        let end = greedy_end(&lossless, prompt.len());
        for (total, &choice) in totals.iter_mut().zip(choices) {
            let quantized = session.logits(choice, &tokens)?;
            total.add(&lossless, &quantized, prompt.len(), end);
        }
    }
    Ok(totals.into_iter().map(Total::greedy).collect())
}

/// Where `tokens` stops being greedy: one long step and many short ones round differently, so a near tie may fall otherwise.
fn greedy_end(lossless: &SequenceLogits, prompt: usize) -> usize {
    let likeliest = |at: &usize| argmax(lossless.row(at - 1)) == lossless.tokens[*at] as usize;
    prompt + (prompt..lossless.tokens.len()).take_while(likeliest).count()
}

#[derive(Debug, Clone, Default)]
struct Total {
    continuations: usize,
    tokens: usize,
    same: usize,
    whole: usize,
}

impl Total {
    fn add(&mut self, lossless: &SequenceLogits, quantized: &SequenceLogits, prompt: usize, end: usize) {
        let alike = |at: &usize| argmax(lossless.row(at - 1)) == argmax(quantized.row(at - 1));
        let same = (prompt..end).take_while(alike).count();
        self.continuations += 1;
        self.tokens += end - prompt;
        self.same += same;
        self.whole += usize::from(same == end - prompt);
    }

    fn greedy(self) -> Option<Greedy> {
        let n = self.continuations as f64;
        (self.continuations > 0).then(|| Greedy {
            continuations: self.continuations,
            tokens: self.tokens as f64 / n,
            same_tokens: self.same as f64 / n,
            same_to_the_end: self.whole as f64 / n,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows whose likeliest token is the one given, over a vocabulary of 4.
    fn logits(tokens: &[u32], likeliest: &[usize]) -> SequenceLogits {
        let mut values = vec![0.0; 4 * likeliest.len()];
        for (row, token) in likeliest.iter().enumerate() {
            values[4 * row + token] = 1.0;
        }
        SequenceLogits {
            tokens: tokens.to_vec(),
            vocab: 4,
            values,
        }
    }

    #[test]
    fn a_continuation_counts_up_to_the_first_likeliest_token_that_differs() {
        let lossless = logits(&[3, 1, 2, 0, 1], &[1, 2, 0, 1, 2]);
        assert_eq!(greedy_end(&lossless, 1), 5);
        let mut total = Total::default();
        total.add(&lossless, &lossless, 1, 5);
        // The last row predicts beyond the end and does not count.
        total.add(&lossless, &logits(&[3, 1, 2, 0, 1], &[1, 2, 3, 1, 0]), 1, 5);
        let greedy = total.greedy().unwrap();
        assert_eq!(
            (greedy.tokens, greedy.same_tokens, greedy.same_to_the_end),
            (4.0, 3.0, 0.5)
        );
        assert_eq!(Total::default().greedy(), None);
    }

    #[test]
    fn what_is_not_greedy_any_more_is_cut_off() {
        assert_eq!(greedy_end(&logits(&[3, 1, 2, 2], &[1, 2, 0, 1]), 1), 3);
    }
}
