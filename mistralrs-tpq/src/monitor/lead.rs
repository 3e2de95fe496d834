//! Rank 0: asks the ranks what they saw, judges each layer group, and says what all do about it.
//!
//! A question goes out before one step and its answers are taken before the next, when they have long arrived: nobody waits for
//! them. Layers of a large model are learned, gathered and staged one at a time for the same reason; only the switch itself is one
//! command for the whole group.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::command::{DriftCommand, DriftError, DriftReply, LayerReport};
use super::judge::{Change, Judge};
use super::learn::{LearnedLayer, Lesson};
use super::status::{GroupStatus, Phase, Status};
use super::window::{Evidence, Window};
use super::{lock, Monitor};
use crate::config::{DriftGroup, DriftPlan, DriftPolicy};

/// Between two warnings about one group.
const LOG_PAUSE: Duration = Duration::from_secs(600);

/// A group learns again at the earliest after this many times the tokens that it learned from.
const LEARN_PAUSE: u64 = 4;

/// Tokens, as a multiple of those to learn from, after which layers that saw fewer are left as they are.
const LEARN_LIMIT: u64 = 4;

/// A layer and rank's feature takes at most this much of a message: a range and two numbers for each of nine classes, as text.
const BYTES_PER_FEATURE: usize = 19 * 11;

/// How rank 0 reaches the other ranks.
pub trait Peers {
    /// To all of them, before whatever comes next.
    ///
    /// # Errors
    /// A lost rank.
    fn tell(&self, command: &DriftCommand) -> Result<()>;

    /// Their answers to the last question, in the order of ranks from 1.
    ///
    /// # Errors
    /// A lost rank, or one that answers nothing.
    fn hear(&self) -> Result<Vec<DriftReply>>;
}

#[derive(Debug, Default)]
pub(super) struct Lead {
    status: Status,
    asked: Option<Asked>,
}

/// A question, and rank 0's own answer: given at the same step boundary as the others'.
#[derive(Debug)]
struct Asked {
    command: DriftCommand,
    own: DriftReply,
    /// Of the window, for a report.
    tokens: u64,
}

impl Lead {
    pub(super) fn new(plan: &DriftPlan) -> Self {
        let mut lead = Self::default();
        lead.status.groups.resize_with(plan.groups.len(), GroupStatus::default);
        lead
    }

    /// Counters go on.
    pub(super) fn reset(&mut self, plan: &DriftPlan) {
        let old = std::mem::replace(self, Self::new(plan)).status;
        self.status.compared = old.compared;
        for (group, old) in self.status.groups.iter_mut().zip(old.groups) {
            (group.drifts, group.switches, group.warned) = (old.drifts, old.switches, old.warned);
        }
    }
}

impl Monitor {
    /// Rank 0, before each step: what goes through `peers` takes effect before that step on every rank.
    ///
    /// # Errors
    /// A lost rank; [`DriftError`]. The group cannot go on after either.
    pub fn before_step(&self, peers: &dyn Peers) -> Result<()> {
        let mut lead = lock(&self.lead);
        if let Some(asked) = lead.asked.take() {
            let mut replies = vec![asked.own];
            replies.extend(peers.hear()?);
            match &asked.command {
                DriftCommand::Report => self.on_reports(&mut lead.status, replies, asked.tokens, peers)?,
                DriftCommand::Observer { layer } => self.on_observers(&mut lead.status, layer, replies, peers)?,
                _ => {}
            }
        }
        let tokens = self.tokens();
        let Some(command) = self.question(&mut lead.status, tokens) else {
            return Ok(());
        };
        peers.tell(&command)?;
        let own = self.obey(&command)?.context("a question has an answer")?;
        lead.asked = Some(Asked { command, own, tokens });
        Ok(())
    }

    /// The layer groups, as in the plan.
    pub fn groups(&self) -> &[DriftGroup] {
        &self.plan.groups
    }

    /// What rank 0 knows.
    pub fn status(&self) -> Status {
        let mut status = lock(&self.lead).status.clone();
        for site in lock(&self.sites).values() {
            let (watched, learned) = site.time();
            status.watched += watched;
            status.learned += learned;
        }
        status
    }

    /// The most tokens that a layer has seen since the last report.
    fn tokens(&self) -> u64 {
        lock(&self.sites).values().map(|site| site.tokens()).max().unwrap_or(0)
    }

