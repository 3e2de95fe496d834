//! `cargo xtask build`: the engine and the programs, in release.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use crate::setup;
use crate::steps::Steps;
use crate::workspace::Workspace;

/// # Errors
/// An engine that cannot be set up, or a failed build.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let mut steps = Steps::new(2);
    steps.loud("engine", || Ok(((), setup::ensure(workspace)?)))?;
    steps.loud("build", || Ok(((), Binaries::build(workspace)?.describe(workspace))))?;
    Ok(ExitCode::SUCCESS)
}

/// Where cargo put the two programs.
pub struct Binaries {
    pub tpq: PathBuf,
    pub server: PathBuf,
}

impl Binaries {
    /// Builds, and asks cargo where the results are: `CARGO_TARGET_DIR` and a configured target triple move them.
    ///
    /// # Errors
    /// A failed build, whose diagnostics cargo has shown.
    pub fn build(workspace: &Workspace) -> Result<Self> {
        let mut cargo = workspace.cargo();
        cargo.args(["build", "--release", "-p", "mistralrs-tpq", "--bins"]);
        cargo.args(["--message-format", "json-render-diagnostics"]);
        let output = cargo
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo build")?;
        ensure!(output.status.success(), "cargo build failed, see above");
        Self::locate(&String::from_utf8_lossy(&output.stdout))
    }

    /// Both paths, below the project folder where they are.
    pub fn describe(&self, workspace: &Workspace) -> String {
        let shown = |path: &Path| {
            path.strip_prefix(workspace.root())
                .unwrap_or(path)
                .display()
                .to_string()
        };
        format!("{}, {}", shown(&self.tpq), shown(&self.server))
    }

    fn locate(messages: &str) -> Result<Self> {
        let messages: Vec<Value> = messages
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let built = |name: &str| {
            let artifact = messages
                .iter()
                .find(|message| message["target"]["name"] == name && message["executable"].is_string());
            let path = artifact.and_then(|message| message["executable"].as_str());
            path.map(PathBuf::from)
                .with_context(|| format!("mistralrs-tpq has no binary {name}"))
        };
        Ok(Self {
            tpq: built("tpq")?,
            server: built("mistralrs-server")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binaries_are_found_where_cargo_says() {
        let messages = [
            ("tpq", "/t/release/tpq"),
            ("mistralrs-server", "/t/release/mistralrs-server"),
        ]
        .map(|(name, path)| {
            serde_json::json!({"reason": "compiler-artifact", "target": {"name": name}, "executable": path}).to_string()
        });
        let library = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"tpq\"},\"executable\":null}";
        let binaries = Binaries::locate(&format!("{library}\n{}", messages.join("\n"))).unwrap();
        assert_eq!(binaries.tpq, Path::new("/t/release/tpq"));
        let error = Binaries::locate(&messages[0]).err().unwrap().to_string();
        assert_eq!(error, "mistralrs-tpq has no binary mistralrs-server");
    }
}
