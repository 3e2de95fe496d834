//! The project folder, and how cargo is called in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};

#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder above this xtask. `cargo run` sets the variable, so a moved folder is found too.
    pub fn of_this_project() -> Self {
        let xtask =
            std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        Self::at(xtask.parent().map(Path::to_owned).unwrap_or(xtask))
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn engine(&self) -> PathBuf {
        self.root.join("engine")
    }

    pub fn patches(&self) -> PathBuf {
        self.root.join("patches")
    }

    /// The engine version that mistralrs-tpq is written against: its `mistralrs-core = "=X"` requirement.
    pub fn engine_version(&self) -> Result<String> {
        let path = self.root.join("mistralrs-tpq/Cargo.toml");
        let manifest = read_toml(&path)?;
        let core = manifest
            .get("dependencies")
            .and_then(|table| table.get("mistralrs-core"));
        let requirement = core.and_then(|core| core.as_str().or_else(|| core.get("version")?.as_str()));
        match requirement.and_then(|text| text.trim().strip_prefix('=')) {
            Some(version) => Ok(version.trim().to_owned()),
            None => bail!(
                "{} must pin mistralrs-core to one version (\"=X.Y.Z\"), it has {requirement:?}",
                path.display()
            ),
        }
    }

    /// Crates without a `[patch.crates-io]` entry in the root manifest: cargo would silently build them unpatched.
    pub fn not_redirected<'a>(&self, crates: impl IntoIterator<Item = &'a String>) -> Result<Vec<String>> {
        let manifest = read_toml(&self.root.join("Cargo.toml"))?;
        let redirects = manifest.get("patch").and_then(|patch| patch.get("crates-io"));
        let missing = |name: &&String| redirects.and_then(|table| table.get(name.as_str())).is_none();
        Ok(crates.into_iter().filter(missing).cloned().collect())
    }

    /// `cargo` in the project folder, without the variables that `cargo run` set for xtask itself: build scripts that
    /// watch one of them would run again whenever xtask and a plain `cargo build` alternate.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO_BIN_NAME" {
                command.env_remove(&name);
            }
        }
        command
    }
}

pub fn read_toml(path: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse()
        .with_context(|| format!("{} is not valid TOML", path.display()))
}
