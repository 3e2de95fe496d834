//! SVG plots: lines, points and histograms, alone or as a grid of small ones. Text without a font library: a browser draws it.

use plotters::coord::types::RangedCoordf64;
use plotters::coord::Shift;
use plotters::prelude::*;

/// What a plot says about itself. Units belong into the labels.
#[derive(Debug, Clone, Default)]
pub struct Axes {
    pub title: String,
    pub x: String,
    pub y: String,
    /// Points that are not above zero are left out then.
    pub log_y: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Line,
    Points,
}

#[derive(Debug, Clone)]
pub struct Series {
    /// In the legend, when there is more than one series.
    pub name: String,
    pub mark: Mark,
    /// Points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// One plot of a grid.
#[derive(Debug, Clone)]
pub struct Panel {
    pub axes: Axes,
    pub series: Vec<Series>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    #[error("cannot draw the plot: {0}")]
    Draw(String),
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const SIZE: (u32, u32) = (900, 540);
const PANEL: (u32, u32) = (420, 280);
/// Distinct for colour-blind readers too (Okabe and Ito), dark enough on white.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
];

/// One plot as SVG text.
///
/// # Errors
/// The drawing library's.
pub fn plot(axes: &Axes, series: &[Series]) -> Result<String, PlotError> {
    draw(SIZE, |root| panel(root, axes, series))
}

/// Plots side by side, `columns` in a row.
///
/// # Errors
/// The drawing library's.
pub fn grid(panels: &[Panel], columns: usize) -> Result<String, PlotError> {
    let columns = columns.clamp(1, panels.len().max(1));
    let rows = panels.len().div_ceil(columns).max(1);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
    draw(size, |root| {
        let areas = root.split_evenly((rows, columns));
        areas
            .iter()
            .zip(panels)
            .try_for_each(|(area, one)| panel(area, &one.axes, &one.series))
    })
}

/// How often values fall into `bins` equal intervals between the smallest and the largest.
///
/// # Errors
/// The drawing library's.
pub fn histogram(axes: &Axes, values: &[f64], bins: usize) -> Result<String, PlotError> {
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.abs() <= 1e300).collect();
    let (low, high) = padded(finite.iter().copied(), 0.0);
    let bins = bins.max(1);
    let width = (high - low) / bins as f64;
    let mut counts = vec![0u64; bins];
    for value in &finite {
        counts[(((value - low) / width) as usize).min(bins - 1)] += 1;
    }
    let top = counts.iter().copied().max().unwrap_or(0).max(1) as f64 * 1.05;
    draw(SIZE, |root| {
        let mut chart = builder(root, axes, SIZE.1)
            .build_cartesian_2d(low..high, 0.0..top)
            .map_err(failed)?;
        mesh(&mut chart, axes)?;
        let bars = counts.iter().enumerate().map(|(bin, count)| {
            let left = low + width * bin as f64;
            Rectangle::new([(left, 0.0), (left + width * 0.94, *count as f64)], COLOURS[0].filled())
        });
        chart.draw_series(bars).map_err(failed)?;
        Ok(())
    })
}

fn draw(size: (u32, u32), paint: impl FnOnce(&Area<'_>) -> Result<(), PlotError>) -> Result<String, PlotError> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        paint(&root)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

fn panel(area: &Area<'_>, axes: &Axes, series: &[Series]) -> Result<(), PlotError> {
    let series: Vec<Series> = series
        .iter()
        .map(|one| Series {
            points: one.points.iter().filter_map(|point| place(axes, *point)).collect(),
            ..one.clone()
        })
        .collect();
    let points = || series.iter().flat_map(|one| one.points.iter().copied());
    let (x, y) = (
        padded(points().map(|point| point.0), 0.02),
        padded(points().map(|point| point.1), 0.05),
    );
    let mut chart = builder(area, axes, area.dim_in_pixel().1)
        .build_cartesian_2d(x.0..x.1, y.0..y.1)
        .map_err(failed)?;
    mesh(&mut chart, axes)?;
    draw_series(&mut chart, &series)
}

/// Where a point is drawn, if it can be. The logarithm is taken here, and undone in the labels: the library's own logarithmic
/// axis never returns for values near 1e300.
fn place(axes: &Axes, (x, y): (f64, f64)) -> Option<(f64, f64)> {
    // NaN fails the comparison.
    let drawable = |value: f64| value.abs() <= 1e300;
    let y = if axes.log_y { y.log10() } else { y };
    (drawable(x) && drawable(y)).then_some((x, y))
}

fn builder<'a, 'b>(area: &'a Area<'b>, axes: &Axes, height: u32) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    let title = if height < SIZE.1 { 13 } else { 20 };
    builder
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .caption(&axes.title, ("sans-serif", title));
    builder
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn mesh(chart: &mut Chart<'_, '_>, axes: &Axes) -> Result<(), PlotError> {
    let y_label = |value: &f64| short(if axes.log_y { 10f64.powf(*value) } else { *value });
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_desc(&axes.x)
        .y_desc(&axes.y)
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&y_label)
        .x_labels(6)
        .y_labels(6)
        .draw()
        .map_err(failed)
}

fn draw_series<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>, series: &[Series]) -> Result<(), PlotError> {
    for (one, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let points = one.points.iter().copied();
        let drawn = match one.mark {
            Mark::Line => chart.draw_series(LineSeries::new(points, colour.stroke_width(2))),
            Mark::Points => chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled()))),
        };
        let swatch = |(x, y)| Rectangle::new([(x, y - 4), (x + 12, y + 4)], colour.filled());
        drawn.map_err(failed)?.label(&one.name).legend(swatch);
    }
    if series.len() < 2 {
        return Ok(());
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()
        .map_err(failed)
}

