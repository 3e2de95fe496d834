//! One layer on one rank: the part that every exchange goes through.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::baseline::{Calibrated, Scratch};
use super::learn::{Learner, Lesson};
use super::window::Window;
use crate::calibrate::RangeObserver;
use crate::codec::{Codec, Values};

/// One token of this many is probed. A probe is at most one encode and one decode of a row; an exchange makes one encode and as many
/// decodes as there are ranks, so probes cost some 2/3 of 1/128 of the codec's time, whatever the codec and the host.
pub const PROBE_EVERY: usize = 128;

/// Values of each sum that go into the digest which the ranks compare.
const CHECKED: usize = 16;

/// Watches one layer, and holds the codec that it is exchanged with.
#[derive(Debug)]
pub struct SiteMonitor {
    name: Arc<str>,
    rank: usize,
    /// Of the drift plan.
    group: usize,
    /// The manifest's.
    original: Arc<Calibrated>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    calibrated: Arc<Calibrated>,
    /// In place of the calibrated codec.
    fallback: Option<Arc<dyn Codec>>,
    staged: Option<Arc<Calibrated>>,
    learner: Option<Learner>,
    window: Window,
    /// Of the window.
    tokens: u64,
    /// Tokens until the next probe.
    until_probe: usize,
    /// Over some values of every sum since the group was formed.
    sums: u64,
    scratch: Scratch,
    row: Vec<f32>,
    watched: Duration,
    learned: Duration,
}

impl SiteMonitor {
    pub(super) fn new(name: Arc<str>, rank: usize, group: usize, original: Arc<Calibrated>) -> Self {
        // Layers probe different tokens, so that a short text is seen by some of them.
        let until_probe = name
            .bytes()
            .fold(0, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
            % PROBE_EVERY;
        Self {
            name,
            rank,
            group,
            state: Mutex::new(State {
                calibrated: original.clone(),
                fallback: None,
                staged: None,
                learner: None,
                window: Window::default(),
                tokens: 0,
                until_probe,
                sums: 0,
                scratch: Scratch::default(),
                row: Vec::new(),
                watched: Duration::ZERO,
                learned: Duration::ZERO,
            }),
            original,
        }
    }

    /// The codec for the next exchange. It changes between two steps only.
    pub fn codec(&self) -> Arc<dyn Codec> {
        let state = self.state();
        state.fallback.clone().unwrap_or_else(|| state.calibrated.codec.clone())
    }

    /// Takes note of an exchange: this rank's partial sum, the sum of all, and what the encoder clipped of the former.
    ///
    /// # Errors
    /// Learning from rows of another length: a bug.
    pub fn exchanged(&self, input: Values<'_>, sum: Values<'_>, clipped: u64) -> Result<()> {
        let start = Instant::now();
        let state = &mut *self.state();
        let tokens = input.len() / state.calibrated.codec.features().max(1);
        state.tokens += tokens as u64;
        state.check(sum);
        state.probe(self.rank, input, tokens);
        if state.fallback.is_none() {
            state.window.values += input.len() as u64;
            state.window.clipped += clipped;
            state.window.expected_clipped += input.len() as f64 * state.calibrated.clip_rate;
        }
        state.watched += start.elapsed();
        match &state.learner {
            Some(learner) if !learner.is_done() => state.learn(input, tokens),
            _ => Ok(()),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What watching and learning took so far.
    pub(super) fn time(&self) -> (Duration, Duration) {
        let state = self.state();
        (state.watched, state.learned)
    }

    pub(super) fn group(&self) -> usize {
        self.group
    }

    pub(super) fn features(&self) -> usize {
        self.original.codec.features()
    }

    /// Tokens since the last window was taken.
    pub(super) fn tokens(&self) -> u64 {
        self.state().tokens
    }

    /// What was counted since the last call, and the digest of the sums.
    pub(super) fn take_window(&self) -> (Window, u64) {
        let mut state = self.state();
        state.tokens = 0;
        (std::mem::take(&mut state.window), state.sums)
    }

    pub(super) fn set_fallback(&self, codec: Option<Arc<dyn Codec>>) {
        self.state().fallback = codec;
    }

    pub(super) fn learn(&self, lesson: Lesson) -> Result<()> {
        self.state().learner = Some(Learner::new(self.features(), lesson)?);
        Ok(())
    }

    pub(super) fn abandon(&self) {
        let mut state = self.state();
        (state.learner, state.staged) = (None, None);
    }

    /// Whether it learns no more, done or not asked to.
    pub(super) fn has_learned(&self) -> bool {
        self.state().learner.as_ref().is_none_or(Learner::is_done)
    }

    /// What it has learned, and no more.
    pub(super) fn take_observer(&self) -> Option<RangeObserver> {
        let learner = self.state().learner.take();
        learner.map(|learner| learner.observer().clone())
    }

    pub(super) fn stage(&self, calibrated: Calibrated) {
        self.state().staged = Some(Arc::new(calibrated));
    }

    /// Uses what was staged, if anything was.
    pub(super) fn adopt(&self) {
        let mut state = self.state();
        state.learner = None;
        state.window = Window::default();
        if let Some(staged) = state.staged.take() {
            state.calibrated = staged;
        }
    }

    /// As when it was made.
    pub(super) fn reset(&self) {
        let fresh = Self::new(self.name.clone(), self.rank, self.group, self.original.clone());
        let mut state = self.state();
        if let Ok(fresh) = fresh.state.into_inner() {
            *state = fresh;
        }
    }

    /// The state is valid after any single assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&mut self, sum: Values<'_>) {
        let stride = (sum.len() / CHECKED).max(1);
        for at in (0..sum.len()).step_by(stride) {
            // FxHash's step: a changed bit changes the rest of the digest.
            self.sums = (self.sums.rotate_left(5) ^ u64::from(sum.bits(at))).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }

    fn learn(&mut self, input: Values<'_>, tokens: usize) -> Result<()> {
        let start = Instant::now();
        let features = self.calibrated.codec.features();
        self.row.resize(features, 0.0);
        if let Some(learner) = &mut self.learner {
            for token in 0..tokens {
                input.to_f32(token * features, &mut self.row);
                learner.observe(&self.row)?;
            }
        }
        self.learned += start.elapsed();
        Ok(())
    }

    fn probe(&mut self, rank: usize, input: Values<'_>, tokens: usize) {
        while self.until_probe < tokens {
            let (at, estimate) = (self.until_probe, self.fallback.is_some());
            let probed = self.calibrated.probe(rank, input, at, estimate, &mut self.scratch);
            self.until_probe += PROBE_EVERY;
            let Some(probed) = probed else { continue };
            let window = &mut self.window;
            window.probes += 1;
            if let Some(noise) = probed.noise {
                window.noises += 1;
                window.noise += noise;
            }
            if let Some(shift) = probed.shift {
                window.shifts += 1;
                window.shift += shift;
            }
            // Without calibrated ranges nothing is clipped: what would be is estimated.
            if self.fallback.is_some() {
                let features = self.calibrated.codec.features();
                window.values += features as u64;
                window.clipped += probed.clipped;
                window.expected_clipped += features as f64 * self.calibrated.clip_rate;
            }
        }
        self.until_probe -= tokens;
    }
}
