//! Recording on the real engine: every rank writes its own partial sums of a text.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

use crate::engine::{Command, Driver, ModelOptions, Node};
use crate::eval::{read_text, windows_of};

#[derive(Debug, Clone)]
pub struct RecordOptions {
    pub model: ModelOptions,
    pub text: PathBuf,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens in all, in windows spread evenly over the text.
    pub tokens: usize,
}

/// Records on rank 0; the others follow and do not return. [`Node::record_to`] has said where, on every rank. Returns the tokens.
///
/// # Errors
/// A text too short, and what loading, running and writing report.
pub fn record(options: &RecordOptions, node: &Arc<Node>, mut progress: impl FnMut(usize, usize)) -> Result<usize> {
    let text = read_text(&options.text)?;
    let driver = Driver::load(&options.model, Some(node.clone()))?;
    let windows = windows_of(&driver, &options.text, &text, options.window, options.tokens)?;
    node.command(&Command::Record(true))?;
    for (i, window) in windows.iter().enumerate() {
        progress(i, windows.len());
        driver.logits(window)?;
    }
    node.command(&Command::Record(false))?;
    progress(windows.len(), windows.len());
    Ok(windows.iter().map(Vec::len).sum())
}
