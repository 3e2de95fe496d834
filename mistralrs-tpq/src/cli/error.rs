use crate::config::ConfigError;
use crate::manifest::ManifestError;
use crate::report::plot::PlotError;

/// Why a command ended early; decides the exit code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Arguments that clap cannot check, such as a layer that the manifest does not have.
    #[error("{0}")]
    Usage(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error(transparent)]
    Plot(#[from] PlotError),
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl CliError {
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }

    /// 2 when the user has to change an argument or a file, 1 otherwise.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Manifest(_) | Self::Usage(_) => 2,
            Self::Io { .. } | Self::Plot(_) | Self::Failed(_) => 1,
        }
    }
}
