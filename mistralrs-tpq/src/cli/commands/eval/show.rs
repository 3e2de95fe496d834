//! Results as tables.

use crate::config::Control;
use crate::eval::choice::TaskResult;
use crate::eval::{paired_difference, EvalResult};
use crate::report::{Align, Table};

/// One configuration on one text.
pub(super) fn text(result: &EvalResult) -> String {
    let mut table = Table::new([
        ("", Align::Left),
        ("lossless", Align::Right),
        (result.codec.as_str(), Align::Right),
    ]);
    table.row([
        "perplexity".to_owned(),
        format!("{:.4}", result.ppl_lossless),
        format!("{:.4}", result.ppl_quantized),
    ]);
    table.row([
        "KL, nats a token".to_owned(),
        "0".to_owned(),
        format!("{:.5}", result.kl),
    ]);
    table.row([
        "top-1 agreement".to_owned(),
        "100%".to_owned(),
        format!("{:.2}%", result.top1_agreement * 100.0),
    ]);
    if result.ranks > 1 {
        table.row([
            "bits a value".to_owned(),
            "16 (BF16)".to_owned(),
            format!("{:.4}", result.bits_per_value),
        ]);
        let bytes = |bytes: u64| format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20));
        table.row([
            "sent by a rank".to_owned(),
            bytes(result.bytes_per_rank_bf16),
            bytes(result.bytes_per_rank),
        ]);
        table.row([
            "SQNR of a partial sum".to_owned(),
            "-".to_owned(),
            format!("{:.1} dB", result.sqnr_db),
        ]);
    }
    if let Some(greedy) = &result.greedy {
        table.row([
            "greedy text the same".to_owned(),
            format!("{:.1} tokens", greedy.tokens),
            format!("{:.1} tokens", greedy.same_tokens),
        ]);
    }
    let how = match result.ranks {
        1 => "one process".to_owned(),
        ranks => format!("{ranks} ranks, bit-identical"),
    };
    format!(
        "{}\n{table}{} tokens of {}, {how}, {:.0} s\n\n",
        result.config, result.tokens, result.text, result.seconds
    )
}

/// KL, nats a token: a row for each configuration, a column for each text.
pub(super) fn matrix(results: &[EvalResult]) -> String {
    let texts = distinct(results, |result| &result.text);
    let configs = distinct(results, |result| &result.config);
    let columns = texts.iter().map(|text| (format!("KL on {text}"), Align::Right));
    let mut table = Table::new([("configuration".to_owned(), Align::Left)].into_iter().chain(columns));
    for config in configs {
        let kl = |text: &&str| {
            let cell = results
                .iter()
                .find(|result| result.config == config && result.text == **text);
            cell.map_or(String::new(), |cell| format!("{:.5}", cell.kl))
        };
        table.row([config.to_owned()].into_iter().chain(texts.iter().map(kl)));
    }
    table.to_string()
}

/// How much `paper`'s choice of outliers wins over each control, on each text.
pub(super) fn controls(results: &[EvalResult]) -> String {
    let right = ["KL more than paper", "standard error", "errors apart"].map(|heading| (heading, Align::Right));
    let left = ["control", "text"].map(|heading| (heading, Align::Left));
    let mut table = Table::new(left.into_iter().chain(right));
    for of_text in results.chunk_by(|a, b| a.text == b.text) {
        let Some(paper) = of_text.first().filter(|first| first.codec == "paper") else {
            continue;
        };
        for control in Control::ALL {
            let Some(row) = of_text.iter().find(|row| row.config == control.label()) else {
                continue;
            };
            let (mean, error) = paired_difference(&paper.kl_by_window, &row.kl_by_window);
            table.row([
                control.name().to_owned(),
                row.text.clone(),
                format!("{mean:+.5}"),
                format!("{error:.5}"),
                format!("{:.1}", mean / error),
            ]);
        }
    }
    table.to_string()
}

/// In the order in which they first come.
fn distinct<'a>(results: &'a [EvalResult], key: impl Fn(&'a EvalResult) -> &'a str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for result in results {
        if !found.contains(&key(result)) {
            found.push(key(result));
        }
    }
    found
}

/// Percentages, as the papers print them.
pub(super) fn tasks(results: &[TaskResult]) -> String {
    let left = ["task", "configuration"].map(|heading| (heading, Align::Left));
    let right = [
        "items",
        "bits/value",
        "acc (%)",
        "lossless",
        "acc_norm (%)",
        "lossless",
        "retained (%)",
        "agreement (%)",
    ];
    let mut table = Table::new(left.into_iter().chain(right.map(|heading| (heading, Align::Right))));
    for result in results {
        let percent = |value: f64, error: f64| format!("{:.2} \u{b1} {:.2}", 100.0 * value, 100.0 * error);
        let normed = |value: f64, error: f64| match result.has_acc_norm {
            true => percent(value, error),
            false => "-".to_owned(),
        };
        let (quantized, lossless) = (&result.quantized, &result.lossless);
        table.row([
            result.task.clone(),
            result.config.clone(),
            result.items.to_string(),
            format!("{:.4}", result.bits_per_value),
            percent(quantized.acc, quantized.acc_stderr),
            percent(lossless.acc, lossless.acc_stderr),
            normed(quantized.acc_norm, quantized.acc_norm_stderr),
            normed(lossless.acc_norm, lossless.acc_norm_stderr),
            result
                .paired
                .acc_retained
                .map_or("-".to_owned(), |retained| format!("{retained:.2}")),
            format!("{:.2}", 100.0 * result.paired.agreement),
        ]);
    }
    table.to_string()
}