    fn question(&self, status: &mut Status, tokens: u64) -> Option<DriftCommand> {
        for (index, group) in status.groups.iter_mut().enumerate() {
            if group.phase == Phase::Learning {
                let members = self.members(index).unwrap_or_default();
                let late = group.tokens >= LEARN_LIMIT * self.plan.learn_tokens;
                if late || members.iter().all(|site| site.has_learned()) {
                    let names = members.iter().map(|site| site.name().to_owned());
                    (group.phase, group.staged) = (Phase::Staging(names.collect()), 0);
                }
            }
            if let Phase::Staging(names) = &group.phase {
                if let Some(layer) = names.front() {
                    return Some(DriftCommand::Observer { layer: layer.clone() });
                }
            }
        }
        (tokens >= (self.plan.report_after_tokens / 2).max(1)).then_some(DriftCommand::Report)
    }

    /// Says it to all ranks, this one included.
    fn say(&self, peers: &dyn Peers, command: &DriftCommand) -> Result<()> {
        peers.tell(command)?;
        self.obey(command).map(|_| ())
    }

    fn on_reports(&self, status: &mut Status, replies: Vec<DriftReply>, tokens: u64, peers: &dyn Peers) -> Result<()> {
        let layers = merged(replies)?;
        status.compared += layers.len() as u64;
        let mut windows = vec![Window::default(); self.plan.groups.len()];
        for report in &layers {
            windows[self.plan.group_of(&report.layer)].add(&report.window);
        }
        for report in layers {
            let last = status.layers.entry(report.layer).or_default();
            let new = report.window.evidence();
            let range_shift = new.range_shift.or(last.range_shift);
            *last = Evidence { range_shift, ..new };
        }
        for (index, window) in windows.into_iter().enumerate() {
            let group = &mut status.groups[index];
            if let Some(tokens) = group.weigh(window, tokens) {
                self.judge(index, group, tokens, peers)?;
            }
        }
        Ok(())
    }

    fn judge(&self, index: usize, group: &mut GroupStatus, tokens: u64, peers: &dyn Peers) -> Result<()> {
        group.tokens += tokens;
        if matches!(group.phase, Phase::Learning | Phase::Staging(_)) {
            return Ok(());
        }
        let evidence = group.evidence.unwrap_or_default();
        let policy = self.plan.groups[index].policy;
        match group.judge.see(&self.plan, tokens, &evidence) {
            Some(Change::Drifted) => {
                group.drifts += 1;
                group.phase = Phase::Drifted;
                self.warn(index, group, &evidence);
                if policy == DriftPolicy::Recalibrate && !self.can_learn(index) {
                    tracing::warn!(
                        "layers this wide over so many ranks do not fit into a message: ranges stay as they are"
                    );
                }
                if policy == DriftPolicy::Fallback {
                    group.phase = Phase::Fallback;
                    let on = true;
                    self.say(peers, &DriftCommand::Fallback { group: index, on })?;
                }
            }
            Some(Change::Recovered) => {
                tracing::info!(
                    layers = self.plan.groups[index].layers,
                    "partial sums are as calibrated again"
                );
                if std::mem::take(&mut group.phase) == Phase::Fallback {
                    let on = false;
                    self.say(peers, &DriftCommand::Fallback { group: index, on })?;
                }
            }
            None => {}
        }
        let rested = group.tokens >= group.pause;
        if group.judge.drifted() && policy == DriftPolicy::Recalibrate && rested && self.can_learn(index) {
            let lesson = Lesson::new(self.plan.learn_tokens, self.original.header().tokens, self.ema);
            (group.phase, group.tokens) = (Phase::Learning, 0);
            self.say(peers, &DriftCommand::Learn { group: index, lesson })?;
        }
        Ok(())
    }

    /// Whether every layer of a group fits into a message.
    fn can_learn(&self, group: usize) -> bool {
        let ranks = self.original.header().world_size;
        let fits = |features: usize| features * ranks * BYTES_PER_FEATURE <= crate::wire::DEFAULT_MESSAGE_LIMIT;
        self.members(group)
            .is_ok_and(|members| members.iter().all(|site| fits(site.features())))
    }

