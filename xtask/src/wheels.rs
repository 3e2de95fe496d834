//! Tools from PyPI, unpacked into a folder of target/ and kept there.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

const PYTHONS: [&str; 2] = ["python3", "python"];

/// A Python that has pip.
pub fn python() -> Option<&'static str> {
    PYTHONS.into_iter().find(|python| has_pip(python))
}

/// Into a folder beside `folder`, renamed when complete, so that an interrupted download is not taken for the tool. The inner
/// error says why `what` cannot be had on this machine: no Python, or no wheels within reach.
///
/// # Errors
/// A folder that cannot be written.
pub fn fetch(what: &str, folder: &Path, wheels: &[&str], options: &[&str]) -> Result<Result<(), String>> {
    let Some(python) = python() else {
        return Ok(Err(format!("no Python with pip, which fetches the wheels of {what}")));
    };
    let unfinished = folder.with_extension("unfinished");
    let _ = std::fs::remove_dir_all(&unfinished);
    eprintln!("fetching {what} (PyPI wheels) into {}", folder.display());
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--target"])
        .arg(&unfinished)
        .args(options)
        .args(wheels);
    let output = pip.output().context("cannot run pip")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text
            .lines()
            .rfind(|line| line.starts_with("ERROR"))
            .unwrap_or("no reason given");
        return Ok(Err(format!("the wheels of {what} cannot be had here: {last}")));
    }
    let _ = std::fs::remove_dir_all(folder);
    std::fs::rename(&unfinished, folder).with_context(|| format!("cannot rename to {}", folder.display()))?;
    Ok(Ok(()))
}

fn has_pip(python: &str) -> bool {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    pip.status().is_ok_and(|status| status.success())
}
