use std::path::PathBuf;

/// Why no checkpoint was written. Nothing is left behind in any of these cases.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// `key` as config.json or [`CheckpointSpec`](super::CheckpointSpec) names it.
    #[error("`{key}` is {got}, expected {expected}")]
    Value {
        key: &'static str,
        got: String,
        expected: String,
    },

    #[error("there is no preset `{name}`{}; presets: {known}", nearest.as_ref().map_or_else(String::new, |near| format!(", did you mean `{near}`?")))]
    UnknownPreset {
        name: String,
        nearest: Option<String>,
        known: String,
    },

    #[error("{} exists and is not an empty folder: name another, or remove it first", dir.display())]
    Exists { dir: PathBuf },

    #[error("{} cannot be used as a tokenizer: {reason}", path.display())]
    Tokenizer { path: PathBuf, reason: String },

    /// `progress` asked for it.
    #[error("interrupted: nothing was written")]
    Cancelled,

    #[error("{what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
}

impl CheckpointError {
    /// Whether the caller has to change an argument, rather than free a disk or a permission.
    pub const fn is_usage(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::Cancelled)
    }

    pub(super) fn value(key: &'static str, got: impl ToString, expected: impl Into<String>) -> Self {
        Self::Value {
            key,
            got: got.to_string(),
            expected: expected.into(),
        }
    }

    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
