//! NVIDIA's compiler from PyPI wheels, unpacked into a folder of target/ and kept there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};

/// 13.0 matches a driver of the 580 series.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
];
const PYTHONS: [&str; 2] = ["python3", "python"];

/// A compiler that has answered `--version`.
#[derive(Debug)]
pub struct Toolkit {
    nvcc: PathBuf,
}

impl Toolkit {
    /// The compiler in `folder`, fetched if it is not there. The inner error says why it cannot be had on this machine:
    /// no Python, or no wheels within reach.
    ///
    /// # Errors
    /// A folder that cannot be written, or wheels without a working compiler.
    pub fn install(folder: &Path) -> Result<Result<Self, String>> {
        let toolkit = Self {
            nvcc: folder.join("nvidia/cu13/bin/nvcc"),
        };
        if !toolkit.nvcc.exists() {
            if let Err(reason) = fetch(folder)? {
                return Ok(Err(reason));
            }
        }
        let version = toolkit.nvcc().arg("--version").stdout(Stdio::null()).status();
        let version = version.with_context(|| format!("cannot run {}", toolkit.nvcc.display()))?;
        ensure!(version.success(), "{} --version: {version}", toolkit.nvcc.display());
        Ok(Ok(toolkit))
    }

    pub fn nvcc(&self) -> Command {
        Command::new(&self.nvcc)
    }
}

/// Into a folder beside `folder`, renamed when complete, so that an interrupted download is not taken for a compiler.
fn fetch(folder: &Path) -> Result<Result<(), String>> {
    let Some(python) = PYTHONS.into_iter().find(|python| has_pip(python)) else {
        return Ok(Err("no Python with pip, which fetches the compiler's wheels".into()));
    };
    let unfinished = folder.with_extension("unfinished");
    let _ = std::fs::remove_dir_all(&unfinished);
    eprintln!("fetching the CUDA compiler (PyPI wheels) into {}", folder.display());
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
        .arg(&unfinished)
        .args(WHEELS);
    let output = pip.output().context("cannot run pip")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text
            .lines()
            .rfind(|line| line.starts_with("ERROR"))
            .unwrap_or("no reason given");
        return Ok(Err(format!("the compiler's wheels cannot be had here: {last}")));
    }
    let _ = std::fs::remove_dir_all(folder);
    std::fs::rename(&unfinished, folder).with_context(|| format!("cannot rename to {}", folder.display()))?;
    Ok(Ok(()))
}

fn has_pip(python: &str) -> bool {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    pip.status().is_ok_and(|status| status.success())
}
