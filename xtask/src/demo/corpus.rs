//! Calibration and held-out text from the project itself, so that the demo downloads nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use walkdir::{DirEntry, WalkDir};

/// Files of one half, in path order.
#[derive(Debug, Default)]
pub struct Half {
    pub files: usize,
    pub text: String,
}

#[derive(Debug, Default)]
pub struct Corpus {
    pub calibration: Half,
    pub held_out: Half,
}

/// About 8,000 tokens of the demo models, whose tokenizer makes 3 to 4 bytes a token.
pub const MIN_CALIBRATION_BYTES: usize = 32_000;
/// About 2,000 tokens: enough that a perplexity repeats to a few percent between halves.
pub const MIN_HELD_OUT_BYTES: usize = 8_000;

/// Folders whose files are held out. By path and not by number, so that a new file moves no other one across.
const HELD_OUT: [&str; 3] = ["tests", "docs", "benches"];
const SKIPPED: [&str; 4] = ["target", "engine", "runs", "node_modules"];

impl Corpus {
    /// Collects Markdown and Rust files below `root`.
    ///
    /// # Errors
    /// An unreadable file, or a half that is too short to say anything.
    pub fn collect(root: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in WalkDir::new(root)
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !skipped(entry))
        {
            let entry = entry.context("cannot list the project's files")?;
            let extension = entry.path().extension().and_then(|extension| extension.to_str());
            if entry.file_type().is_file() && matches!(extension, Some("rs" | "md")) {
                let relative = entry.path().strip_prefix(root)?.to_owned();
                files.insert(relative, entry.into_path());
            }
        }
        let mut corpus = Self::default();
        for (relative, path) in files {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let half = if held_out(&relative) {
                &mut corpus.held_out
            } else {
                &mut corpus.calibration
            };
            half.files += 1;
            half.text.push_str(&text);
            half.text.push('\n');
        }
        corpus.long_enough(root)
    }

    fn long_enough(self, root: &Path) -> Result<Self> {
        let halves = [
            ("calibration", &self.calibration, MIN_CALIBRATION_BYTES),
            ("held-out", &self.held_out, MIN_HELD_OUT_BYTES),
        ];
        for (name, half, least) in halves {
            ensure!(
                half.text.len() >= least,
                "the {name} text below {} is too short: {} bytes in {} files, expected at least {least}",
                root.display(),
                half.text.len(),
                half.files
            );
        }
        Ok(self)
    }

    /// Writes `calibration.txt` and `held-out.txt`.
    pub fn write(&self, folder: &Path) -> Result<(PathBuf, PathBuf)> {
        let paths = (folder.join("calibration.txt"), folder.join("held-out.txt"));
        fs::write(&paths.0, &self.calibration.text).context("cannot write the calibration text")?;
        fs::write(&paths.1, &self.held_out.text).context("cannot write the held-out text")?;
        Ok(paths)
    }
}

fn held_out(relative: &Path) -> bool {
    let mut folders = relative.parent().into_iter().flat_map(Path::components);
    folders.any(|part| HELD_OUT.iter().any(|name| part.as_os_str() == *name))
}

fn skipped(entry: &DirEntry) -> bool {
    let name = entry.file_name().to_string_lossy();
    name.starts_with('.') || entry.file_type().is_dir() && SKIPPED.contains(&name.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(files: &[(&str, usize)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let line = format!("// {}\n", path.file_stem().unwrap().to_string_lossy());
            fs::write(path, line.repeat(bytes / line.len() + 1)).unwrap();
        }
        root
    }

    const ENOUGH: [(&str, usize); 4] = [
        ("README.md", 20_000),
        ("lib/src/code.rs", 20_000),
        ("lib/tests/held.rs", 9_000),
        ("docs/guide.md", 9_000),
    ];

    #[test]
    fn tests_and_docs_are_held_out_and_nothing_is_in_both_halves() {
        let root = project(&ENOUGH);
        let corpus = Corpus::collect(root.path()).unwrap();
        assert_eq!((corpus.calibration.files, corpus.held_out.files), (2, 2));
        assert!(corpus.held_out.text.contains("// held") && corpus.held_out.text.contains("// guide"));
        assert!(!corpus.calibration.text.contains("// held") && !corpus.calibration.text.contains("// guide"));
    }

    #[test]
    fn a_new_file_moves_no_other_file_to_the_other_half() {
        let before = Corpus::collect(project(&ENOUGH).path()).unwrap();
        let mut files = ENOUGH.to_vec();
        files.push(("lib/src/another.rs", 500));
        let after = Corpus::collect(project(&files).path()).unwrap();
        assert_eq!(before.held_out.text, after.held_out.text);
    }

    #[test]
    fn engine_and_build_results_are_not_the_projects_own_text() {
        let mut files = ENOUGH.to_vec();
        files.extend([
            ("engine/core/src/foreign.rs", 90),
            ("target/doc/foreign.md", 90),
            (".git/foreign.md", 90),
        ]);
        let corpus = Corpus::collect(project(&files).path()).unwrap();
        assert_eq!(corpus.calibration.files, 2);
        assert!(!corpus.calibration.text.contains("foreign"));
    }

    #[test]
    fn too_little_held_out_text_is_an_error_that_says_how_much_is_needed() {
        let root = project(&ENOUGH[..2]);
        let error = Corpus::collect(root.path()).unwrap_err().to_string();
        assert!(error.starts_with("the held-out text below"), "{error}");
        assert!(error.ends_with("0 bytes in 0 files, expected at least 8000"), "{error}");
    }
}
