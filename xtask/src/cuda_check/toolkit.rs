//! NVIDIA's compiler from PyPI wheels, unpacked into a folder of target/ and kept there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};

use crate::wheels;

/// 13.0 matches a driver of the 580 series.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
];

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
            if let Err(reason) = wheels::fetch("the CUDA compiler", folder, &WHEELS, &["--no-deps"])? {
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
