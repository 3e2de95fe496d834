//! Runs mistralrs-tpq/tests/gpu.rs on the stand-in for the CUDA driver and NCCL.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::{succeed, types};
use crate::workspace::Workspace;

/// Microseconds: the longest that work of a stream is put off, at random.
const JITTER_US: &str = "200";

/// # Errors
/// No C++ compiler, or a test that fails.
pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let started = Instant::now();
    let folder = tempfile::tempdir()?;
    compile(&workspace.root().join("mistralrs-tpq"), folder.path())?;
    let mut tests = types::cargo(workspace, folder.path(), "test", "cuda,nccl")?;
    tests
        .args(["--test", "gpu", "--", "--test-threads", "1"])
        .env("LD_LIBRARY_PATH", folder.path())
        .env("TPQ_SOFT_GPU_JITTER_US", JITTER_US);
    let output = succeed(&mut tests).context("tests/gpu.rs on a stand-in for the GPU")?;
    for line in output.lines().filter(|line| line.starts_with("test result")) {
        eprintln!("tests/gpu.rs without a GPU: {line}");
    }
    eprintln!("soft GPU ({:.1} s)", started.elapsed().as_secs_f64());
    Ok(())
}

/// One library under both names: of two the second would know nothing of the first one's memory.
fn compile(package: &Path, folder: &Path) -> Result<()> {
    let sources = package.join("tests/cuda/soft_gpu");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    command
        .args("-std=c++17 -O2 -Wall -Wextra -Werror -ffp-contract=off -fno-strict-aliasing".split(' '))
        // Its check of longjmp() knows one stack only.
        .arg("-U_FORTIFY_SOURCE")
        .args(["-fPIC", "-shared", "-pthread", "-I"])
        .arg(package.join("kernels"))
        .args(["driver.cpp", "memory.cpp", "nccl.cpp"].map(|source| sources.join(source)))
        .arg("-o")
        .arg(folder.join("libcuda.so"));
    succeed(&mut command).context("the stand-in for the CUDA driver needs a C++17 compiler (CXX or c++)")?;
    let second = folder.join("libnccl.so");
    std::fs::hard_link(folder.join("libcuda.so"), &second).with_context(|| format!("cannot write {}", second.display()))
}
