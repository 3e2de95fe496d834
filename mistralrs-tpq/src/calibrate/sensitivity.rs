//! How much the noise of each layer moves the logits: one layer quantized at a time, by a codec that needs no calibration.

use std::sync::Arc;

use anyhow::Result;

use super::extra_bits;
use crate::engine::{gathered_reports, Command, Driver, LayerError, Node};
use crate::eval::Comparison;
use crate::manifest::{Layer, Manifest, Priority};

/// The codec choice of [`Node`] that layers are tried with: the first beyond the configured and the lossless one.
pub const PROBE: usize = 2;

/// `manifest` with a priority for each layer, measured over `windows`. Takes one pass a window, and one more for each layer.
pub(super) fn prioritized(
    driver: &Driver,
    node: &Arc<Node>,
    manifest: Manifest,
    windows: &[Vec<u32>],
) -> Result<Manifest> {
    let header = manifest.header().clone();
    let layers: Vec<Layer> = manifest.layers().to_vec();
    node.command(&Command::Select(Node::LOSSLESS))?;
    let lossless = windows
        .iter()
        .map(|window| driver.logits(window))
        .collect::<Result<Vec<_>>>()?;
    node.command(&Command::ResetReport)?;
    node.command(&Command::Verify(true))?;
    node.command(&Command::Select(PROBE))?;
    let mut divergences = Vec::with_capacity(layers.len());
    for layer in &layers {
        node.command(&Command::Only(Some(layer.name().to_owned())))?;
        let mut comparison = Comparison::default();
        for (window, lossless) in windows.iter().zip(&lossless) {
            let probed = driver.logits(window)?;
            comparison.add_window(window, lossless.vocab, &lossless.values, &probed.values);
        }
        divergences.push(comparison.mean_kl());
    }
    node.command(&Command::Only(None))?;
    let logits = windows.len() * layers.len();
    let reports = gathered_reports(node.gather(&Command::GatherReport { choice: PROBE, logits })?)?;
    let noise = |layer: &Layer| {
        let mut total = LayerError::default();
        for error in reports.iter().filter_map(|report| report.layers.get(layer.name())) {
            total.signal_energy += error.signal_energy;
            total.error_energy += error.error_energy;
        }
        total.error_energy / total.signal_energy
    };
    // A layer without noise has nothing to say.
    let sensitivity = |(layer, kl): (&Layer, &f64)| {
        Some(kl / noise(layer))
            .filter(|s| s.is_finite() && *s >= 0.0)
            .unwrap_or(0.0)
    };
    let sensitivities: Vec<f64> = layers.iter().zip(&divergences).map(sensitivity).collect();
    let weighted: Vec<(f64, usize)> = sensitivities
        .iter()
        .copied()
        .zip(layers.iter().map(Layer::features))
        .collect();
    let priorities = sensitivities.iter().zip(extra_bits(&weighted));
    let layers = layers
        .into_iter()
        .zip(priorities)
        .map(|(layer, (sensitivity, extra_bits))| {
            let sensitivity = *sensitivity as f32;
            layer.with_priority(Priority {
                sensitivity,
                extra_bits,
            })
        });
    Ok(Manifest::new(header, layers.collect::<Result<_, _>>()?)?)
}
