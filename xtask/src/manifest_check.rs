//! `cargo xtask manifest-check`: examples/multi-host against the schemas of Kubernetes and of compose files, without either
//! installed: the validators are PyPI wheels (22 MB to fetch, once, into target/). What the files mean is tested in
//! mistralrs-tpq/tests/multi_host.rs, and the systemd unit there, too.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{ensure, Context, Result};

use crate::wheels;
use crate::workspace::Workspace;

const WHEELS: [&str; 2] = ["kubernetes-validate==1.37.*", "check-jsonschema==0.39.*"];
const FOLDER: &str = "examples/multi-host";

/// Module, what it is told, file. The oldest version that the manifest says it is for, and the newest the wheel knows.
const CHECKS: [(&str, &[&str], &str); 3] = [
    (
        "kubernetes_validate",
        &["--strict", "-k", "1.28"],
        "kubernetes/statefulset.yaml",
    ),
    ("kubernetes_validate", &["--strict"], "kubernetes/statefulset.yaml"),
    (
        "check_jsonschema",
        &["--builtin-schema", "vendor.compose-spec"],
        "compose.yaml",
    ),
];

/// # Errors
/// A file that its schema refuses.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    check(workspace)?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// As [`run`].
pub fn check(workspace: &Workspace) -> Result<()> {
    let tools = workspace.root().join("target/manifest-tools");
    if !tools.exists() {
        if let Err(reason) = wheels::fetch("the schema validators", &tools, &WHEELS, &[])? {
            eprintln!("manifest-check skipped: {reason}");
            return Ok(());
        }
    }
    for (module, words, file) in CHECKS {
        let path = workspace.root().join(FOLDER).join(file);
        validate(&tools, module, words, &path)?;
    }
    Ok(())
}

fn validate(tools: &Path, module: &str, words: &[&str], file: &Path) -> Result<()> {
    let mut python = Command::new(wheels::python().context("no Python with pip")?);
    python
        .env("PYTHONPATH", tools)
        .args(["-m", module])
        .args(words)
        .arg(file);
    let status = python.status().with_context(|| format!("cannot run {module}"))?;
    ensure!(status.success(), "{} is not valid: see above", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the validators have been fetched: a check that accepts everything would be none.
    #[test]
    fn a_misspelt_key_is_refused() {
        let workspace = Workspace::of_this_project();
        let tools = workspace.root().join("target/manifest-tools");
        if !tools.exists() {
            eprintln!("not checked: cargo xtask manifest-check fetches the validators");
            return;
        }
        let copy = tempfile::tempdir().unwrap();
        for ((module, words, file), (right, wrong)) in CHECKS.into_iter().zip([
            ("replicas:", "replica:"),
            ("serviceName:", "servicename:"),
            ("restart:", "restrat:"),
        ]) {
            let text = std::fs::read_to_string(workspace.root().join(FOLDER).join(file)).unwrap();
            assert!(text.contains(right), "{file}");
            let path = copy.path().join("wrong.yaml");
            std::fs::write(&path, text.replace(right, wrong)).unwrap();
            let error = validate(&tools, module, words, &path).unwrap_err().to_string();
            assert!(error.contains("is not valid"), "{error}");
        }
    }
}
