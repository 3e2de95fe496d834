//! Drift: whether partial sums still are what was calibrated, while serving, and what is done about it.
//!
//! ```text
//! every rank    SiteMonitor: codec of the moment, clipped values, a probe of one token in 128, digest of the sums
//!                   │ window, asked for by rank 0
//! rank 0        Lead: windows of all ranks -> Judge (per layer group) -> commands
//!                   │ Fallback, Learn, Stage, Adopt: on the step channel, so between the same two steps everywhere
//! every rank    Monitor::obey
//! ```
//! Rank 0 alone decides, and nothing here depends on a clock or on one rank's data alone. When the group is formed anew, all ranks
//! return to the manifest: the one that comes back has nothing else.

mod baseline;
mod command;
mod judge;
mod lead;
mod learn;
mod site;
mod status;
mod window;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

pub use command::{DriftCommand, DriftError, DriftReply, LayerReport};
pub use judge::{Change, Judge};
pub use lead::Peers;
pub use learn::{LearnedLayer, Lesson};
pub use site::{SiteMonitor, PROBE_EVERY};
pub use status::{GroupStatus, Phase, Status};
pub use window::{Evidence, Window};

use self::baseline::Calibrated;
use self::lead::Lead;
use crate::codec::{Codec, Dynamic, NoCodec};
use crate::config::{CodecPlan, DriftPlan, DriftPolicy, FallbackCodec};
use crate::manifest::{Digest, Header, Layer, Manifest};

/// What a manifest that was learned while serving has in place of its corpus.
const LEARNED_CORPUS: &[u8] = b"learned while serving";

/// One rank's view of drift.
#[derive(Debug)]
pub struct Monitor {
    plan: DriftPlan,
    codec: CodecPlan,
    /// Of the moving average of calibration.
    ema: f64,
    rank: usize,
    original: Manifest,
    ranges: Mutex<Ranges>,
    sites: Mutex<BTreeMap<String, Arc<SiteMonitor>>>,
    lead: Mutex<Lead>,
}

/// What the ranks agree on, beside the manifest that they started from.
#[derive(Debug, Default)]
struct Ranges {
    /// By name: layers in use that are not the manifest's.
    adopted: BTreeMap<String, Layer>,
    staged: BTreeMap<String, Layer>,
    lesson: Option<Lesson>,
    /// By group.
    fallback: Vec<bool>,
}

impl Monitor {
    /// `None` where nothing is to be watched: a codec without calibration, or every group off.
    pub fn new(
        plan: &DriftPlan,
        codec: &CodecPlan,
        manifest: Option<&Manifest>,
        ema: f64,
        rank: usize,
    ) -> Option<Self> {
        let manifest = manifest.filter(|_| !plan.is_off())?;
        Some(Self {
            plan: plan.clone(),
            codec: codec.clone(),
            ema,
            rank,
            original: manifest.clone(),
            ranges: Mutex::default(),
            sites: Mutex::default(),
            lead: Mutex::new(Lead::new(plan)),
        })
    }

    /// The monitor of a layer, made at its first call. `None` for a layer whose group is off.
    ///
    /// # Errors
    /// A layer that the manifest does not have, or not as the codec needs it.
    pub fn site(&self, name: &str, features: usize) -> Result<Option<Arc<SiteMonitor>>> {
        let group = self.plan.group_of(name);
        if self.plan.groups[group].policy == DriftPolicy::Off {
            return Ok(None);
        }
        let mut sites = lock(&self.sites);
        if let Some(site) = sites.get(name) {
            return Ok(Some(site.clone()));
        }
        let layer = self.original.require(name, features)?;
        let calibrated = self.calibrated(layer, self.original.header().tokens)?;
        let site = Arc::new(SiteMonitor::new(name.into(), self.rank, group, Arc::new(calibrated)));
        if lock(&self.ranges).fallback.get(group) == Some(&true) {
            site.set_fallback(Some(self.fallback_codec(features)));
        }
        sites.insert(name.to_owned(), site.clone());
        Ok(Some(site))
    }

    /// Whether any layer is watched yet: none before the first exchange, and none on a GPU.
    pub fn is_watching(&self) -> bool {
        !lock(&self.sites).is_empty()
    }

    /// For a layer that goes past this monitor: its partial sums stay on a GPU.
    ///
    /// # Errors
    /// A policy that would have to replace this layer's codec.
    pub fn check_unwatched(&self, layer: &str) -> Result<(), DriftError> {
        let policy = self.plan.groups[self.plan.group_of(layer)].policy;
        if !policy.acts() {
            return Ok(());
        }
        let layer = layer.to_owned();
        Err(DriftError::OnGpu {
            layer,
            policy: policy.name(),
        })
    }

