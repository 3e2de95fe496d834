//! `patches/<version>/*.patch`: reading and checking a series before anything is touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path};

use anyhow::{bail, ensure, Context, Result};
use diffy::patch_set::{FileOperation, ParseOptions, PatchSet};
use sha2::{Digest, Sha256};

/// All patches for one engine version, in name order.
#[derive(Debug, Clone)]
pub struct Series {
    pub version: String,
    pub patches: Vec<PatchFile>,
}

#[derive(Debug, Clone)]
pub struct PatchFile {
    /// File name, such as `0001-ring-block-length.patch`.
    pub name: String,
    text: String,
}

/// One file's part of a patch.
pub struct Change<'a> {
    /// Relative to the folder that holds the crates: `mistralrs-core/src/lib.rs`.
    pub path: String,
    pub kind: Kind,
    pub patch: diffy::Patch<'a, str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Modify,
    Create,
    Delete,
}

impl Series {
    /// Versions that have a folder under `patches`, sorted by name.
    pub fn versions(patches: &Path) -> Vec<String> {
        let entries = fs::read_dir(patches).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        let mut versions: Vec<_> = folders
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        versions.sort();
        versions
    }

    /// # Errors
    /// No folder for `version` (names those there are), or a patch that is not a well-formed git-style diff of text
    /// files.
    pub fn load(patches: &Path, version: &str) -> Result<Self> {
        let folder = patches.join(version);
        if !folder.is_dir() {
            bail!(
                "there is no patch series for engine {version}: {}",
                describe_versions(patches)
            );
        }
        let mut paths = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "patch") {
                paths.push(path);
            }
        }
        paths.sort();
        let patches = paths
            .iter()
            .map(|path| PatchFile::read(path))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            version: version.to_owned(),
            patches,
        })
    }

    /// SHA-256 over names and contents.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for part in self.patches.iter().flat_map(|patch| [&patch.name, &patch.text]) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        format!("{:x}", hash.finalize())
    }

    /// First folder of each changed path: the crates the series needs.
    pub fn crates(&self) -> Result<BTreeSet<String>> {
        let mut crates = BTreeSet::new();
        for patch in &self.patches {
            for change in patch.changes()? {
                crates.extend(change.path.split('/').next().map(str::to_owned));
            }
        }
        Ok(crates)
    }
}

/// "patches exist for 0.8.1", for error messages.
pub fn describe_versions(patches: &Path) -> String {
    match Series::versions(patches) {
        versions if versions.is_empty() => format!("{} holds no series", patches.display()),
        versions => format!("patches exist for {}", versions.join(", ")),
    }
}

impl PatchFile {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Result<Self> {
        let mut text = text.into();
        text.truncate(without_signature(&text).len());
        let patch = Self {
            name: name.into(),
            text,
        };
        patch.reject_ignored_lines()?;
        patch.changes()?;
        Ok(patch)
    }

    fn read(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::new(name, text)
    }

    pub fn changes(&self) -> Result<Vec<Change<'_>>> {
        let git = self.text.lines().any(|line| line.starts_with("diff --git "));
        let options = if git {
            ParseOptions::gitdiff()
        } else {
            ParseOptions::unidiff()
        };
        let parsed = PatchSet::parse(&self.text, options);
        parsed
            .map(|file| self.change(file.with_context(|| format!("{} is malformed", self.name))?))
            .collect()
    }

    fn change<'a>(&self, file: diffy::patch_set::FilePatch<'a, str>) -> Result<Change<'a>> {
        let name = &self.name;
        let (kind, path) = match file.operation() {
            FileOperation::Create(path) => (Kind::Create, strip_prefix(path, "b/")),
            FileOperation::Delete(path) => (Kind::Delete, strip_prefix(path, "a/")),
            FileOperation::Modify { original, modified } => {
                let (from, to) = (strip_prefix(original, "a/"), strip_prefix(modified, "b/"));
                ensure!(
                    from == to,
                    "{name} moves {from} to {to}; write it as a deletion and a new file"
                );
                (Kind::Modify, to)
            }
            FileOperation::Rename { from, .. } | FileOperation::Copy { from, .. } => {
                bail!("{name} renames or copies {from}; make the patch with `git diff --no-renames`")
            }
        };
        let inside = Path::new(&path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        ensure!(
            inside && path.contains('/'),
            "{name} names {path:?}, expected a path like a/mistralrs-core/src/lib.rs"
        );
        match file.into_patch() {
            diffy::patch_set::PatchKind::Text(patch) => Ok(Change { path, kind, patch }),
            diffy::patch_set::PatchKind::Binary(_) => bail!("{name} changes {path} as binary; only text is supported"),
        }
    }

    /// The parser follows `git apply` and skips what stands between two diffs. In a patch edited by hand that hides a
    /// hunk which is longer than its header says, or a file without its `diff --git` line; here both are errors.
    fn reject_ignored_lines(&self) -> Result<()> {
        let lines: Vec<_> = self.text.lines().collect();
        let is_header = |at: usize| {
            let starts = |at: usize, prefix| lines.get(at).is_some_and(|line| line.starts_with(prefix));
            starts(at, "--- ") && starts(at + 1, "+++ ")
        };
        let git = lines.iter().any(|line| line.starts_with("diff --git "));
        let mut named = false;
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            let place = || format!("{} line {}", self.name, at + 1);
            if line.starts_with("diff --git ") {
                named = true;
            } else if is_header(at) {
                ensure!(named || !git, "{}: `diff --git` line missing before {line:?}", place());
                named = false;
            } else if let Some(lengths) = hunk_lengths(line) {
                let Some(length) = body_length(&lines[at + 1..], lengths) else {
                    bail!("{}: the hunk is shorter than {line:?} says", place());
                };
                let end = at + 1 + length;
                let next = lines.get(end).copied().unwrap_or_default();
                let signature = next.trim_end() == "--";
                let more = next.starts_with([' ', '+', '-']) && !signature && !is_header(end);
                ensure!(!more, "{}: the hunk is longer than {line:?} says", place());
                at = end;
                continue;
            }
            at += 1;
        }
        Ok(())
    }
}

