//! `cargo xtask test` and `cargo xtask ci`.
//!
//! Cost on two cores from an empty target folder: the engine is compiled once for clippy and rustdoc (metadata only)
//! and once for tests and demo; cargo cannot share the two. So everything that can fail without the engine comes first,
//! then lints and docs, then the build, which tests and demo share.

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};

use crate::args::TestArgs;
use crate::cuda_check;
use crate::manifest_check;
use crate::setup;
use crate::workspace::Workspace;

const XTASK: [&str; 2] = ["--manifest-path", "xtask/Cargo.toml"];
const CRATE: [&str; 2] = ["-p", "mistralrs-tpq"];
/// What `cargo build` leaves out: the engine's command, and a program of one's own. They share the engine's build.
const PROGRAMS: [&str; 4] = ["-p", "mistralrs-cli", "-p", "embed"];
/// The profile of the binaries: tests with the engine and the demo share one build of it.
const RELEASE: [&str; 1] = ["--release"];
const WITHOUT_ENGINE: [&str; 1] = ["--no-default-features"];
const DENY_WARNINGS: [&str; 3] = ["--", "-D", "warnings"];

/// # Errors
/// The first command that failed.
pub fn test(workspace: &Workspace, options: &TestArgs) -> Result<ExitCode> {
    let mut run = Run::new(workspace);
    run.tests(options.quick)?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// The first step that failed.
pub fn ci(workspace: &Workspace) -> Result<ExitCode> {
    let mut run = Run::new(workspace);
    run.step("fmt (xtask)", &[&["fmt"], &XTASK[..], &["--", "--check"]])?;
    run.step(
        "clippy (xtask)",
        &[&["clippy"], &XTASK[..], &["--all-targets"], &DENY_WARNINGS[..]],
    )?;
    run.setup()?;
    // Not `--all`: that would format the engine crates too, which are path dependencies.
    run.step("fmt", &[&["fmt"], &CRATE[..], &["-p", "embed", "--", "--check"]])?;
    // `-D warnings` after `--` reaches workspace members only, so warnings of the engine crates fail nothing.
    let clippy: [&[&str]; 3] = [&["clippy"], &CRATE, &["--all-targets"]];
    run.step(
        "clippy without the engine",
        &[clippy.as_slice(), &[&WITHOUT_ENGINE, &DENY_WARNINGS]].concat(),
    )?;
    // In the profile of the build, whose build scripts (CMake, C) and procedural macros it then shares.
    run.step("clippy", &[clippy.as_slice(), &[&RELEASE, &DENY_WARNINGS]].concat())?;
    let example: [&[&str]; 4] = [&["clippy", "-p", "embed"], &["--all-targets"], &RELEASE, &DENY_WARNINGS];
    run.step("clippy (examples/embed)", &example)?;
    let deny = [("RUSTDOCFLAGS", "-D warnings")];
    run.step_with("doc", &[&["doc"], &CRATE[..], &RELEASE, &["--no-deps"]], &deny)?;
    run.step_with("doc (xtask)", &[&["doc"], &XTASK[..], &["--no-deps"]], &deny)?;
    run.timed("cuda-check", || cuda_check::check(workspace))?;
    run.timed("manifest-check", || manifest_check::check(workspace))?;
    run.tests(false)?;
    run.demo()?;
    run.summary();
    Ok(ExitCode::SUCCESS)
}

struct Run<'a> {
    workspace: &'a Workspace,
    timings: Vec<(String, f64)>,
    engine_ready: bool,
}

impl<'a> Run<'a> {
    fn new(workspace: &'a Workspace) -> Self {
        Self {
            workspace,
            timings: Vec::new(),
            engine_ready: false,
        }
    }

    fn tests(&mut self, quick: bool) -> Result<()> {
        self.step("tests of xtask", &[&["test"], &XTASK[..]])?;
        self.setup()?;
        let nextest = self.has_nextest();
        let runner: &[&str] = if nextest { &["nextest", "run"] } else { &["test"] };
        self.step("tests without the engine", &[runner, &CRATE, &WITHOUT_ENGINE])?;
        if quick {
            return Ok(());
        }
        if nextest {
            // nextest runs no documentation tests; first, so that its summary is what ends the output.
            self.step("documentation tests", &[&["test", "--release", "--doc"], &CRATE[..]])?;
        }
        self.step("all tests", &[runner, &RELEASE, &CRATE])?;
        self.step("other programs", &[&["build"], &RELEASE[..], &PROGRAMS])?;
        let ignored = ["--", "--ignored", "programs::"];
        self.step(
            "tests of all programs",
            &[&["test"], &RELEASE[..], &CRATE, &["--test", "engine"], &ignored],
        )
    }

    fn has_nextest(&self) -> bool {
        let mut cargo = self.workspace.cargo();
        cargo
            .args(["nextest", "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        cargo.status().is_ok_and(|status| status.success())
    }

    fn setup(&mut self) -> Result<()> {
        if self.engine_ready {
            return Ok(());
        }
        let workspace = self.workspace;
        self.timed("setup", || {
            eprintln!("{}", setup::ensure(workspace)?);
            Ok(())
        })?;
        self.engine_ready = true;
        Ok(())
    }

    fn step(&mut self, name: &str, words: &[&[&str]]) -> Result<()> {
        self.step_with(name, words, &[])
    }

    fn step_with(&mut self, name: &str, words: &[&[&str]], environment: &[(&str, &str)]) -> Result<()> {
        let words = words.concat();
        let mut cargo = self.workspace.cargo();
        cargo.args(&words).envs(environment.iter().copied());
        let variables: String = environment
            .iter()
            .map(|(key, value)| format!("{key}=\"{value}\" "))
            .collect();
        self.timed(name, || {
            eprintln!("$ {variables}cargo {}", words.join(" "));
            succeed(&mut cargo)
        })
    }

    /// In a process of its own, as a user calls it; its last line must be the JSON object.
    fn demo(&mut self) -> Result<()> {
        let mut xtask = Command::new(std::env::current_exe().context("cannot find xtask itself")?);
        xtask
            .arg("--project")
            .arg(self.workspace.root())
            .args(["demo", "--json"])
            .stderr(Stdio::inherit());
        self.timed("demo", || {
            eprintln!("$ cargo xtask demo --json");
            let output = xtask.output().context("cannot run the demo")?;
            let text = String::from_utf8_lossy(&output.stdout);
            print!("{text}");
            ensure!(output.status.success(), "the demo ended with {}", output.status);
            let last = text.lines().next_back().unwrap_or_default();
            let object: serde_json::Value = serde_json::from_str(last).context("last line of demo --json")?;
            ensure!(object.is_object(), "the last line of demo --json is no object: {last}");
            Ok(())
        })
    }

    fn timed(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        eprintln!("\n== {name}");
        let started = Instant::now();
        let result = work();
        let seconds = started.elapsed().as_secs_f64();
        eprintln!(
            "== {name}: {} ({seconds:.1} s)",
            if result.is_ok() { "ok" } else { "FAILED" }
        );
        self.timings.push((name.to_owned(), seconds));
        result.with_context(|| format!("{name} failed"))
    }

    fn summary(&self) {
        eprintln!("\nseconds  step");
        for (name, seconds) in &self.timings {
            eprintln!("{seconds:>7.1}  {name}");
        }
        eprintln!(
            "{:>7.1}  in all",
            self.timings.iter().map(|(_, seconds)| seconds).sum::<f64>()
        );
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}
