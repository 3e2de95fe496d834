//! The results of a run as one HTML page.

use super::choice::TaskResult;
use super::EvalResult;
use crate::report::html::Page;
use crate::report::plot::{plot, Axes, Mark, PlotError, Series};

const COLUMNS: [&str; 8] = [
    "configuration",
    "codec",
    "bits a value",
    "perplexity",
    "lossless",
    "KL, nats a token",
    "top-1 agreement",
    "SQNR, dB",
];

/// # Errors
/// A plot that cannot be drawn.
pub fn page(texts: &[EvalResult], tasks: &[TaskResult]) -> Result<String, PlotError> {
    let mut page = Page::new("Quality of a quantized all-reduce");
    for results in texts.chunk_by(|a, b| a.text == b.text) {
        text(&mut page, results)?;
    }
    for results in tasks.chunk_by(|a, b| a.task == b.task && a.file == b.file) {
        task(&mut page, results);
    }
    Ok(page.finish())
}

fn text(page: &mut Page, results: &[EvalResult]) -> Result<(), PlotError> {
    if let Some(first) = results.first() {
        page.heading(&first.text);
        page.paragraph(&format!(
            "{} tokens over {} ranks. Each configuration against the lossless exchange, on the same tokens in one run. KL is KL(lossless || quantized), with its standard error over windows; SQNR is that of single partial sums.",
            first.tokens, first.ranks
        ));
    }
    let rows: Vec<Vec<String>> = results.iter().map(row).collect();
    page.table(&COLUMNS, rows.iter().map(Vec::as_slice));
    let series = |mark, points: &dyn Fn(&EvalResult) -> Vec<(f64, f64)>| -> Vec<Series> {
        let one = |result: &EvalResult| Series {
            name: result.config.clone(),
            mark,
            points: points(result),
        };
        results.iter().map(one).collect()
    };
    let axes = |title: &str, x: &str, y: &str, log_y| Axes {
        title: title.to_owned(),
        x: x.to_owned(),
        y: y.to_owned(),
        log_y,
    };
    let cost = series(Mark::Points, &|result| vec![(result.bits_per_value, result.kl)]);
    page.heading("Divergence against size");
    page.svg(&plot(&axes("", "bits a value", "KL, nats a token", true), &cost)?);
    let positions = series(Mark::Line, &|result| numbered(result.kl_by_position.iter().copied()));
    page.heading("Divergence along the window");
    page.svg(&plot(
        &axes("", "sixteenth of the window", "KL, nats a token", true),
        &positions,
    )?);
    let layers = series(Mark::Line, &|result| {
        numbered(result.sqnr_db_by_layer.values().copied())
    });
    page.heading("Signal to noise by layer");
    if let Some(first) = results.first() {
        let names: Vec<&str> = first.sqnr_db_by_layer.keys().map(String::as_str).collect();
        page.paragraph(&format!("From left to right: {}.", names.join(", ")));
    }
    page.svg(&plot(&axes("", "layer", "SQNR, dB", false), &layers)?);
    Ok(())
}

fn task(page: &mut Page, results: &[TaskResult]) {
    let Some(first) = results.first() else { return };
    page.heading(&first.task);
    page.paragraph(&format!(
        "{} items of {} over {} ranks. acc_norm goes by character of the answer. Errors are of one figure; what two configurations differ by is known better, as both answer the same items.",
        first.items, first.file, first.ranks
    ));
    let columns = [
        "configuration",
        "bits a value",
        "acc",
        "lossless",
        "retained",
        "acc_norm",
        "lossless",
        "retained",
        "same answers",
    ];
    let rows: Vec<Vec<String>> = results.iter().map(task_row).collect();
    page.table(&columns, rows.iter().map(Vec::as_slice));
}

fn task_row(result: &TaskResult) -> Vec<String> {
    let percent = |value: f64, error: f64| format!("{:.2}% \u{b1} {:.2}", 100.0 * value, 100.0 * error);
    let retained = |retained: Option<f64>| retained.map_or("-".to_owned(), |retained| format!("{retained:.2}%"));
    let (quantized, lossless, paired) = (&result.quantized, &result.lossless, &result.paired);
    let mut cells = vec![
        result.config.clone(),
        format!("{:.4}", result.bits_per_value),
        percent(quantized.acc, quantized.acc_stderr),
        percent(lossless.acc, lossless.acc_stderr),
        retained(paired.acc_retained),
    ];
    cells.extend(match result.has_acc_norm {
        true => [
            percent(quantized.acc_norm, quantized.acc_norm_stderr),
            percent(lossless.acc_norm, lossless.acc_norm_stderr),
            retained(paired.acc_norm_retained),
        ],
        false => ["-", "-", "-"].map(str::to_owned),
    });
    cells.push(format!("{:.2}%", 100.0 * paired.agreement));
    cells
}

fn row(result: &EvalResult) -> Vec<String> {
    let error = result
        .kl_stderr
        .map_or(String::new(), |error| format!(" \u{b1} {error:.5}"));
    vec![
        result.config.clone(),
        result.codec.clone(),
        format!("{:.4}", result.bits_per_value),
        format!(
            "{:.4} ({:+.2}%)",
            result.ppl,
            100.0 * (result.ppl / result.ppl_lossless - 1.0)
        ),
        format!("{:.4}", result.ppl_lossless),
        format!("{:.5}{error}", result.kl),
        format!("{:.2}%", 100.0 * result.top1_agreement),
        format!("{:.1}", result.sqnr_db),
    ]
}

fn numbered(values: impl Iterator<Item = f64>) -> Vec<(f64, f64)> {
    values.enumerate().map(|(i, value)| (i as f64 + 1.0, value)).collect()
}
