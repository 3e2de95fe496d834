//! `tpq inspect`: a manifest for people.

use crate::cli::args::{Global, InspectArgs};
use crate::cli::{emit, emit_json, CliError};
use crate::config::nearest;
use crate::manifest::{Layer, Manifest};
use crate::report::plot::{grid, Axes, Mark, Panel, Series};
use crate::report::{Align, Table};
use serde::Serialize;
use std::fmt::Write;

#[derive(Debug, Serialize)]
struct Report {
    digest: String,
    scales_digest: String,
    model: String,
    dtype: &'static str,
    world_size: usize,
    corpus: String,
    sequences: u64,
    tokens: u64,
    ema: f64,
    bits_per_value: f64,
    layers: Vec<LayerReport>,
}

#[derive(Debug, Serialize)]
struct LayerReport {
    name: String,
    features: usize,
    range_min: f32,
    range_median: f32,
    range_max: f32,
    spread: f32,
    outliers: usize,
    /// Of the features.
    outlier_share: f64,
    bits_per_value: f64,
    expected_sqnr_db: f32,
    outlier_ranges: Vec<OutlierReport>,
}

#[derive(Debug, Serialize)]
struct OutlierReport {
    feature: u32,
    /// One for each rank.
    ranges: Vec<f32>,
}

pub fn run(args: &InspectArgs, global: &Global) -> Result<(), CliError> {
    let manifest = Manifest::load(&args.manifest)?;
    let layers = chosen(&manifest, args.layer.as_deref())?;
    if let Some(path) = &args.plot {
        let svg = grid(&layers.iter().map(|layer| panel(layer)).collect::<Vec<_>>(), 4)?;
        std::fs::write(path, svg).map_err(|error| CliError::io(format!("cannot write {}", path.display()), error))?;
    }
    let report = report(&manifest, &layers);
    if global.json {
        return emit_json(&report);
    }
    let mut text = heading(&report);
    text.push('\n');
    text.push_str(&layer_table(&report.layers).to_string());
    if let (Some(_), [layer]) = (&args.layer, report.layers.as_slice()) {
        text.push('\n');
        text.push_str(&outlier_table(layer, report.world_size).to_string());
    }
    emit(&text)
}

fn chosen<'a>(manifest: &'a Manifest, name: Option<&str>) -> Result<Vec<&'a Layer>, CliError> {
    let Some(name) = name else {
        return Ok(manifest.layers().iter().collect());
    };
    manifest.layer(name).map(|layer| vec![layer]).ok_or_else(|| {
        let near = nearest(name, manifest.layers().iter().map(Layer::name));
        let hint = near.map_or_else(String::new, |near| format!("; nearest: {near}"));
        CliError::Usage(format!("the manifest has no layer {name}{hint}"))
    })
}

fn report(manifest: &Manifest, layers: &[&Layer]) -> Report {
    let header = manifest.header();
    let values: usize = layers.iter().map(|layer| layer.features()).sum();
    let bits: f64 = layers
        .iter()
        .map(|layer| layer.bits_per_value() * layer.features() as f64)
        .sum();
    Report {
        digest: manifest.digest().to_string(),
        scales_digest: manifest.scales_digest().to_string(),
        model: header.model.to_string(),
        dtype: header.dtype.name(),
        world_size: header.world_size,
        corpus: header.corpus.to_string(),
        sequences: header.sequences,
        tokens: header.tokens,
        ema: header.ema,
        bits_per_value: bits / values as f64,
        layers: layers.iter().map(|layer| layer_report(layer)).collect(),
    }
}

fn layer_report(layer: &Layer) -> LayerReport {
    let summary = layer.summary();
    let at = |feature: u32| {
        layer
            .ranges()
            .iter()
            .skip(feature as usize)
            .step_by(layer.features())
            .copied()
            .collect()
    };
    LayerReport {
        name: layer.name().to_owned(),
        features: layer.features(),
        range_min: summary.min,
        range_median: summary.median,
        range_max: summary.max,
        spread: summary.spread,
        outliers: layer.outliers().len(),
        outlier_share: layer.outliers().len() as f64 / layer.features() as f64,
        bits_per_value: layer.bits_per_value(),
        expected_sqnr_db: summary.expected_sqnr_db,
        outlier_ranges: layer
            .outliers()
            .iter()
            .map(|f| OutlierReport {
                feature: *f,
                ranges: at(*f),
            })
            .collect(),
    }
}

fn heading(report: &Report) -> String {
    let mut text = String::new();
    let Report {
        digest,
        model,
        dtype,
        world_size,
        corpus,
        sequences,
        tokens,
        ema,
        bits_per_value,
        ..
    } = report;
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "manifest    {digest}\nmodel       {model}\nranks       {world_size}, {dtype}\n\
         calibrated  {sequences} sequences of {tokens} tokens, EMA {ema}, corpus {}\n\
         paper       {bits_per_value:.4} bits a value\n",
        &corpus[..8.min(corpus.len())]
    );
    text
}

fn layer_table(layers: &[LayerReport]) -> Table {
    let mut table = Table::new([
        ("layer", Align::Left),
        ("features", Align::Right),
        ("min", Align::Right),
        ("median", Align::Right),
        ("max", Align::Right),
        ("spread", Align::Right),
        ("outliers", Align::Right),
        ("share (%)", Align::Right),
        ("SQNR (dB)", Align::Right),
    ]);
    for layer in layers {
        table.row([
            layer.name.clone(),
            layer.features.to_string(),
            range(layer.range_min),
            range(layer.range_median),
            range(layer.range_max),
            format!("{:.1}", layer.spread),
            layer.outliers.to_string(),
            format!("{:.2}", layer.outlier_share * 100.0),
            format!("{:.1}", layer.expected_sqnr_db),
        ]);
    }
    table
}

fn outlier_table(layer: &LayerReport, world_size: usize) -> Table {
    let ranks = (0..world_size).map(|rank| (format!("rank {rank}"), Align::Right));
    let mut table = Table::new([("outlier".to_owned(), Align::Right)].into_iter().chain(ranks));
    for outlier in &layer.outlier_ranges {
        table.row(
            [outlier.feature.to_string()]
                .into_iter()
                .chain(outlier.ranges.iter().copied().map(range)),
        );
    }
    table
}

/// Four significant digits; ranges of one model span several orders of magnitude.
fn range(value: f32) -> String {
    if value == 0.0 || (1e-2..1e4).contains(&value) {
        format!("{value:.3}")
    } else {
        format!("{value:.2e}")
    }
}

/// Ranges from largest to smallest, where the outliers should sit at the left end.
fn panel(layer: &Layer) -> Panel {
    let mut order: Vec<(u32, f32)> = (0..).zip(layer.mean_ranges()).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let ranked = || {
        order
            .iter()
            .enumerate()
            .map(|(place, (feature, range))| (place as f64, *feature, f64::from(*range)))
    };
    let outliers = layer.outliers();
    let series = |name: &str, mark, points| Series {
        name: name.to_owned(),
        mark,
        points,
    };
    Panel {
        axes: Axes {
            title: layer.name().to_owned(),
            x: "feature, by range".to_owned(),
            y: "absmax range, mean of ranks".to_owned(),
            log_y: true,
        },
        series: vec![
            series(
                "int4",
                Mark::Line,
                ranked().map(|(place, _, range)| (place, range)).collect(),
            ),
            series(
                "BF16 outliers",
                Mark::Points,
                ranked()
                    .filter(|(_, feature, _)| outliers.binary_search(feature).is_ok())
                    .map(|(place, _, range)| (place, range))
                    .collect(),
            ),
        ],
    }
}
