//! Calibration on the real engine: every rank observes its own partial sums, rank 0 writes the manifest.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::sensitivity::prioritized;
use super::{adaptive_outliers, Corpus, LayerStatistics, RangeObserver, Selection};
use crate::config::{CalibrationPlan, OutlierCount};
use crate::engine::{Command, Driver, LayerState, ModelOptions, Node};
use crate::manifest::{natural, Digest, Header, Layer, Manifest};

/// Sequences between two saves of the state. Gathering it costs about one sequence's time.
const SAVE_EVERY: usize = 32;
const STATE_FILE: &str = "calibration.state";

#[derive(Debug, Clone)]
pub struct CalibrateOptions {
    pub model: ModelOptions,
    pub corpus: Vec<PathBuf>,
    pub out: PathBuf,
    pub selection: Selection,
    /// Continue from the state that an interrupted run left in `out`.
    pub resume: bool,
    /// Sequences on which each layer's sensitivity is measured; 0: none.
    pub sensitivity: usize,
}

/// What was written.
#[derive(Debug)]
pub struct Calibrated {
    pub path: PathBuf,
    pub manifest: Manifest,
    pub resumed_at: usize,
}

/// A half-finished calibration, of all ranks.
#[derive(Serialize, Deserialize)]
struct State {
    /// Over everything that decides the result.
    key: String,
    done: usize,
    ranks: Vec<LayerState>,
}

/// Calibrates on rank 0. The other ranks follow and do not return.
///
/// # Errors
/// A corpus too short, a state of another run, and what loading and running report. Nothing half-written is left.
pub fn run(options: &CalibrateOptions, node: &Arc<Node>, mut progress: impl FnMut(usize, usize)) -> Result<Calibrated> {
    let plan = node.plan.calibration;
    let corpus = Corpus::read(&options.corpus)?;
    let driver = Driver::load(&options.model, Some(node.clone()))?;
    let (sequences, tokens) = (plan.sequences as usize, plan.tokens as usize);
    let windows = corpus.sequences(|text| driver.tokenize(text, false), sequences, tokens, plan.seed)?;
    std::fs::create_dir_all(&options.out).with_context(|| format!("cannot create --out {}", options.out.display()))?;

    let state_path = options.out.join(STATE_FILE);
    let key = key(node, &plan, corpus.digest)?;
    let resumed_at = if options.resume {
        restore(node, &state_path, &key)?
    } else {
        0
    };
    node.command(&Command::Observe(true))?;
    for (i, window) in windows.iter().enumerate().skip(resumed_at) {
        progress(i, windows.len());
        driver.logits(window)?;
        node.command(&Command::EndSequence)?;
        if (i + 1) % SAVE_EVERY == 0 && i + 1 < windows.len() {
            save(
                &state_path,
                &State {
                    key: key.clone(),
                    done: i + 1,
                    ranks: node.gather_layers()?,
                },
            )?;
        }
    }
    progress(windows.len(), windows.len());

    node.command(&Command::Observe(false))?;
    let mut manifest = manifest(node, &plan, corpus.digest, options.selection, &node.gather_layers()?)?;
    if options.sensitivity > 0 {
        manifest = prioritized(
            &driver,
            node,
            manifest,
            &windows[..options.sensitivity.min(windows.len())],
        )?;
    }
    let path = manifest.write(&options.out)?;
    // Absent unless the run was long enough to save one.
    let _ = std::fs::remove_file(&state_path);
    Ok(Calibrated {
        path,
        manifest,
        resumed_at,
    })
}

fn manifest(
    node: &Node,
    plan: &CalibrationPlan,
    corpus: Digest,
    selection: Selection,
    ranks: &[LayerState],
) -> Result<Manifest> {
    let (model, dtype) = node.model().context("no model was loaded")?;
    let first = ranks.first().context("no rank answered")?;
    ensure!(
        !first.is_empty(),
        "the model has no layer whose partial sums are exchanged"
    );
    let gathered = |name: &String| {
        let observers: Vec<RangeObserver> = ranks.iter().filter_map(|layers| layers.get(name).cloned()).collect();
        LayerStatistics::gather(name, &observers)
    };
    let statistics = first.keys().map(gathered).collect::<Result<Vec<_>, _>>()?;
    let counts: Vec<OutlierCount> = match plan.outliers {
        OutlierCount::Adaptive(fraction) => {
            let counts = adaptive_outliers(&statistics, fraction);
            counts.into_iter().map(OutlierCount::Count).collect()
        }
        same => vec![same; statistics.len()],
    };
    let layers = statistics.into_iter().zip(counts);
    let mut layers: Vec<Layer> = layers
        .map(|(statistics, count)| statistics.into_layer(count, selection))
        .collect::<Result<_, _>>()?;
    layers.sort_by_key(|layer| natural(layer.name()));
    let header = Header {
        model: Digest(model),
        dtype,
        world_size: node.world_size(),
        corpus,
        sequences: plan.sequences,
        tokens: plan.tokens,
        ema: plan.ema,
    };
    Ok(Manifest::new(header, layers)?)
}

fn key(node: &Node, plan: &CalibrationPlan, corpus: Digest) -> Result<String> {
    let (model, dtype) = node.model().context("no model was loaded")?;
    let CalibrationPlan {
        sequences,
        tokens,
        ema,
        seed,
        ..
    } = plan;
    let text = format!(
        "{} {} {} {corpus} {sequences} {tokens} {ema} {seed}",
        Digest(model),
        dtype.name(),
        node.world_size()
    );
    Ok(Digest(Sha256::digest(text.as_bytes()).into()).to_string())
}

fn save(path: &Path, state: &State) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    let mut buffered = std::io::BufWriter::new(&mut file);
    serde_json::to_writer(&mut buffered, state)?;
    buffered.flush()?;
    drop(buffered);
    file.as_file().sync_all()?;
    file.persist(path)
        .with_context(|| format!("cannot save the calibration's state to {}", path.display()))?;
    Ok(())
}

fn restore(node: &Node, path: &Path, key: &str) -> Result<usize> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::warn!("--resume: there is no {}, starting from the beginning", path.display());
            return Ok(0);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let state: State = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a calibration state: delete it to start over", path.display()))?;
    ensure!(
        state.key == key,
        "{} belongs to another calibration (model, dtype, ranks, text or settings differ): delete it to start over",
        path.display()
    );
    node.restore_layers(state.ranks)?;
    Ok(state.done)
}
