//! Applying patches in memory, so that a failing one leaves nothing half-written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use diffy::{Line, Patch};

use super::series::{Change, Kind, PatchFile};

/// The unpatched crates: folder name in the patches -> folder on disk.
#[derive(Debug, Clone)]
pub struct Base {
    /// Engine version, for messages.
    pub version: String,
    pub crates: BTreeMap<String, PathBuf>,
}

impl Base {
    /// All crates in one folder, under their own names.
    pub fn in_folder(version: &str, folder: &Path, crates: &BTreeSet<String>) -> Self {
        let crates = crates.iter().map(|name| (name.clone(), folder.join(name))).collect();
        Self {
            version: version.to_owned(),
            crates,
        }
    }

    fn locate(&self, path: &str) -> Option<PathBuf> {
        let (name, rest) = path.split_once('/')?;
        Some(self.crates.get(name)?.join(rest))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Reverse,
}

/// Why a patch does not fit. The engine or the series must change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    #[error(transparent)]
    Hunk(Box<FailedHunk>),
    #[error("{patch} changes {target}, which engine {version} does not have")]
    Missing {
        patch: String,
        target: String,
        version: String,
    },
    #[error("{patch} creates {target}, which engine {version} has already")]
    Exists {
        patch: String,
        target: String,
        version: String,
    },
    #[error("{patch} deletes {target}, but in engine {version} the file has more lines than the patch takes away")]
    NotEmptied {
        patch: String,
        target: String,
        version: String,
    },
    #[error("{patch}: cannot read {target} of engine {version}: {source}")]
    Unreadable {
        patch: String,
        target: String,
        version: String,
        source: io::Error,
    },
    #[error("{patch} is malformed: {reason}")]
    Malformed { patch: String, reason: String },
}

#[derive(Debug, thiserror::Error)]
#[error("{patch}: hunk {number} of {of} does not apply to {target} of engine {version}\n  {header}\n{lines}")]
pub struct FailedHunk {
    pub patch: String,
    pub target: String,
    pub version: String,
    /// From 1, among the `of` hunks for this file.
    pub number: usize,
    pub of: usize,
    pub header: String,
    /// The lines it needs, and those that stand in their place.
    pub lines: String,
}

/// What was changed: path -> new content, or `None` for a file that goes away.
pub type Changes = BTreeMap<String, Option<String>>;

#[derive(Debug, Clone)]
pub struct Overlay<'b> {
    base: &'b Base,
    changes: Changes,
}

impl<'b> Overlay<'b> {
    pub fn new(base: &'b Base) -> Self {
        Self {
            base,
            changes: Changes::new(),
        }
    }

    pub fn into_changes(self) -> Changes {
        self.changes
    }

    /// Applies the whole patch or nothing of it. Lines may have moved; each line of a hunk must match exactly.
    ///
    /// # Errors
    /// The first part that does not fit.
    pub fn apply(&mut self, patch: &PatchFile, direction: Direction) -> Result<(), Rejected> {
        let malformed = |error: anyhow::Error| Rejected::Malformed {
            patch: patch.name.clone(),
            reason: format!("{error:#}"),
        };
        let mut staged = Changes::new();
        for change in patch.changes().map_err(malformed)? {
            let content = match staged.get(&change.path) {
                Some(content) => content.clone(),
                None => self.read(patch, &change.path)?,
            };
            let site = Site {
                patch: &patch.name,
                target: &change.path,
                version: &self.base.version,
            };
            let content = site.change(content, &change, direction)?;
            staged.insert(change.path, content);
        }
        self.changes.extend(staged);
        Ok(())
    }

    fn read(&self, patch: &PatchFile, path: &str) -> Result<Option<String>, Rejected> {
        if let Some(content) = self.changes.get(path) {
            return Ok(content.clone());
        }
        let Some(file) = self.base.locate(path) else {
            return Ok(None);
        };
        match fs::read_to_string(file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Rejected::Unreadable {
                patch: patch.name.clone(),
                target: path.to_owned(),
                version: self.base.version.clone(),
                source,
            }),
        }
    }
}