/// Smallest and largest, widened by `share` of the distance, and never equal.
fn padded(values: impl Iterator<Item = f64>, share: f64) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    if low > high {
        return (0.0, 1.0);
    }
    let pad = (high - low) * share;
    // Ticks closer than the precision of f64 would never advance.
    if high - low > low.abs().max(high.abs()).max(1e-280) * 1e-12 {
        (low - pad, high + pad)
    } else {
        let around = low.abs().max(1.0) * 0.5;
        (low - around, high + around)
    }
}

fn short(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn failed(error: impl std::fmt::Display) -> PlotError {
    PlotError::Draw(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes(log_y: bool) -> Axes {
        Axes {
            title: "ranges".into(),
            x: "feature".into(),
            y: "absmax".into(),
            log_y,
        }
    }

    fn series(points: &[(f64, f64)]) -> Vec<Series> {
        let points = points.to_vec();
        vec![
            Series {
                name: "all".into(),
                mark: Mark::Line,
                points: points.clone(),
            },
            Series {
                name: "outliers".into(),
                mark: Mark::Points,
                points,
            },
        ]
    }

    #[test]
    fn a_plot_carries_its_title_labels_and_legend() {
        for log_y in [false, true] {
            let svg = plot(&axes(log_y), &series(&[(0.0, 1.0), (1.0, 10.0), (2.0, 100.0)])).unwrap();
            for text in ["ranges", "feature", "absmax", "outliers", "<circle", "<polyline"] {
                assert!(svg.contains(text), "{text} in {svg}");
            }
            assert!(svg.trim_end().ends_with("</svg>"));
        }
    }

    #[test]
    fn empty_constant_and_non_finite_data_still_draw() {
        for points in [
            &[][..],
            &[(1.0, 5.0)],
            &[(0.0, f64::NAN), (f64::INFINITY, 1.0)],
            &[(0.0, 0.0), (1.0, -3.0)],
            &[(0.0, 1e300), (1.0, 1e300)],
            &[(0.0, -1e308), (1.0, 1e308)],
            &[(0.0, 5e-324), (1.0, 1e-310)],
        ] {
            for log_y in [false, true] {
                plot(&axes(log_y), &series(points)).unwrap();
            }
        }
        histogram(&axes(false), &[], 10).unwrap();
        histogram(&axes(false), &[2.0, 2.0, f64::NAN], 0).unwrap();
    }

    #[test]
    fn a_grid_has_a_panel_for_each_plot() {
        let panels: Vec<Panel> = (0..5)
            .map(|i| Panel {
                axes: Axes {
                    title: format!("layer {i}"),
                    ..axes(true)
                },
                series: series(&[(0.0, 1.0), (1.0, 2.0)]),
            })
            .collect();
        let svg = grid(&panels, 3).unwrap();
        assert!((0..5).all(|i| svg.contains(&format!("layer {i}"))));
        grid(&[], 3).unwrap();
    }

    #[test]
    fn a_histogram_counts_every_value_once() {
        let svg = histogram(&axes(false), &[1.0, 1.0, 2.0, 3.0], 2).unwrap();
        assert!(svg.contains("<rect") && svg.contains("absmax"));
    }
}
