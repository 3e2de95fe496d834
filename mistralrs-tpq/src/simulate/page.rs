//! A simulation as one HTML page.

use super::{Distribution, Predicted, Simulated, Simulation};
use crate::report::html::Page;
use crate::report::plot::{grid, Axes, Mark, Panel, PlotError, Series};

/// # Errors
/// A plot that cannot be drawn.
pub fn page(simulation: &Simulation, times: &[Predicted]) -> Result<String, PlotError> {
    let mut page = Page::new("Simulated all-reduces");
    page.paragraph(&format!(
        "{} layers of recorded partial sums. Fewer ranks than recorded: neighbours added; more: each sum cut into parts that add up to it, with an equal share of the energy. \
         Calibrated on the first half of the tokens and measured on the second, or with a manifest on all.",
        simulation.layers.len()
    ));
    growth(&mut page, &simulation.rows)?;
    errors(&mut page, &simulation.distributions)?;
    if !times.is_empty() {
        page.heading("Predicted time of one all-reduce");
        page.paragraph("Steps times latency, plus messages, plus bytes over rate, plus coding where a rate was given; one message at a time on an idle link.");
        let mut sizes: Vec<usize> = times.iter().map(|row| row.tokens).collect();
        sizes.dedup();
        let panels: Vec<Panel> = sizes
            .into_iter()
            .flat_map(|tokens| time_panels(times, tokens))
            .collect();
        page.svg(&grid(&panels, 2)?);
    }
    Ok(page.finish())
}

fn growth(page: &mut Page, rows: &[Simulated]) -> Result<(), PlotError> {
    page.heading("Signal to noise of the sum");
    page.paragraph("A loss of 3 dB is twice the noise. Horizontal: log2 of the number of ranks.");
    let mut codecs: Vec<&str> = rows.iter().map(|row| row.codec.as_str()).collect();
    codecs.dedup();
    codecs.sort_unstable();
    codecs.dedup();
    let panel = |codec: &&str| {
        let of_codec = rows.iter().filter(|row| row.codec == *codec);
        let points = of_codec.map(|row| (row.algorithm, row.ranks, row.sqnr_db));
        Panel {
            axes: axes(codec, "ranks, log2", "SQNR, dB", false),
            series: by_name(points),
        }
    };
    page.svg(&grid(&codecs.iter().map(panel).collect::<Vec<_>>(), 2)?);
    let columns = [
        "codec",
        "algorithm",
        "ranks",
        "parts",
        "calibrated on",
        "bits a value",
        "SQNR, dB",
        "SQNR of a partial sum, dB",
    ];
    let cells: Vec<Vec<String>> = rows.iter().map(row).collect();
    page.table(&columns, cells.iter().map(Vec::as_slice));
    Ok(())
}

fn row(row: &Simulated) -> Vec<String> {
    vec![
        row.codec.clone(),
        row.algorithm.to_owned(),
        row.ranks.to_string(),
        row.parts.to_owned(),
        row.calibration.to_owned(),
        format!("{:.2}", row.bits_per_value),
        format!("{:.2}", row.sqnr_db),
        format!("{:.2}", row.partial_sqnr_db),
    ]
}

fn errors(page: &mut Page, distributions: &[Distribution]) -> Result<(), PlotError> {
    page.heading("Error of a value against independent uniform errors");
    page.paragraph(
        "paper in one shot. The prediction (Irwin-Hall, with a width for each rank) assumes that no rank clips, that a feature's step is fine against its values, and that ranks' errors are independent. \
         'Holds' is the share of values for which the first two are true; moments and distance are of these. Where 'energy, all' is far from 1, the clipped and coarse values make the difference.",
    );
    let columns = [
        "layer",
        "ranks",
        "clipped",
        "coarse",
        "energy, all",
        "holds",
        "energy",
        "variance",
        "skewness",
        "excess kurtosis",
        "predicted",
        "KS distance",
        "correlation",
    ];
    let cells: Vec<Vec<String>> = distributions.iter().map(distribution_row).collect();
    page.table(&columns, cells.iter().map(Vec::as_slice));
    let panel = |one: &Distribution| Panel {
        axes: axes(
            &format!("{} ranks", one.ranks),
            "predicted quantile, standard deviations",
            "measured",
            false,
        ),
        series: vec![
            series("measured", Mark::Points, one.quantiles.clone()),
            series(
                "predicted",
                Mark::Line,
                one.quantiles.iter().map(|(x, _)| (*x, *x)).collect(),
            ),
        ],
    };
    let panels: Vec<Panel> = distributions
        .iter()
        .filter(|one| one.layer.is_empty())
        .map(panel)
        .collect();
    page.svg(&grid(&panels, 2)?);
    Ok(())
}

fn distribution_row(one: &Distribution) -> Vec<String> {
    let share = |share: f64| format!("{:.3}%", 100.0 * share);
    vec![
        if one.layer.is_empty() {
            "all".to_owned()
        } else {
            one.layer.clone()
        },
        one.ranks.to_string(),
        share(one.clipped),
        share(one.coarse),
        format!("{:.3}", one.energy_ratio),
        share(one.holds),
        format!("{:.3}", one.energy_ratio_held),
        format!("{:.3}", one.variance),
        format!("{:+.3}", one.skewness),
        format!("{:+.3}", one.excess_kurtosis),
        format!("{:+.3}", one.predicted_excess_kurtosis),
        format!("{:.4}", one.distance),
        format!("{:+.4}", one.correlation),
    ]
}

fn time_panels(times: &[Predicted], tokens: usize) -> Vec<Panel> {
    let mut codecs: Vec<&str> = times
        .iter()
        .map(|row| row.codec.as_str())
        .filter(|codec| *codec != "none")
        .collect();
    codecs.sort_unstable();
    codecs.dedup();
    let panel = |codec: &str| {
        let rows = times
            .iter()
            .filter(|row| row.tokens == tokens && (row.codec == codec || row.codec == "none"));
        Panel {
            axes: axes(
                &format!("{codec}, {tokens} tokens"),
                "ranks, log2",
                "microseconds",
                true,
            ),
            series: by_name(rows.map(|row| (row.algorithm, row.ranks, row.microseconds))),
        }
    };
    codecs.into_iter().map(panel).collect()
}

/// A line for each name, over log2 of the ranks.
fn by_name<'a>(points: impl Iterator<Item = (&'a str, usize, f64)>) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    for (name, ranks, y) in points {
        let point = ((ranks as f64).log2(), y);
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(series(name, Mark::Line, vec![point])),
        }
    }
    lines
}

fn series(name: &str, mark: Mark, points: Vec<(f64, f64)>) -> Series {
    Series {
        name: name.to_owned(),
        mark,
        points,
    }
}

fn axes(title: &str, x: &str, y: &str, log_y: bool) -> Axes {
    Axes {
        title: title.to_owned(),
        x: x.to_owned(),
        y: y.to_owned(),
        log_y,
    }
}
