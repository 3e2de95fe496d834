//! A user's own mistral.rs checkout: which version it is, and changing it all or not at all.

use std::fs;
use std::path::Path;

use anyhow::{bail, Context, Result};

use super::overlay::Changes;
use super::series::{describe_versions, Series};
use super::tree;
use crate::workspace::read_toml;

/// The engine version of the checkout, from its workspace or from mistralrs-core itself.
pub fn version(folder: &Path) -> Result<String> {
    let core = folder.join("mistralrs-core/Cargo.toml");
    if !core.is_file() {
        bail!(
            "{} is not a mistral.rs checkout: it has no mistralrs-core/Cargo.toml",
            folder.display()
        );
    }
    let package = read_toml(&core)?;
    let own = package
        .get("package")
        .and_then(|package| package.get("version")?.as_str());
    if let Some(version) = own {
        return Ok(version.to_owned());
    }
    let workspace = read_toml(&folder.join("Cargo.toml"))?;
    let shared = workspace
        .get("workspace")
        .and_then(|workspace| workspace.get("package")?.get("version")?.as_str());
    let shared = shared.with_context(|| format!("{} and its workspace name no version", core.display()))?;
    Ok(shared.to_owned())
}

/// The series for this checkout, or `wanted` when the user insists.
pub fn series(patches: &Path, checkout: &str, wanted: Option<&str>) -> Result<Series> {
    let version = wanted.unwrap_or(checkout);
    if !patches.join(version).is_dir() {
        let subject = if wanted.is_some() {
            "the wanted series is"
        } else {
            "the checkout is"
        };
        bail!("{subject} {version}, {}", describe_versions(patches));
    }
    Series::load(patches, version)
}

/// Writes all changes; when one fails, puts back those already written.
pub fn write(folder: &Path, changes: &Changes) -> Result<()> {
    let mut undo: Vec<(&str, Option<Vec<u8>>)> = Vec::new();
    for (path, content) in changes {
        let before = fs::read(folder.join(path)).ok();
        undo.push((path, before));
        if let Err(error) = put(folder, path, content.as_deref().map(str::as_bytes)) {
            for (path, before) in undo.iter().rev() {
                if let Err(second) = put(folder, path, before.as_deref()) {
                    eprintln!("warning: {path} could not be put back: {second:#}");
                }
            }
            return Err(error.context("the checkout was left as it was"));
        }
    }
    Ok(())
}

fn put(folder: &Path, path: &str, content: Option<&[u8]>) -> Result<()> {
    match content {
        Some(content) => tree::replace(&folder.join(path), content),
        None => tree::remove(folder, path),
    }
}
