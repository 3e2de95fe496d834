//! Type-checks the crate with the features `cuda` and `nccl`. Its own kernels are compiled in `super`; here a stand-in for nvcc
//! makes empty files, as metadata needs no kernels, and those of candle alone would take three minutes. candle is checked
//! along, for the custom op; the engine is not: its crates under `cuda` are several times as much.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::succeed;
use crate::workspace::Workspace;

const FEATURES: &str = "cuda,nccl,candle";
/// Of the toolkit whose headers cudarc's bindings are chosen for; see `toolkit`.
const VERSION: &str = "13000";

/// # Errors
/// What clippy reports.
pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let started = Instant::now();
    let folder = tempfile::tempdir()?;
    let nvcc = stand_in(folder.path())?;
    for features in ["cuda", FEATURES] {
        let mut cargo = workspace.cargo();
        cargo
            .args([
                "clippy",
                "--quiet",
                "-p",
                "mistralrs-tpq",
                "--lib",
                "--bin",
                "tpq",
                "--no-default-features",
            ])
            .args(["--features", features])
            .args(["--", "-D", "warnings"])
            .env("NVCC", &nvcc)
            .env("CUDA_COMPUTE_CAP", "80")
            .env("CUDARC_CUDA_VERSION", VERSION);
        // What the stand-in made must not be taken for kernels by a build.
        cargo.env("CARGO_TARGET_DIR", workspace.root().join("target/cuda-types"));
        succeed(&mut cargo).with_context(|| format!("clippy with {features}"))?;
    }
    eprintln!("types with {FEATURES} ({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}

/// An nvcc that leaves an empty file where a compiler would leave its result.
fn stand_in(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("nvcc");
    std::fs::write(&path, SCRIPT).with_context(|| format!("cannot write {}", path.display()))?;
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

const SCRIPT: &str = r#"#!/bin/sh
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
