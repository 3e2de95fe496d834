//! One loaded model, asked the same things losslessly and with every codec that is compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use sha2::{Digest as _, Sha256};

use super::windows;
use crate::engine::{gathered_reports, Command, Driver, ModelOptions, Node, RankReport, SequenceLogits};
use crate::manifest::Digest;

/// Reading and running texts on rank 0. The other ranks follow from inside [`Session::load`] and do not return.
pub struct Session<'a> {
    pub(super) driver: Driver,
    node: Option<&'a Arc<Node>>,
    /// Raw-logit answers since the reports were reset: a rank's digest is complete after as many.
    answers: usize,
}

impl<'a> Session<'a> {
    /// # Errors
    /// What loading the model reports.
    pub fn load(model: &ModelOptions, node: Option<&'a Arc<Node>>) -> Result<Self> {
        let driver = Driver::load(model, node.cloned())?;
        Ok(Self {
            driver,
            node,
            answers: 0,
        })
    }

    pub(super) fn ranks(&self) -> usize {
        self.node.map_or(1, |node| node.world_size())
    }

    /// The codec choices that are compared with the lossless one.
    pub(super) fn compared(&self) -> Vec<usize> {
        let all = 0..self.node.map_or(1, |node| node.choices().len());
        all.filter(|choice| *choice != Node::LOSSLESS).collect()
    }

    /// The file of a choice, or the label of a control.
    pub(super) fn config(&self, choice: usize) -> String {
        match self.node {
            None => "single process".to_owned(),
            Some(node) if choice == Node::CONFIGURED => node.plan.origin.display().to_string(),
            Some(node) => node.choices()[choice].label.clone(),
        }
    }

    pub(super) fn codec(&self, choice: usize) -> &'static str {
        self.node.map_or("none", |node| node.choice_name(choice))
    }

    /// Of everything that decides what `what` comes to: model, ranks, codecs with their manifests, policy.
    pub fn key(&self, what: &str) -> String {
        let mut digest = Sha256::new();
        if let Some(node) = self.node {
            if let Some((model, dtype)) = node.model() {
                digest.update(model);
                digest.update(dtype.name());
            }
            digest.update(node.world_size().to_le_bytes());
            digest.update(node.plan.policy_digest().0);
            for choice in node.choices() {
                digest.update(&choice.label);
                digest.update(choice.manifest.as_ref().map_or([0; 32], |manifest| manifest.digest().0));
            }
        }
        digest.update(what);
        Digest(digest.finalize().into()).to_string()
    }

    /// Starts the counters of all ranks anew.
    pub(super) fn reset(&mut self) -> Result<()> {
        self.answers = 0;
        if let Some(node) = self.node {
            node.command(&Command::ResetReport)?;
            node.command(&Command::Verify(true))?;
        }
        Ok(())
    }

    /// Logits of `tokens` with one choice; in a single process every choice is the lossless one.
    pub(super) fn logits(&mut self, choice: usize, tokens: &[u32]) -> Result<SequenceLogits> {
        self.select(choice)?;
        self.answers += 1;
        self.driver.logits(tokens)
    }

    pub(super) fn select(&self, choice: usize) -> Result<()> {
        match self.node {
            Some(node) => node.command(&Command::Select(choice)),
            None => Ok(()),
        }
    }

    /// What each rank counted under one choice, once it has digested all logits; nothing in a single process.
    pub(super) fn reports(&self, choice: usize) -> Result<Vec<RankReport>> {
        let logits = self.answers;
        self.node.map_or(Ok(Vec::new()), |node| {
            gathered_reports(node.gather(&Command::GatherReport { choice, logits })?)
        })
    }
}

/// # Errors
/// A file that cannot be read, or is no text.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read the text {}", path.display()))
}

/// The tokens of `text` in windows of `window`, `most` tokens in all. `path` names it.
///
/// # Errors
/// A text too short for one window.
pub(crate) fn windows_of(
    driver: &Driver,
    path: &Path,
    text: &str,
    window: usize,
    most: usize,
) -> Result<Vec<Vec<u32>>> {
    let tokens = driver.tokenize(text, false)?;
    let ranges = windows(tokens.len(), window, most);
    ensure!(
        tokens.len() >= window.min(most) && !ranges.is_empty(),
        "the text {} has {} tokens, expected at least {window}",
        path.display(),
        tokens.len()
    );
    Ok(ranges.into_iter().map(|range| tokens[range].to_vec()).collect())
}

/// `{choice}.{window}` of `[tokens, vocab]` f32.
pub(super) fn write_logits(path: &Path, dump: &BTreeMap<String, SequenceLogits>) -> Result<()> {
    use safetensors::tensor::{Dtype, TensorView};
    let mut views = Vec::new();
    for (name, logits) in dump {
        let shape = vec![logits.tokens.len(), logits.vocab];
        views.push((
            name.clone(),
            TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(&logits.values))?,
        ));
    }
    let bytes = safetensors::serialize(views, None)?;
    std::fs::write(path, bytes).with_context(|| format!("cannot write logits to {}", path.display()))
}
