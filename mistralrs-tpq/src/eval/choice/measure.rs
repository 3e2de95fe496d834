//! `acc` and `acc_norm` with their standard errors, and how much of lossless is retained.

use serde::{Deserialize, Serialize};

use super::Item;

/// What the model chose for one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Whether the likeliest was right.
    pub right: bool,
    /// Whether the likeliest by character was right.
    pub right_norm: bool,
    /// The likeliest.
    pub chosen: usize,
}

impl Choice {
    /// `likelihoods` are the choices' log-likelihoods, in nats. Of equals the first counts.
    pub fn of(item: &Item, likelihoods: &[f64]) -> Self {
        let by_length = likelihoods.iter().zip(&item.lengths);
        let normed: Vec<f64> = by_length.map(|(ll, length)| ll / (*length).max(1) as f64).collect();
        let chosen = first_largest(likelihoods);
        Self {
            right: chosen == item.gold,
            right_norm: first_largest(&normed) == item.gold,
            chosen,
        }
    }
}

/// Of all items, one way of exchanging.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub acc: f64,
    /// Sample standard deviation over the root of the number of items, as the harness has it.
    pub acc_stderr: f64,
    pub acc_norm: f64,
    pub acc_norm_stderr: f64,
}

impl Measured {
    pub fn of(choices: &[Choice]) -> Self {
        let (acc, acc_stderr) = mean(choices, |choice| f64::from(u8::from(choice.right)));
        let (acc_norm, acc_norm_stderr) = mean(choices, |choice| f64::from(u8::from(choice.right_norm)));
        Self {
            acc,
            acc_stderr,
            acc_norm,
            acc_norm_stderr,
        }
    }
}

/// Quantized beside lossless on the same items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Items for which both chose the same.
    pub agreement: f64,
    /// Percent of lossless `acc`; null when that is zero.
    pub acc_retained: Option<f64>,
    /// Of the difference of `acc`, from the items one by one: both are asked the same, so this is far below the error of either.
    pub difference_stderr: f64,
    pub acc_norm_retained: Option<f64>,
}

impl Paired {
    /// Item by item.
    pub fn of(lossless: &[Choice], quantized: &[Choice]) -> Self {
        let pairs: Vec<(&Choice, &Choice)> = lossless.iter().zip(quantized).collect();
        let number = |right: bool| f64::from(u8::from(right));
        let (agreement, _) = mean(&pairs, |(a, b)| number(a.chosen == b.chosen));
        let (_, difference_stderr) = mean(&pairs, |(a, b)| number(b.right) - number(a.right));
        let (a, b) = (Measured::of(lossless), Measured::of(quantized));
        let retained = |lossless: f64, quantized: f64| (lossless > 0.0).then(|| 100.0 * quantized / lossless);
        Self {
            agreement,
            acc_retained: retained(a.acc, b.acc),
            difference_stderr,
            acc_norm_retained: retained(a.acc_norm, b.acc_norm),
        }
    }
}

/// Mean and its standard error; the error is zero of a single item.
fn mean<T>(items: &[T], value: impl Fn(&T) -> f64) -> (f64, f64) {
    let n = items.len() as f64;
    let mean = items.iter().map(&value).sum::<f64>() / n;
    let squares: f64 = items.iter().map(|item| (value(item) - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0) / n).sqrt())
}

fn first_largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(lengths: &[usize], gold: usize) -> Item {
        Item {
            choices: vec![(String::new(), String::new()); lengths.len()],
            lengths: lengths.to_vec(),
            gold,
        }
    }

    #[test]
    fn a_long_answer_wins_by_character_only() {
        let choice = Choice::of(&item(&[2, 20], 1), &[-3.0, -9.0]);
        assert_eq!((choice.right, choice.right_norm, choice.chosen), (false, true, 0));
        assert_eq!(Choice::of(&item(&[1, 1], 0), &[-1.0, -1.0]).chosen, 0);
    }

    #[test]
    fn errors_are_the_harness_sample_errors() {
        let choice = |right| Choice {
            right,
            right_norm: true,
            chosen: usize::from(right),
        };
        let three_of_four: Vec<Choice> = [true, true, true, false].map(choice).to_vec();
        let measured = Measured::of(&three_of_four);
        // Sample variance 1/4, over 4 items.
        assert_eq!((measured.acc, measured.acc_stderr), (0.75, 0.25));
        assert_eq!((measured.acc_norm, measured.acc_norm_stderr), (1.0, 0.0));

        let two_of_four: Vec<Choice> = [true, true, false, false].map(choice).to_vec();
        let paired = Paired::of(&three_of_four, &two_of_four);
        assert_eq!(paired.agreement, 0.75);
        assert!((paired.acc_retained.unwrap() - 200.0 / 3.0).abs() < 1e-9);
        // Differences 0, 0, -1, 0: the same spread as one wrong of four.
        assert_eq!(paired.difference_stderr, 0.25);
        assert_eq!(Paired::of(&[choice(false)], &[choice(true)]).acc_retained, None);
    }
}
