//! A set of crates as it should be on disk, and bringing a folder to it without touching what is right already.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkdir::{DirEntry, WalkDir};

use super::overlay::{Base, Changes};

/// Relative path with `/` -> content.
#[derive(Debug, Default)]
pub struct Tree {
    files: BTreeMap<String, Vec<u8>>,
}

/// Relative path with `/` -> SHA-256 in hex.
pub type Digests = BTreeMap<String, String>;

/// Left in the folder by `sync`; says what this tool wrote there and from what.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    /// Version of the published crates.
    pub engine: String,
    /// Digest of the patch series.
    pub series: String,
    pub crates: BTreeSet<String>,
    pub files: Digests,
}

pub const RECORD: &str = ".tpq-setup";
const FORMAT: u32 = 1;

/// Written by cargo into its registry folder or belonging to the crate's own workspace, not part of the sources.
const NOT_SOURCES: [&str; 3] = [".cargo-ok", "Cargo.lock", ".cargo-checksum.json"];

impl Record {
    pub fn new(engine: &str, series: String, crates: BTreeSet<String>, files: Digests) -> Self {
        Self {
            format: FORMAT,
            engine: engine.to_owned(),
            series,
            crates,
            files,
        }
    }

    /// `None` when there is no record, or one that a later version of this tool wrote.
    pub fn load(folder: &Path) -> Option<Self> {
        let text = fs::read_to_string(folder.join(RECORD)).ok()?;
        serde_json::from_str(&text)
            .ok()
            .filter(|record: &Self| record.format == FORMAT)
    }

    pub fn made_from(&self, engine: &str, series: &str, crates: &BTreeSet<String>) -> bool {
        self.engine == engine && self.series == series && self.crates == *crates
    }
}

impl Tree {
    /// The unpatched crates of `base`, with `changes` on top.
    pub fn read(base: &Base, changes: Changes) -> Result<Self> {
        let mut files = BTreeMap::new();
        for (name, folder) in &base.crates {
            for path in list(folder)? {
                let content = fs::read(folder.join(&path)).with_context(|| format!("cannot read {name}/{path}"))?;
                files.insert(format!("{name}/{path}"), content);
            }
        }
        for (path, content) in changes {
            match content {
                Some(text) => files.insert(path, text.into_bytes()),
                None => files.remove(&path),
            };
        }
        Ok(Self { files })
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub fn digests(&self) -> Digests {
        self.files
            .iter()
            .map(|(path, content)| (path.clone(), digest(content)))
            .collect()
    }

    /// Brings `folder` to this tree. A new folder is written beside and renamed; in one that exists only files whose
    /// content differs are replaced, because cargo goes by modification times and the engine takes minutes to build.
    pub fn sync(&self, folder: &Path, on_disk: &Digests, record: &Record) -> Result<Written> {
        if !folder.exists() {
            return self.create(folder, record);
        }
        let wanted = &record.files;
        let differs: Vec<_> = wanted
            .iter()
            .filter(|(path, digest)| on_disk.get(*path) != Some(digest))
            .collect();
        let surplus: Vec<_> = on_disk.keys().filter(|path| !wanted.contains_key(*path)).collect();
        for (path, _) in &differs {
            replace(&folder.join(path), &self.files[*path])?;
        }
        for path in &surplus {
            remove(folder, path)?;
        }
        write_record(folder, record)?;
        Ok(Written {
            written: differs.len(),
            removed: surplus.len(),
            kept: wanted.len() - differs.len(),
        })
    }

    fn create(&self, folder: &Path, record: &Record) -> Result<Written> {
        let parent = folder
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let beside = tempfile::Builder::new()
            .prefix(".tpq-setup-")
            .suffix(".tmp")
            .tempdir_in(parent)?;
        let fresh = beside.path().join("tree");
        for (path, content) in &self.files {
            let target = fresh.join(path);
            fs::create_dir_all(target.parent().unwrap_or(&fresh))?;
            fs::write(&target, content).with_context(|| format!("cannot write {}", target.display()))?;
        }
        write_record(&fresh, record)?;
        fs::rename(&fresh, folder).with_context(|| format!("cannot move the new tree to {}", folder.display()))?;
        Ok(Written {
            written: self.files.len(),
            removed: 0,
            kept: 0,
        })
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub written: usize,
    pub removed: usize,
    pub kept: usize,
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} files written, {} unchanged, {} removed",
            self.written, self.kept, self.removed
        )
    }
}

/// Digests of what stands in `folder` under `crates`; other folders there are not ours.
pub fn digests_on_disk<'a>(folder: &Path, crates: impl IntoIterator<Item = &'a String>) -> Result<Digests> {
    let mut digests = Digests::new();
    for name in crates {
        let crate_folder = folder.join(name);
        if !crate_folder.exists() {
            continue;
        }
        for path in list(&crate_folder)? {
            let content = fs::read(crate_folder.join(&path)).with_context(|| format!("cannot read {name}/{path}"))?;
            digests.insert(format!("{name}/{path}"), digest(&content));
        }
    }
    Ok(digests)
}

/// Writes beside and renames: a reader, or a crash, sees the old or the new content.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let parent = path.parent().context("a file without a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let fresh = tempfile::Builder::new().suffix(".tmp").tempfile_in(parent)?;
    fs::write(fresh.path(), content).with_context(|| format!("cannot write {}", path.display()))?;
    // A temporary file is private; the permissions of the file it replaces are the right ones, or the usual ones.
    let permissions = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.permissions()),
        Err(_) => usual_permissions(),
    };
    if let Some(permissions) = permissions {
        fs::set_permissions(fresh.path(), permissions)?;
    }
    fresh
        .persist(path)
        .with_context(|| format!("cannot replace {}", path.display()))?;
    Ok(())
}

/// Removes a file, and the folders below `root` that this empties.
pub fn remove(root: &Path, path: &str) -> Result<()> {
    let file = root.join(path);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            bail!("cannot remove {}: {error}", file.display())
        }
        _ => {}
    }
    let mut folder = file.parent();
    while let Some(empty) = folder.filter(|folder| *folder != root && fs::remove_dir(folder).is_ok()) {
        folder = empty.parent();
    }
    Ok(())
}

pub fn digest(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

#[cfg(unix)]
fn usual_permissions() -> Option<fs::Permissions> {
    use std::os::unix::fs::PermissionsExt;
    Some(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn usual_permissions() -> Option<fs::Permissions> {
    None
}

fn write_record(folder: &Path, record: &Record) -> Result<()> {
    let mut text = serde_json::to_string_pretty(record)?;
    text.push('\n');
    replace(&folder.join(RECORD), text.as_bytes())
}

fn list(folder: &Path) -> Result<Vec<String>> {
    ensure!(folder.is_dir(), "{} is not a folder", folder.display());
    let source = |entry: &DirEntry| {
        let name = entry.file_name().to_string_lossy();
        let build_output = entry.file_type().is_dir() && name == "target";
        entry.depth() != 1 || !(build_output || NOT_SOURCES.contains(&name.as_ref()))
    };
    let mut files = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true).into_iter().filter_entry(source) {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        if entry.file_type().is_file() {
            let relative = entry.path().strip_prefix(folder)?;
            let parts: Vec<_> = relative
                .components()
                .map(|part| part.as_os_str().to_string_lossy())
                .collect();
            files.push(parts.join("/"));
        }
    }
    Ok(files)
}
