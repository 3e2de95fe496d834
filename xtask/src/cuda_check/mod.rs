//! `cargo xtask cuda-check`: compiles the CUDA kernels for every architecture without a GPU, with NVIDIA's own compiler from
//! PyPI wheels (104 MB to fetch, once, into target/). Fails on a compile error, a warning, a spilled register, or an
//! instruction that would change bits: a fused multiply-add, a flush to zero, an approximation. Before that it type-checks the
//! features `cuda` and `nccl`, with the engine and without, and runs exchanges between GPUs on a stand-in for the driver.

mod soft_gpu;
mod toolkit;
pub(crate) mod types;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};

use crate::setup;
use crate::workspace::Workspace;
use toolkit::Toolkit;

/// A100, RTX 30, RTX 40 and L40, H100 and H200.
const ARCHITECTURES: [u32; 4] = [80, 86, 89, 90];
const FLAGS: [&str; 4] = ["-std=c++17", "-O3", "--fmad=false", "-Werror=all-warnings"];

/// # Errors
/// A kernel that does not compile, spills, or would give other bits than the specification.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    // The workspace's manifest names the engine's crates, though none is compiled here.
    eprintln!("{}", setup::ensure(workspace)?);
    check(workspace)?;
    Ok(ExitCode::SUCCESS)
}

/// As [`run`], where the engine is set up.
///
/// # Errors
/// As [`run`].
pub fn check(workspace: &Workspace) -> Result<()> {
    soft_gpu::check(workspace)?;
    types::check(workspace)?;
    let toolkit = match Toolkit::install(&workspace.root().join("target/cuda-toolkit"))? {
        Ok(toolkit) => toolkit,
        Err(reason) => {
            eprintln!("cuda-check skipped: {reason}");
            return Ok(());
        }
    };
    let out = tempfile::tempdir()?;
    for source in sources(&workspace.root().join("mistralrs-tpq/kernels"))? {
        for architecture in ARCHITECTURES {
            let started = Instant::now();
            let kernels = compile(&toolkit, &source, architecture, out.path())?;
            report(&source, architecture, &kernels, started.elapsed().as_secs_f64());
            let spilled: Vec<_> = kernels.iter().filter(|kernel| kernel.spilled_bytes > 0).collect();
            ensure!(spilled.is_empty(), "sm_{architecture}: registers spilled: {spilled:?}");
        }
        let lowest = ARCHITECTURES[0];
        let inexact = inexact_instructions(&ptx(&toolkit, &source, lowest, out.path())?);
        ensure!(
            inexact.is_empty(),
            "instructions that change bits: {}",
            inexact.join("; ")
        );
    }
    Ok(())
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut sources = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect::<Vec<_>>();
    sources.sort();
    ensure!(!sources.is_empty(), "no kernels in {}", folder.display());
    Ok(sources)
}

/// What `ptxas` says of one kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kernel {
    name: String,
    registers: u32,
    spilled_bytes: u32,
}

fn compile(toolkit: &Toolkit, source: &Path, architecture: u32, out: &Path) -> Result<Vec<Kernel>> {
    let mut nvcc = toolkit.nvcc();
    nvcc.args(FLAGS)
        .args(["-cubin", "-Xptxas", "-v", &format!("-arch=sm_{architecture}"), "-o"])
        .arg(out.join("kernels.cubin"))
        .arg(source);
    let kernels = parse_ptxas(&succeed(&mut nvcc)?);
    ensure!(!kernels.is_empty(), "ptxas named no kernel of {}", source.display());
    Ok(kernels)
}

fn ptx(toolkit: &Toolkit, source: &Path, architecture: u32, out: &Path) -> Result<String> {
    let path = out.join("kernels.ptx");
    let mut nvcc = toolkit.nvcc();
    nvcc.args(FLAGS)
        .args(["-ptx", &format!("-arch=compute_{architecture}"), "-o"])
        .arg(&path)
        .arg(source);
    succeed(&mut nvcc)?;
    Ok(std::fs::read_to_string(path)?)
}

/// Runs a compiler; its output, both streams, for a person when it fails and for the parser when it does not.
fn succeed(compiler: &mut Command) -> Result<String> {
    let name = compiler.get_program().to_string_lossy().into_owned();
    let output = compiler.output().with_context(|| format!("cannot run {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{name} ended with {}:\n{text}", output.status);
    }
    Ok(text)
}

fn parse_ptxas(text: &str) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            kernels.push(Kernel {
                name: rest.split('\'').next().unwrap_or_default().to_owned(),
                registers: 0,
                spilled_bytes: 0,
            });
        } else if let Some(kernel) = kernels.last_mut() {
            if let Some(bytes) = number_before(line, " bytes spill stores") {
                kernel.spilled_bytes = bytes + number_before(line, " bytes spill loads").unwrap_or(0);
            }
            if let Some(registers) = number_before(line, " registers") {
                kernel.registers = registers;
            }
        }
    }
    kernels
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    let before = line.split(unit).next().filter(|before| before.len() < line.len())?;
    before.split_whitespace().next_back()?.parse().ok()
}

/// Lines of PTX that round otherwise than the specification: fused, flushed, approximate.
fn inexact_instructions(ptx: &str) -> Vec<String> {
    let inexact = |line: &&str| {
        let instruction = line
            .split_whitespace()
            .find(|word| !word.starts_with('@'))
            .unwrap_or_default();
        let (operation, modifiers) = instruction.split_once('.').unwrap_or((instruction, ""));
        let fused = (operation == "fma" || operation == "mad") && modifiers.contains('f');
        fused || modifiers.contains("ftz") || modifiers.contains("approx")
    };
    let mut found: Vec<String> = ptx.lines().filter(inexact).map(|line| line.trim().to_owned()).collect();
    found.dedup();
    found
}

fn report(source: &Path, architecture: u32, kernels: &[Kernel], seconds: f64) {
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    eprintln!(
        "{name} for sm_{architecture}: {} kernels ({seconds:.1} s)",
        kernels.len()
    );
    eprintln!("  registers  spilled bytes  kernel");
    for kernel in kernels {
        eprintln!(
            "  {:>9}  {:>13}  {}",
            kernel.registers, kernel.spilled_bytes, kernel.name
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_spills_are_read_from_what_ptxas_prints() {
        let text = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'tpq_encode_paper_f32' for 'sm_90'\n\
            ptxas info    : Function properties for tpq_encode_paper_f32\n    \
            16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Used 56 registers, used 0 barriers\n";
        let expected = Kernel {
            name: "tpq_encode_paper_f32".into(),
            registers: 56,
            spilled_bytes: 12,
        };
        assert_eq!(parse_ptxas(text), [expected]);
    }

    #[test]
    fn only_instructions_that_change_bits_are_refused() {
        let exact =
            "mul.rn.f32 %f1, %f2, %f3;\n@%p1 bra $L;\nmad.lo.s32 %r1, %r2, %r3, %r4;\ncvt.rn.f16.f32 %rs, %f;\n";
        assert!(inexact_instructions(exact).is_empty());
        for line in [
            "fma.rn.f32 %f1, %f2, %f3, %f4;",
            "mul.ftz.f32 %f1, %f2, %f3;",
            "@%p2 div.approx.f32 %f1, %f2, %f3;",
        ] {
            assert_eq!(inexact_instructions(&format!("\t{line}\n")), [line], "{line}");
        }
    }
}