/// The place an error message names.
struct Site<'a> {
    patch: &'a str,
    target: &'a str,
    version: &'a str,
}

impl Site<'_> {
    fn change(
        &self,
        content: Option<String>,
        change: &Change<'_>,
        direction: Direction,
    ) -> Result<Option<String>, Rejected> {
        let (patch, target, version) = (self.patch.to_owned(), self.target.to_owned(), self.version.to_owned());
        let reversed;
        let (kind, diff) = match (direction, change.kind) {
            (Direction::Forward, kind) => (kind, &change.patch),
            (Direction::Reverse, kind) => {
                reversed = change.patch.reverse();
                let kind = match kind {
                    Kind::Modify => Kind::Modify,
                    Kind::Create => Kind::Delete,
                    Kind::Delete => Kind::Create,
                };
                (kind, &reversed)
            }
        };
        match (kind, content) {
            (Kind::Create, Some(_)) => Err(Rejected::Exists { patch, target, version }),
            (Kind::Modify | Kind::Delete, None) => Err(Rejected::Missing { patch, target, version }),
            (Kind::Create, None) => Ok(Some(self.hunks("", diff)?)),
            (Kind::Modify, Some(text)) => Ok(Some(self.hunks(&text, diff)?)),
            (Kind::Delete, Some(text)) => match self.hunks(&text, diff)?.is_empty() {
                true => Ok(None),
                false => Err(Rejected::NotEmptied { patch, target, version }),
            },
        }
    }

    fn hunks(&self, text: &str, diff: &Patch<'_, str>) -> Result<String, Rejected> {
        diffy::apply(text, diff).map_err(|error| {
            // The hunk's number is only in the message, "error applying hunk #2".
            let number = error
                .to_string()
                .rsplit('#')
                .next()
                .and_then(|digits| digits.parse().ok())
                .unwrap_or(1);
            let hunk = &diff.hunks()[usize::min(number, diff.hunks().len()).saturating_sub(1)];
            let (old, new) = (hunk.old_range(), hunk.new_range());
            let context = hunk.function_context().unwrap_or_default().trim_end();
            let header = format!(
                "@@ -{},{} +{},{} @@ {context}",
                old.start(),
                old.len(),
                new.start(),
                new.len()
            );
            Rejected::Hunk(Box::new(FailedHunk {
                patch: self.patch.to_owned(),
                target: self.target.to_owned(),
                version: self.version.to_owned(),
                number,
                of: diff.hunks().len(),
                header: header.trim_end().to_owned(),
                lines: expected_and_found(text, hunk.lines(), old.start()),
            }))
        })
    }
}

/// The lines the hunk needs and what stands there, with `>` at those that differ.
fn expected_and_found(text: &str, lines: &[Line<'_, str>], start: usize) -> String {
    let needed = lines.iter().filter_map(|line| match line {
        Line::Context(line) | Line::Delete(line) => Some(line.trim_end_matches('\n')),
        Line::Insert(_) => None,
    });
    let mut present = text.split('\n').skip(start.saturating_sub(1));
    let (mut expected, mut found) = (String::new(), String::new());
    for need in needed {
        let have = present.next();
        let mark = if have == Some(need) { ' ' } else { '>' };
        let _ = writeln!(expected, "  {mark} {need}");
        let _ = writeln!(found, "  {mark} {}", have.unwrap_or("(end of file)"));
    }
    let endings = match text.contains("\r\n") && !lines.is_empty() {
        true => "\n  the file has CRLF line endings; git's core.autocrlf changes them on checkout",
        false => "",
    };
    format!(
        "  expected:\n{expected}  found at line {start}:\n{}{endings}",
        found.trim_end_matches('\n')
    )
}
