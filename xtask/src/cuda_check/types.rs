//! Cargo with the features `cuda` and `nccl`. The crate's own kernels are compiled in `super`; here a stand-in for nvcc makes
//! empty files: metadata needs no kernels, the engine's would take an hour, and the stand-in for the driver brings its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::succeed;
use crate::workspace::Workspace;

/// Of the toolkit whose headers cudarc's bindings are chosen for; see `toolkit`.
const VERSION: &str = "13000";

/// Types of the crate alone and with the engine.
///
/// # Errors
/// What clippy reports.
pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let started = Instant::now();
    let folder = tempfile::tempdir()?;
    let alone = ["--lib", "--bins", "--test", "gpu"];
    let with_engine = ["--lib", "--bins"];
    for (features, targets) in [
        ("cuda", &alone[..]),
        ("cuda,nccl", &alone),
        ("engine,cuda,nccl", &with_engine),
    ] {
        let mut clippy = cargo(workspace, folder.path(), "clippy", features)?;
        clippy.args(targets).args(["--", "-D", "warnings"]);
        succeed(&mut clippy).with_context(|| format!("clippy with {features}"))?;
    }
    eprintln!(
        "types with cuda and nccl, alone and with the engine ({:.1} s)",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// `cargo COMMAND` of the crate with these features; `folder` is for the stand-in.
pub(super) fn cargo(workspace: &Workspace, folder: &Path, command: &str, features: &str) -> Result<Command> {
    let mut cargo = workspace.cargo();
    cargo
        .args([command, "--quiet", "-p", "mistralrs-tpq", "--no-default-features"])
        .args(["--features", features])
        // What the stand-in made must not be taken for kernels by a build.
        .env("CARGO_TARGET_DIR", workspace.root().join("target/cuda-types"));
    use_stand_in(&mut cargo, folder)?;
    Ok(cargo)
}

/// Makes `cargo` take a stand-in for nvcc, in `folder`, and one for git, with which builders of kernels fetch headers.
pub(crate) fn use_stand_in(cargo: &mut Command, folder: &Path) -> Result<()> {
    let nvcc = stand_in(folder, "nvcc", NVCC)?;
    stand_in(folder, "git", GIT)?;
    let mut path = folder.as_os_str().to_owned();
    if let Some(inherited) = std::env::var_os("PATH") {
        path.push(":");
        path.push(inherited);
    }
    // The builders of kernels ask for it, and the engine's build scripts run what is in PATH.
    cargo.env("NVCC", &nvcc).env("PATH", path);
    // Else those headers would be missing from later builds.
    cargo.env("CUDAFORGE_HOME", folder.join("fetched"));
    cargo.env("CUDA_COMPUTE_CAP", "80").env("CUDARC_CUDA_VERSION", VERSION);
    Ok(())
}

fn stand_in(folder: &Path, name: &str, script: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    std::fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    make_executable(&path)?;
    Ok(path)
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn make_executable(_path: &Path) -> Result<()> {
    Ok(())
}

/// Leaves an empty file where a compiler would leave its result.
const NVCC: &str = r#"#!/bin/sh
folder= out= source=
while [ $# -gt 0 ]; do
    case "$1" in
        --output-directory) folder=$2; shift ;;
        -o) out=$2; shift ;;
        *.cu) source=$1 ;;
        --version) printf 'nvcc: NVIDIA (R) Cuda compiler driver\n\n\nCuda compilation tools, release 13.0, V13.0.0\n' ;;
    esac
    shift
done
if [ -n "$out" ]; then : > "$out"; fi
if [ -n "$folder" ] && [ -n "$source" ]; then : > "$folder/$(basename "$source" .cu).ptx"; fi
"#;

/// Leaves an empty folder where a repository would be.
const GIT: &str = r#"#!/bin/sh
for last; do :; done
if [ "$1" = clone ]; then mkdir -p "$last"; fi
"#;
