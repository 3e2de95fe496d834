//! Errors of the configuration. All of them are the user's to fix, so each names the file or variable, the line where it
//! is known, the key, what was found and what would be right.

use std::fmt;
use std::path::PathBuf;

/// A place in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    pub file: PathBuf,
    /// Counted from 1. `None` for a key that is absent or that sits in a form the line finder does not follow.
    pub line: Option<usize>,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file.display()),
            None => write!(f, "{}", self.file.display()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },

    #[error("{at}: not valid YAML: {message}")]
    Syntax { at: At, message: String },

    /// `key` is the full path, `nearest` a sibling key that exists.
    #[error("{at}: unknown key `{key}`{}; keys here: {}", suggestion(nearest.as_deref()), known.join(", "))]
    UnknownKey {
        at: At,
        key: String,
        nearest: Option<String>,
        known: Vec<String>,
    },

    #[error("{at}: `{key}` is {value}, expected {expected}")]
    Value {
        at: At,
        key: String,
        value: String,
        expected: String,
    },

    #[error("{at}: `{key}` is missing: {why}")]
    Missing { at: At, key: String, why: String },

    #[error("environment variable {variable} is `{value}`, expected {expected}")]
    Environment {
        variable: String,
        value: String,
        expected: String,
    },

    #[error("environment variable {variable} is not set: {why}")]
    EnvironmentMissing { variable: String, why: String },

    #[error(
        "rank {rank} (from {rank_from}) is outside the group of {world_size} (from {peers_from}): ranks count from 0"
    )]
    RankOutsideGroup {
        rank: usize,
        rank_from: String,
        world_size: usize,
        peers_from: String,
    },

    #[error(
        "rank {rank} ({peer}, from {peers_from}) is not a loopback address, and the group has no secret: who reaches that \
         port could read prompts and change answers. Make one with `openssl rand -hex 32` and give it to all ranks \
         (TPQ_SECRET_FILE, TPQ_SECRET or `group.secret_file`). On a network you trust, `group.insecure: true` does without"
    )]
    Unprotected {
        rank: usize,
        peer: String,
        peers_from: String,
    },

    /// `reason` never holds the secret.
    #[error("the secret from {from} {reason}")]
    Secret { from: String, reason: String },

    #[error("layer {layer}: {k} outliers of {features} features, expected fewer outliers than features (`calibration.outliers.k`)")]
    TooManyOutliers { layer: String, k: usize, features: usize },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |key| format!(", did you mean `{key}`?"))
}

/// The candidate closest to `word`, when close enough to be a typing error rather than another word.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, &candidate.to_ascii_lowercase()), candidate))
        // 0.75 joins `sequence`/`sequences`, `worldsize`/`world_size` and `timout`/`timeout_s`, but not `rank`/`peers`.
        .filter(|(score, _)| *score >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
