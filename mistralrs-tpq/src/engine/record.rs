//! Partial sums on their way to a file, for `tpq simulate`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

use anyhow::{Context, Result};

use super::node::{lock, Node};
use crate::manifest::Digest;
use crate::simulate::{sums, Origin, RankSums};
use crate::transport::Transport;

/// Where this rank writes, and what it has so far. Memory grows with every token: four bytes a value of each layer.
#[derive(Debug)]
pub(super) struct Recorder {
    folder: PathBuf,
    sequence: usize,
    on: AtomicBool,
    sums: Mutex<RankSums>,
}

impl Node {
    /// Every rank, before the model is loaded: its partial sums go to a file in `folder` once rank 0 says so. `sequence` is the tokens
    /// of a window. A second call changes nothing.
    pub fn record_to(&self, folder: &Path, sequence: usize) {
        let _ = self.recorder.set(Recorder {
            folder: folder.to_owned(),
            sequence,
            on: AtomicBool::new(false),
            sums: Mutex::default(),
        });
    }

    pub(super) fn recording(&self) -> bool {
        let recorder = self.recorder.get();
        recorder.is_some_and(|recorder| recorder.on.load(Ordering::Acquire))
    }

    pub(super) fn record(&self, layer: &str, features: usize, rows: &[f32]) {
        let Some(recorder) = self.recorder.get() else { return };
        let mut sums = lock(&recorder.sums);
        let layer = sums.layers.entry(layer.to_owned()).or_default();
        layer.features = features;
        layer.values.extend_from_slice(rows);
    }

    /// Starts, or stops and writes.
    pub(super) fn set_recording(&self, on: bool) -> Result<()> {
        let recorder = self.recorder.get();
        let recorder = recorder.context("rank 0 records partial sums, which this rank was not started for")?;
        recorder.on.store(on, Ordering::Release);
        if on {
            return Ok(());
        }
        let group = self.group()?;
        let origin = Origin {
            world_size: group.transport.world_size(),
            sequence: recorder.sequence,
            dtype: group.dtype.name().to_owned(),
            model: Digest(group.model).to_string(),
        };
        let sums = std::mem::take(&mut *lock(&recorder.sums));
        sums::write(&recorder.folder, &origin, self.rank(), &sums)?;
        Ok(())
    }
}