/// Number of lines that hold `old` and `new` lines of a hunk; `None` when they end before.
fn body_length(lines: &[&str], (mut old, mut new): (usize, usize)) -> Option<usize> {
    let mut length = 0;
    // "\ No newline at end of file" belongs to the line before it.
    while old > 0 || new > 0 || lines.get(length).is_some_and(|line| line.starts_with('\\')) {
        match lines.get(length)?.as_bytes().first() {
            Some(b'-') => old = old.checked_sub(1)?,
            Some(b'+') => new = new.checked_sub(1)?,
            Some(b' ') | None => (old, new) = (old.checked_sub(1)?, new.checked_sub(1)?),
            Some(b'\\') => {}
            Some(_) => return None,
        }
        length += 1;
    }
    Some(length)
}

/// `git format-patch` ends with "-- " and git's version. The parser takes that for a deleted line when the last hunk ends
/// in "No newline at end of file".
fn without_signature(text: &str) -> &str {
    match text.rsplit_once("\n-- \n") {
        Some((patch, version)) if version.trim_end().lines().count() == 1 && version.starts_with(char::is_numeric) => {
            &text[..=patch.len()]
        }
        _ => text,
    }
}

fn strip_prefix(path: &str, prefix: &str) -> String {
    path.strip_prefix(prefix).unwrap_or(path).to_owned()
}

/// Old and new length of `@@ -a,b +c,d @@`.
fn hunk_lengths(line: &str) -> Option<(usize, usize)> {
    let (ranges, _) = line.strip_prefix("@@ -")?.split_once(" @@")?;
    let (old, new) = ranges.split_once(" +")?;
    let length = |range: &str| range.split_once(',').map_or(Some(1), |(_, length)| length.parse().ok());
    Some((length(old)?, length(new)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_FILES: &str = "\
Say why the change is needed.

A list in the message does not confuse the reader:
- first

diff --git a/one/src/lib.rs b/one/src/lib.rs
index 1111111..2222222 100644
--- a/one/src/lib.rs
+++ b/one/src/lib.rs
@@ -1,2 +1,2 @@
 fn kept() {}
-fn old() {}
+fn new() {}
diff --git a/two/src/new.rs b/two/src/new.rs
new file mode 100644
--- /dev/null
+++ b/two/src/new.rs
@@ -0,0 +1 @@
+pub fn added() {}
-- 
2.43.0
";

    #[test]
    fn a_patch_with_message_and_signature_yields_each_file() {
        let patch = PatchFile::new("0001-x.patch", TWO_FILES).unwrap();
        let changes = patch.changes().unwrap();
        let seen: Vec<_> = changes
            .iter()
            .map(|change| (change.path.as_str(), change.kind))
            .collect();
        assert_eq!(
            seen,
            [("one/src/lib.rs", Kind::Modify), ("two/src/new.rs", Kind::Create)]
        );
    }

    #[test]
    fn a_hunk_longer_than_its_header_is_refused_instead_of_cut() {
        let text = TWO_FILES.replace(
            "@@ -0,0 +1 @@\n+pub fn added() {}",
            "@@ -0,0 +1 @@\n+pub fn added() {}\n+lost",
        );
        let error = PatchFile::new("0001-x.patch", text).unwrap_err().to_string();
        assert!(
            error.contains("0001-x.patch line") && error.contains("longer than"),
            "{error}"
        );
    }

    #[test]
    fn a_hunk_shorter_than_its_header_is_refused() {
        let text = TWO_FILES.replace("@@ -1,2 +1,2 @@", "@@ -1,9 +1,9 @@");
        assert!(PatchFile::new("0001-x.patch", text).is_err());
    }

    #[test]
    fn a_file_without_its_git_header_is_refused_instead_of_skipped() {
        let text = TWO_FILES.replace(
            "diff --git a/two/src/new.rs b/two/src/new.rs\nnew file mode 100644\n",
            "",
        );
        let error = PatchFile::new("0001-x.patch", text).unwrap_err().to_string();
        assert!(error.contains("`diff --git` line missing"), "{error}");
    }

    #[test]
    fn a_path_that_leaves_the_engine_is_refused() {
        let text = TWO_FILES.replace("two/src/new.rs", "two/../../etc/new.rs");
        let error = PatchFile::new("0001-x.patch", text).unwrap_err().to_string();
        assert!(error.contains("expected a path like"), "{error}");
    }

    #[test]
    fn a_file_that_holds_no_diff_is_refused() {
        assert!(PatchFile::new("0001-x.patch", "only words\n").is_err());
    }
}