    /// Does what rank 0 said. The answer, if it was a question.
    ///
    /// # Errors
    /// [`DriftError`]: ranges that do not fit, or another manifest than rank 0's after the switch.
    pub fn obey(&self, command: &DriftCommand) -> Result<Option<DriftReply>> {
        match command {
            DriftCommand::Report => return Ok(Some(self.report())),
            DriftCommand::Observer { layer } => {
                let observer = self.known_site(layer)?.take_observer();
                return Ok(Some(DriftReply::Observer(observer.map(Box::new))));
            }
            DriftCommand::Fallback { group, on } => self.set_fallback(*group, *on)?,
            DriftCommand::Learn { group, lesson } => {
                lock(&self.ranges).lesson = Some(*lesson);
                self.members(*group)?.iter().try_for_each(|site| site.learn(*lesson))?;
            }
            DriftCommand::Abandon { group } => {
                let members = self.members(*group)?;
                let mut ranges = lock(&self.ranges);
                for site in members {
                    site.abandon();
                    ranges.staged.remove(site.name());
                }
            }
            DriftCommand::Stage(learned) => {
                let site = self.known_site(learned.name())?;
                let layer = learned.to_layer(self.original.require(learned.name(), site.features())?)?;
                site.stage(self.calibrated(&layer, learned.tokens)?);
                lock(&self.ranges).staged.insert(learned.name().to_owned(), layer);
            }
            DriftCommand::Adopt { group, digest } => self.adopt(*group, digest)?,
        }
        Ok(None)
    }

    /// Back to the manifest, as all ranks do when the group was formed anew.
    pub fn reset(&self) {
        lock(&self.sites).values().for_each(|site| site.reset());
        *lock(&self.ranges) = Ranges::default();
        lock(&self.lead).reset(&self.plan);
    }

    /// The manifest in use: what was calibrated, with what was learned since.
    ///
    /// # Errors
    /// None that a valid manifest with valid layers has.
    pub fn manifest(&self) -> Result<Manifest> {
        let ranges = lock(&self.ranges);
        self.manifest_with(&ranges.adopted, ranges.lesson)
    }

    fn manifest_with(&self, adopted: &BTreeMap<String, Layer>, lesson: Option<Lesson>) -> Result<Manifest> {
        let (false, Some(lesson)) = (adopted.is_empty(), lesson) else {
            return Ok(self.original.clone());
        };
        let layers = self.original.layers().iter();
        let layers = layers.map(|layer| adopted.get(layer.name()).unwrap_or(layer).clone());
        let header = Header {
            corpus: Digest::of(LEARNED_CORPUS),
            sequences: lesson.sequences,
            tokens: lesson.tokens,
            ema: lesson.ema,
            ..self.original.header().clone()
        };
        Ok(Manifest::new(header, layers.collect())?)
    }

    /// With what is staged for `group`.
    fn manifest_after(&self, group: usize) -> Result<Manifest> {
        let ranges = lock(&self.ranges);
        let mut adopted = ranges.adopted.clone();
        let staged = ranges
            .staged
            .iter()
            .filter(|(name, _)| self.plan.group_of(name) == group);
        adopted.extend(staged.map(|(name, layer)| (name.clone(), layer.clone())));
        self.manifest_with(&adopted, ranges.lesson)
    }

    fn adopt(&self, group: usize, digest: &str) -> Result<()> {
        let members = self.members(group)?;
        let got = self.manifest_after(group)?.digest().to_string();
        if got != digest {
            let expected = digest.to_owned();
            return Err(DriftError::Digest { expected, got }.into());
        }
        let mut ranges = lock(&self.ranges);
        for site in members {
            site.adopt();
            if let Some(layer) = ranges.staged.remove(site.name()) {
                ranges.adopted.insert(site.name().to_owned(), layer);
            }
        }
        Ok(())
    }

    fn report(&self) -> DriftReply {
        let sites = lock(&self.sites);
        let report = |site: &Arc<SiteMonitor>| {
            let (window, sums) = site.take_window();
            let layer = site.name().to_owned();
            LayerReport { layer, window, sums }
        };
        DriftReply::Report(sites.values().map(report).collect())
    }

    fn set_fallback(&self, group: usize, on: bool) -> Result<()> {
        let members = self.members(group)?;
        let mut ranges = lock(&self.ranges);
        ranges.fallback.resize(self.plan.groups.len(), false);
        ranges.fallback[group] = on;
        for site in members {
            site.set_fallback(on.then(|| self.fallback_codec(site.features())));
        }
        Ok(())
    }

    fn fallback_codec(&self, features: usize) -> Arc<dyn Codec> {
        match self.plan.fallback_codec {
            FallbackCodec::Dynamic => Arc::new(Dynamic::new(features)),
            FallbackCodec::None => Arc::new(NoCodec::new(features)),
        }
    }

    fn calibrated(&self, layer: &Layer, tokens: u64) -> Result<Calibrated> {
        let calibrated = Calibrated::new(&self.codec, layer, self.rank, tokens);
        calibrated.with_context(|| format!("layer {}", layer.name()))
    }

    fn known_site(&self, name: &str) -> Result<Arc<SiteMonitor>, DriftError> {
        let site = lock(&self.sites).get(name).cloned();
        site.ok_or_else(|| DriftError::Layer { layer: name.to_owned() })
    }

    /// The sites of a group, in the order of names.
    fn members(&self, group: usize) -> Result<Vec<Arc<SiteMonitor>>, DriftError> {
        let groups = self.plan.groups.len();
        if group >= groups {
            return Err(DriftError::Group { got: group, groups });
        }
        let sites = lock(&self.sites);
        Ok(sites.values().filter(|site| site.group() == group).cloned().collect())
    }
}

/// What these locks guard is valid after any single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
