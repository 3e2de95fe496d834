//! Where the group's secret comes from: a variable, a file that a variable names, a file that the configuration names. Never an
//! argument, which every user of the host could read.

use std::io::Read;
use std::path::Path;

use super::error::ConfigError;
use super::plan::Plan;
use super::topology::{Environment, SECRET, SECRET_FILE};
use crate::transport::tcp::Secret;

/// A secret is a line of text; a larger file is another file given by mistake.
const MAX_SECRET_BYTES: u64 = 4096;

impl Plan {
    /// The secret of TPQ_SECRET, else of the file that TPQ_SECRET_FILE or `group.secret_file` names, else none.
    ///
    /// # Errors
    /// A file that cannot be read, a secret that is too short. The secret itself is in no message.
    pub fn secret(&self, environment: &Environment) -> Result<Option<Secret>, ConfigError> {
        if let Some(secret) = environment_secret(environment)? {
            return Ok(Some(secret));
        }
        self.secret_file
            .as_deref()
            .map(|path| read(path, "`group.secret_file`"))
            .transpose()
    }
}

/// The secret of TPQ_SECRET, else of the file that TPQ_SECRET_FILE names, else none.
///
/// # Errors
/// As for [`Plan::secret`].
pub fn environment_secret(environment: &Environment) -> Result<Option<Secret>, ConfigError> {
    if let Some(text) = environment.get(SECRET) {
        return parse(text.as_encoded_bytes(), SECRET.to_owned()).map(Some);
    }
    let path = environment.get(SECRET_FILE);
    path.map(|path| read(Path::new(path), SECRET_FILE)).transpose()
}

fn read(path: &Path, named_by: &str) -> Result<Secret, ConfigError> {
    let from = format!("{} ({named_by})", path.display());
    let mut text = Vec::new();
    let file = std::fs::File::open(path).and_then(|file| file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut text));
    if let Err(error) = file {
        let reason = format!("cannot be read: {error}");
        return Err(ConfigError::Secret { from, reason });
    }
    if text.len() as u64 > MAX_SECRET_BYTES {
        let reason = format!("is larger than {MAX_SECRET_BYTES} bytes: not a secret");
        return Err(ConfigError::Secret { from, reason });
    }
    warn_if_open(path);
    parse(&text, from)
}

fn parse(text: &[u8], from: String) -> Result<Secret, ConfigError> {
    Secret::new(text).map_err(|error| ConfigError::Secret {
        from,
        reason: format!("cannot be used: {error}"),
    })
}

/// Orchestrators mount secrets with modes that they alone choose, so this cannot be an error.
fn warn_if_open(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
        tracing::warn!("{} can be read by other users of this host: chmod 600", path.display());
    }
}
