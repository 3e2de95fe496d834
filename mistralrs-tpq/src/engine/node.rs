//! This process's place in the group: links, codecs, counters.

use std::collections::BTreeMap;
#[cfg(feature = "cuda")]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use mistralrs_core::Response;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::Sender;

use super::choice::CodecChoice;
use super::group::{Group, GroupSlot};
use super::links::Place;
use super::logits::LogitsLog;
use super::record::Recorder;
use super::step::{StepSpan, COMMAND};
use crate::codec::{Codec, Dtype};
use crate::command::{Command, LayerError, LayerState, RankReport, Reply};
use crate::config::{CodecPlan, Plan};
use crate::exchange::{Communicator, ExchangeStats, Site};
use crate::manifest::{Digest, Expected};
use crate::monitor::Monitor;
use crate::transport::{Patience, Timed, Transport, TransportError};
use crate::wire::Identity;

/// One rank of the group. Made by [`install`](super::install).
pub struct Node {
    pub plan: Plan,
    place: Place,
    choices: Vec<CodecChoice>,
    selected: AtomicUsize,
    observing: AtomicBool,
    verifying: AtomicBool,
    meeting: AtomicBool,
    /// The only layer that the selected codec is for, if there is one.
    only: Mutex<Option<String>>,
    rejoins: bool,
    slot: GroupSlot,
    pub(super) step: StepSpan,
    pub(super) observers: Mutex<LayerState>,
    /// By codec choice.
    reports: Mutex<BTreeMap<usize, RankReport>>,
    logits: LogitsLog,
    /// Set on all ranks of a recording.
    pub(super) recorder: OnceLock<Recorder>,
    pub(super) drift: Option<Monitor>,
    /// Another number whenever exchanges that were captured into CUDA graphs are no longer those of a step.
    #[cfg(feature = "cuda")]
    pub(super) graph_epoch: AtomicU64,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("rank", &self.rank())
            .field("world_size", &self.world_size())
            .finish()
    }
}

/// For the step that runs when the group is to end.
const LAST_STEP: Duration = Duration::from_secs(1);

/// Rank 0 ended the group in good order.
#[derive(Debug, thiserror::Error)]
#[error("rank 0 ended the group")]
pub(super) struct GroupEnded;

