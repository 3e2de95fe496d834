//! The part of `/metrics` about drift.

use crate::monitor::{Evidence, Monitor, Phase};
use crate::report::prometheus::{Kind, Page};

pub(super) fn page(page: &mut Page, monitor: &Monitor) {
    let status = monitor.status();
    let mut by_layer = |name, help, value: fn(&Evidence) -> Option<f64>| {
        let samples = status
            .layers
            .iter()
            .filter_map(|(layer, evidence)| Some((vec![("layer", layer.as_str())], value(evidence)?)));
        page.metric(name, Kind::Gauge, help, samples.collect::<Vec<_>>());
    };
    by_layer(
        "tpq_drift_clip_rate",
        "Share of values outside their calibrated range, all ranks, last window.",
        |evidence| Some(evidence.clip_rate),
    );
    by_layer(
        "tpq_drift_range_shift_octaves",
        "How far features are from their calibrated size, probed tokens of all ranks, last window that had one; about 0 as calibrated.",
        |evidence| evidence.range_shift,
    );
    let groups = || {
        let patterns = monitor.groups().iter().zip(&status.groups);
        patterns.map(|(group, status)| (("layers", group.layers.as_str()), status))
    };
    let phases = [
        Phase::Calm,
        Phase::Drifted,
        Phase::Fallback,
        Phase::Learning,
        Phase::Staging(Default::default()),
    ];
    page.metric(
        "tpq_drift_phase",
        Kind::Gauge,
        "1 for the phase that a layer group is in.",
        groups().flat_map(|(group, status)| {
            let now = status.phase.name();
            phases.iter().map(move |phase| {
                (
                    vec![group, ("phase", phase.name())],
                    f64::from(u8::from(phase.name() == now)),
                )
            })
        }),
    );
    let evidence = |value: fn(&Evidence) -> Option<f64>| {
        let samples =
            groups().filter_map(move |(group, status)| Some((vec![group], value(status.evidence.as_ref()?)?)));
        samples.collect::<Vec<_>>()
    };
    page.metric(
        "tpq_drift_clip_ratio",
        Kind::Gauge,
        "Clipped values over those that calibration leads to expect.",
        evidence(|evidence| Some(evidence.clip_ratio)),
    );
    page.metric(
        "tpq_drift_noise_ratio",
        Kind::Gauge,
        "Quantization noise of probed tokens over what calibration leads to expect.",
        evidence(|evidence| evidence.noise_ratio),
    );
    page.metric(
        "tpq_drift_detected_total",
        Kind::Counter,
        "How often a layer group was found to have drifted.",
        groups().map(|(group, status)| (vec![group], status.drifts as f64)),
    );
    page.metric(
        "tpq_drift_switches_total",
        Kind::Counter,
        "How often a layer group took up ranges learned while serving.",
        groups().map(|(group, status)| (vec![group], status.switches as f64)),
    );
    page.metric(
        "tpq_sums_compared_total",
        Kind::Counter,
        "How often the digests of a layer's sums were compared over the ranks, and were the same; a difference ends the group.",
        [(vec![], status.compared as f64)],
    );
    page.metric(
        "tpq_drift_seconds_total",
        Kind::Counter,
        "Time of this rank in watching for drift, and in learning new ranges.",
        [("watch", status.watched), ("learn", status.learned)]
            .map(|(what, time)| (vec![("what", what)], time.as_secs_f64())),
    );
}