    fn on_observers(
        &self,
        status: &mut Status,
        layer: &str,
        replies: Vec<DriftReply>,
        peers: &dyn Peers,
    ) -> Result<()> {
        let index = self.plan.group_of(layer);
        let mut observers = Vec::with_capacity(replies.len());
        for (rank, reply) in replies.into_iter().enumerate() {
            match reply {
                DriftReply::Observer(observer) => observers.extend(observer.map(|observer| *observer)),
                DriftReply::Report(_) => return Err(answer(rank, "a report instead of an observer")),
            }
        }
        let group = &mut status.groups[index];
        if let Phase::Staging(names) = &mut group.phase {
            names.pop_front();
        }
        match self.learn(layer, &observers) {
            Ok(learned) => {
                group.staged += 1;
                self.say(peers, &DriftCommand::Stage(Box::new(learned)))?;
            }
            Err(error) => tracing::warn!(layer, "keeps its ranges: {error:#}"),
        }
        match &group.phase {
            Phase::Staging(names) if names.is_empty() => self.switch(index, group, peers),
            _ => Ok(()),
        }
    }

    fn learn(&self, layer: &str, observers: &[crate::calibrate::RangeObserver]) -> Result<LearnedLayer> {
        let ranges = lock(&self.ranges);
        let lesson = ranges.lesson.context("nothing was to be learned")?;
        let old = self.original.layer(layer).context("not in the manifest")?;
        LearnedLayer::learn(old, observers, lesson)
    }

    fn switch(&self, index: usize, group: &mut GroupStatus, peers: &dyn Peers) -> Result<()> {
        (group.phase, group.judge, group.tokens) = (Phase::Calm, Judge::default(), 0);
        (group.gathered, group.noise_ratio) = Default::default();
        group.pause = LEARN_PAUSE * self.plan.learn_tokens;
        if group.staged == 0 {
            return self.say(peers, &DriftCommand::Abandon { group: index });
        }
        let digest = self.manifest_after(index)?.digest();
        let adopt = DriftCommand::Adopt {
            group: index,
            digest: digest.to_string(),
        };
        self.say(peers, &adopt)?;
        group.switches += 1;
        tracing::info!(
            layers = self.plan.groups[index].layers,
            "{} layers use ranges learned while serving; manifest {} on all ranks",
            group.staged,
            digest.short()
        );
        self.write_manifest()
    }

    /// Not on this thread: a disk may be slow.
    fn write_manifest(&self) -> Result<()> {
        let Some(folder) = self.plan.write_manifest.clone() else {
            return Ok(());
        };
        let manifest = self.manifest()?;
        let write = move || match manifest.write(&folder) {
            Ok(path) => tracing::info!("learned manifest written to {}", path.display()),
            Err(error) => tracing::error!("the learned manifest could not be written: {error}"),
        };
        std::thread::Builder::new()
            .name("tpq-manifest".to_owned())
            .spawn(write)?;
        Ok(())
    }

    fn warn(&self, index: usize, group: &mut GroupStatus, evidence: &Evidence) {
        if group.warned.is_some_and(|at| at.elapsed() < LOG_PAUSE) {
            return;
        }
        group.warned = Some(Instant::now());
        let drift = &self.plan.groups[index];
        tracing::warn!(
            layers = drift.layers,
            policy = drift.policy.name(),
            "partial sums are not as calibrated: {:.2}% of the values clipped, {:.1} times the expected; quantization noise {} the expected",
            evidence.clip_rate * 100.0,
            evidence.clip_ratio,
            evidence
                .noise_ratio
                .map_or("unknown against".to_owned(), |ratio| format!("{ratio:.1} times")),
        );
    }
}

/// The reports of all ranks, rank 0's first, by layer. The ranks' sums must be the same.
fn merged(replies: Vec<DriftReply>) -> Result<Vec<LayerReport>> {
    let mut all: Vec<LayerReport> = Vec::new();
    for (rank, reply) in replies.into_iter().enumerate() {
        let DriftReply::Report(layers) = reply else {
            return Err(answer(rank, "an observer instead of a report"));
        };
        if rank == 0 {
            all = layers;
            continue;
        }
        // On a GPU nothing is watched.
        if layers.is_empty() {
            continue;
        }
        if !all
            .iter()
            .map(|report| &report.layer)
            .eq(layers.iter().map(|report| &report.layer))
        {
            return Err(answer(rank, "other layers than rank 0's"));
        }
        for (all, layer) in all.iter_mut().zip(layers) {
            if !layer.window.is_plausible() {
                return Err(answer(rank, "counters that are none"));
            }
            if layer.sums != all.sums {
                let layer = layer.layer;
                return Err(DriftError::Sums { rank, layer }.into());
            }
            all.window.add(&layer.window);
        }
    }
    Ok(all)
}

fn answer(rank: usize, what: &str) -> anyhow::Error {
    let what = what.to_owned();
    DriftError::Answer { rank, what }.into()
}