/// A poisoned lock here guards counters and maps that are valid after any single assignment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// # Errors
    /// A manifest that cannot be used.
    pub(super) fn new(plan: Plan, place: Place, rejoins: bool) -> Result<Self> {
        let configured = CodecChoice::load("configured", plan.codec.clone())?;
        let lossless = CodecChoice::load("lossless", CodecPlan::None)?;
        let mut choices = vec![configured, lossless];
        for (label, codec) in &plan.alternatives {
            choices.push(CodecChoice::load(label, codec.clone())?);
        }
        let manifest = choices[Self::CONFIGURED].manifest.as_ref();
        let drift = Monitor::new(&plan.drift, &plan.codec, manifest, plan.calibration.ema, place.rank);
        Ok(Self {
            plan,
            place,
            choices,
            drift,
            selected: AtomicUsize::new(Self::CONFIGURED),
            observing: AtomicBool::new(false),
            verifying: AtomicBool::new(false),
            meeting: AtomicBool::new(false),
            only: Mutex::default(),
            rejoins,
            slot: GroupSlot::default(),
            step: StepSpan::default(),
            observers: Mutex::default(),
            reports: Mutex::default(),
            logits: LogitsLog::default(),
            recorder: OnceLock::new(),
            #[cfg(feature = "cuda")]
            graph_epoch: AtomicU64::default(),
        })
    }

    /// Index of the codec that the configuration names.
    pub const CONFIGURED: usize = 0;
    /// Index of the lossless exchange.
    pub const LOSSLESS: usize = 1;

    pub fn rank(&self) -> usize {
        self.place.rank
    }

    pub fn world_size(&self) -> usize {
        self.place.peers.len()
    }

    /// `none`, `paper`, `dynamic`, `rd` or `rd_entropy`, as configured.
    pub fn codec_name(&self) -> &'static str {
        self.plan.codec.name()
    }

    /// The codec of one choice, by name.
    pub fn choice_name(&self, choice: usize) -> &'static str {
        self.choices[choice].codec.name()
    }

    pub fn choices(&self) -> &[CodecChoice] {
        &self.choices
    }

    /// Fingerprint and dtype of the loaded model.
    pub fn model(&self) -> Option<([u8; 32], Dtype)> {
        self.slot.current().map(|group| (group.model, group.dtype))
    }

    /// Opens the links and compares model, manifests and policy over the ranks.
    pub(super) fn connect(self: &Arc<Self>, model: [u8; 32], dtype: Dtype) -> Result<()> {
        ensure!(
            self.slot.current().is_none(),
            "tpq serves one model per process, and one is loaded already"
        );
        for choice in &self.choices {
            if let Some(manifest) = &choice.manifest {
                manifest.check_matches(&Expected {
                    fingerprint: Digest(model),
                    dtype,
                    world_size: self.world_size(),
                })?;
            }
        }
        self.slot.open(&self.plan, &self.place, self.identity(model, dtype))?;
        if self.rejoins && self.rank() == 0 {
            let node = self.clone();
            std::thread::Builder::new()
                .name("tpq-rejoin".to_owned())
                .spawn(move || node.slot.keep_formed(&node.plan, &node.place))?;
        }
        Ok(())
    }

    fn identity(&self, model: [u8; 32], dtype: Dtype) -> Identity {
        let mut manifests = Sha256::new();
        for choice in &self.choices {
            manifests.update(choice.manifest.as_ref().map_or([0; 32], |manifest| manifest.digest().0));
        }
        let manifest = match self.choices.iter().any(|choice| choice.manifest.is_some()) {
            true => manifests.finalize().into(),
            false => [0; 32],
        };
        // All their names may be longer than a hello's field, and the policy covers them.
        let codec = match self.plan.alternatives.len() {
            0 => self.codec_name().to_owned(),
            more => format!("{} and {more} to compare", self.codec_name()),
        };
        Identity {
            dtype,
            model,
            manifest,
            codec,
            policy: self.plan.policy_digest().to_string(),
        }
    }

    pub(super) fn group(&self) -> Result<Arc<Group>> {
        self.slot.group()
    }

    // --- exchanges -------------------------------------------------------------------------------------------------

    pub(super) fn communicator(&self) -> Result<Arc<Communicator>> {
        Ok(self.group()?.communicator.clone())
    }

    pub(super) fn selected(&self) -> usize {
        self.selected.load(Ordering::Acquire)
    }

    /// Whether rank 0 wants this layer exchanged without a codec.
    pub(super) fn spared(&self, layer: &str) -> bool {
        lock(&self.only).as_ref().is_some_and(|only| only != layer)
    }

    pub(super) fn observing(&self) -> bool {
        self.observing.load(Ordering::Acquire)
    }

    pub(super) fn verifying(&self) -> bool {
        self.verifying.load(Ordering::Acquire)
    }

    pub(super) fn meeting(&self) -> bool {
        self.meeting.load(Ordering::Acquire)
    }

    pub(super) fn count(&self, choice: usize, codec: &dyn Codec, tokens: usize, dtype: Dtype, stats: &ExchangeStats) {
        let values = tokens * codec.features();
        let mut reports = lock(&self.reports);
        let report = reports.entry(choice).or_default();
        report.bytes_sent += stats.bytes_sent;
        report.exchanges += 1;
        report.values += values as u64;
        report.payload_bits += codec.payload_len(tokens, dtype) as u64 * 8;
        // 2(N-1)/N of the message, two bytes a value.
        report.bytes_sent_bf16 += (4 * (self.world_size() - 1) * values / self.world_size()) as u64;
        report.clipped += stats.clipped;
        report.nonfinite += stats.nonfinite;
        report.encode_ns += stats.encode.as_nanos() as u64;
        report.wire_ns += stats.wire.as_nanos() as u64;
        report.decode_ns += stats.decode.as_nanos() as u64;
    }

    pub(super) fn count_error(&self, choice: usize, layer: &str, error: LayerError) {
        let mut reports = lock(&self.reports);
        let total = reports
            .entry(choice)
            .or_default()
            .layers
            .entry(layer.to_owned())
            .or_default();
        total.values += error.values;
        total.signal_energy += error.signal_energy;
        total.error_energy += error.error_energy;
        total.out_of_bound += error.out_of_bound;
    }

    pub(super) fn site(&self, name: Arc<str>) -> Site {
        let digest = Sha256::digest(name.as_bytes());
        Site {
            id: u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]),
            name,
        }
    }

    // --- step channel ----------------------------------------------------------------------------------------------

    pub(super) fn send_to_followers(&self, message: &[u8]) -> Result<()> {
        self.group()?.send_to_followers(message)
    }

    pub(super) fn receive_from_rank_0(&self) -> Result<Vec<u8>> {
        self.group()?.receive_from_rank_0()
    }

    /// Rank 0, without a sequence: whether it has taken up a group that was formed anew.
    pub(super) fn reform(&self) -> bool {
        let reformed = self.rejoins && self.slot.take_up();
        if reformed {
            self.forget_drift();
        }
        reformed
    }

    /// Another rank, without a sequence: joins the group anew, where that may mend `failure`.
    pub(super) fn rejoin(&self, failure: anyhow::Error) -> Result<()> {
        // The engine's error may come just before the transport notes it.
        let lost =
            failure.chain().any(|cause| cause.is::<TransportError>()) || self.group()?.transport.failure().is_some();
        match self.rejoins && lost && !failure.is::<GroupEnded>() {
            true => {
                self.slot.rejoin(&self.plan, &self.place, failure)?;
                self.forget_drift();
                Ok(())
            }
            false => Err(failure),
        }
    }

    /// Rank 0: makes every rank, this one included, obey `command`. Only while no request is running.
    ///
    /// # Errors
    /// A lost rank.
    pub fn command(&self, command: &Command) -> Result<()> {
        let mut message = vec![COMMAND];
        serde_json::to_writer(&mut message, command)?;
        self.send_to_followers(&message)?;
        match command {
            Command::Shutdown => Ok(()),
            _ => self.obey(command.clone()),
        }
    }

    /// Rank 0: the answers of all ranks to a gathering command, by rank, this one's first.
    ///
    /// # Errors
    /// A lost rank, or one that answers nothing within ten times the exchange timeout.
    pub fn gather(&self, command: &Command) -> Result<Vec<Reply>> {
        self.command(command)?;
        let mut replies = vec![self.reply(command)?];
        let patience = Patience::Total(self.plan.links.timeout * 10);
        for rank in 1..self.world_size() {
            let message = self.group()?.transport.recv_message(rank, patience)?;
            let reply = serde_json::from_slice(&message)
                .with_context(|| format!("rank {rank} answered in an unknown form: is it the same version?"))?;
            replies.push(reply);
        }
        Ok(replies)
    }

    pub(super) fn obey(&self, command: Command) -> Result<()> {
        #[cfg(feature = "cuda")]
        if command.changes_exchanges() {
            self.graph_epoch.fetch_add(1, Ordering::Release);
        }
        match &command {
            Command::Select(choice) => {
                ensure!(
                    *choice < self.choices.len(),
                    "rank 0 selected codec {choice} of {}",
                    self.choices.len()
                );
                self.selected.store(*choice, Ordering::Release);
            }
            Command::Observe(on) => self.observing.store(*on, Ordering::Release),
            Command::Record(on) => self.set_recording(*on)?,
            Command::Only(layer) => lock(&self.only).clone_from(layer),
            Command::Verify(on) => self.verifying.store(*on, Ordering::Release),
            Command::Meet(on) => self.meeting.store(*on, Ordering::Release),
            Command::EndSequence => {
                for observer in lock(&self.observers).values_mut() {
                    observer.end_sequence();
                }
            }
            Command::ResetReport => {
                lock(&self.reports).clear();
                self.logits.reset();
            }
            Command::RestoreLayers(layers) => lock(&self.observers).extend(layers.clone()),
            Command::GatherLayer(_) | Command::GatherReport { .. } => {
                if self.rank() != 0 {
                    let reply = serde_json::to_vec(&self.reply(&command)?)?;
                    self.group()?.transport.send_message(0, &reply)?;
                }
            }
            Command::Drift(command) => self.obey_drift(command)?,
            Command::Shutdown => {
                let _ = self.await_end();
                return Err(GroupEnded.into());
            }
        }
        Ok(())
    }

    fn reply(&self, command: &Command) -> Result<Reply> {
        match command {
            Command::GatherLayer(name) => {
                let layer = lock(&self.observers).get(name).cloned();
                Ok(Reply::Layers(
                    layer.map(|layer| (name.clone(), layer)).into_iter().collect(),
                ))
            }
            Command::GatherReport { choice, logits } => {
                Ok(Reply::Report(Box::new(self.report_after(*choice, *logits)?)))
            }
            other => bail!("{other:?} has no answer"),
        }
    }

    // --- report ----------------------------------------------------------------------------------------------------

    /// The counters, once `logits` raw-logit responses have been digested.
    fn report_after(&self, choice: usize, logits: usize) -> Result<RankReport> {
        let digest = self.logits.digest_after(logits, self.plan.links.timeout);
        let logits_digest = digest.with_context(|| format!("rank {}", self.rank()))?;
        let report = lock(&self.reports).get(&choice).cloned().unwrap_or_default();
        Ok(RankReport {
            rank: self.rank(),
            logits_digest,
            ..report
        })
    }

    /// Adds the logits of one sequence to this rank's digest.
    pub(super) fn log_logits(&self, logits: &[f32]) {
        self.logits.add(logits);
    }

    /// A sender whose raw-logit responses go into the digest; the rest is dropped.
    pub(super) fn collect_responses(self: &Arc<Self>) -> Sender<Response> {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
        let node = self.clone();
        // A thread of its own: the engine's runtime is blocked while it waits for rank 0.
        std::thread::spawn(move || {
            while let Some(response) = receiver.blocking_recv() {
                if let Response::Raw { logits_chunks, .. } = response {
                    match super::driver::logits_rows(&logits_chunks) {
                        Ok((rows, _)) => node.log_logits(&rows),
                        Err(error) => tracing::error!("cannot read this rank's logits: {error:#}"),
                    }
                }
            }
        });
        sender
    }

    /// Why the group cannot serve, if it cannot.
    ///
    /// # Errors
    /// The first failure of a link: it is final, unless the group was formed anew.
    pub fn health(&self) -> Result<(), String> {
        self.slot.health()
    }

    /// Whether a lost rank may come back.
    pub fn rejoins(&self) -> bool {
        self.rejoins
    }

    /// How often the group was formed anew.
    pub fn reformed(&self) -> u64 {
        self.slot.reformed()
    }

    /// The links of the moment, for counters.
    pub fn transport(&self) -> Option<Arc<Timed>> {
        self.slot.current().map(|group| group.transport.clone())
    }

    /// This rank's counters since the last reset, by label of the codec choice.
    pub fn counters(&self) -> Vec<(String, RankReport)> {
        let reports = lock(&self.reports);
        reports
            .iter()
            .map(|(choice, report)| (self.choices[*choice].label.clone(), report.clone()))
            .collect()
    }

    /// Rank 0: returns when every rank knows that the group ends. Answers to earlier commands that nobody took are passed over.
    fn tell_the_end(&self) -> Result<()> {
        self.command(&Command::Shutdown)?;
        let group = self.group()?;
        for rank in 1..self.world_size() {
            while !group
                .transport
                .recv_message(rank, Patience::Total(self.plan.links.timeout))?
                .is_empty()
            {}
        }
        Ok(())
    }

    /// Another rank, told by a command or by rank 0's engine that the group ends: says that it knows and waits for rank 0 to
    /// leave first. A rank that left while others are still being told would look lost to them.
    pub(super) fn await_end(&self) -> Result<()> {
        let transport = &self.group()?.transport;
        let deadline = Instant::now() + self.plan.links.timeout;
        let left = || Patience::Total(deadline.saturating_duration_since(Instant::now()));
        transport.send_message(0, &[])?;
        // The command and the engine's last step come in either order.
        while transport.recv_message(0, left()).is_ok() {}
        Ok(())
    }

    /// Ends the group in good order (rank 0); the other ranks exit with 0.
    pub fn shutdown(&self) {
        if self.rank() == 0 && self.slot.current().is_some() {
            if !self.step.end(LAST_STEP) {
                tracing::info!(
                    "no step ended for {} s; ending the group all the same",
                    LAST_STEP.as_secs()
                );
            }
            if let Err(error) = self.tell_the_end() {
                tracing::warn!("could not tell the other ranks to end: {error:#}");
            }
            self.slot.close();
        }
    }
}
