//! `cargo xtask demo`: what a user would do, start to end, on local ranks and a model that is in the repository.

pub mod corpus;
pub mod http;
pub mod process;
pub mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use crate::args::DemoArgs;
use crate::build::Binaries;
use crate::setup;
use crate::steps::Steps;
use crate::workspace::Workspace;
use corpus::Corpus;
use http::{Client, Reply};
use process::Running;
use report::{Evaluation, Report};

/// The demo models complete Rust documentation; they have no chat template.
const PROMPT: &str = "/// Returns the number of";
const REPLY_TOKENS: u32 = 48;
/// As long as the windows that are evaluated: shorter sequences have smaller ranges (3.8% for 128 tokens, 2.9% for 256).
const CALIBRATION_SEQUENCES: u32 = 64;
const CALIBRATION_TOKENS: u32 = 256;
const EVALUATION_TOKENS: u32 = 8192;

const COMMAND_LIMIT: Duration = Duration::from_secs(600);
const START_LIMIT: Duration = Duration::from_secs(180);
const REPLY_LIMIT: Duration = Duration::from_secs(120);

/// # Errors
/// The first step that failed, or what is off in the figures.
pub fn run(workspace: &Workspace, options: &DemoArgs) -> Result<ExitCode> {
    let mut scratch = Scratch::new(workspace, options.keep.as_deref())?;
    let result = Demo::run(workspace, options, &scratch.path);
    if result.is_err() {
        scratch.keep_for_inspection();
    }
    let report = result?;
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("\n{}", report.table(PROMPT));
    }
    report.verify()?;
    Ok(ExitCode::SUCCESS)
}

struct Demo<'a> {
    workspace: &'a Workspace,
    options: &'a DemoArgs,
    folder: &'a Path,
    binaries: Binaries,
    model: PathBuf,
    config: PathBuf,
}

impl<'a> Demo<'a> {
    fn run(workspace: &'a Workspace, options: &'a DemoArgs, folder: &'a Path) -> Result<Report> {
        let mut steps = Steps::new(6);
        steps.loud("engine", || Ok(((), setup::ensure(workspace)?)))?;
        let binaries = steps.loud("build tpq and mistralrs-server", || {
            let binaries = Binaries::build(workspace)?;
            let detail = binaries.describe(workspace);
            Ok((binaries, detail))
        })?;
        process::adopt_orphans();
        let demo = Self {
            workspace,
            options,
            folder,
            binaries,
            model: demo_model(workspace)?,
            config: folder.join("tpq.yaml"),
        };
        let (calibration, held_out) = steps.quiet("text of this project", || {
            let corpus = Corpus::collect(workspace.root())?;
            let (a, b) = (&corpus.calibration, &corpus.held_out);
            let detail = format!(
                "{} kB in {} files to calibrate, {} kB in {} files held out",
                a.text.len() / 1000,
                a.files,
                b.text.len() / 1000,
                b.files
            );
            Ok((corpus.write(folder)?, detail))
        })?;
        let ranks = options.ranks;
        steps.quiet(&format!("calibrate {} on {ranks} ranks", options.codec), || {
            demo.calibrate(&calibration)
        })?;
        let evaluation = steps.quiet("perplexity of held-out text", || demo.evaluate(&held_out))?;
        let reply = steps.quiet(&format!("serve on {ranks} ranks, stream a completion"), || demo.serve())?;
        Ok(Report::new(
            ranks,
            &options.codec,
            evaluation,
            reply.text,
            steps.elapsed().as_secs_f64(),
        ))
    }

    fn calibrate(&self, corpus: &Path) -> Result<((), String)> {
        fs::write(&self.config, config(&self.options.codec, None))?;
        let manifest = self.folder.join("manifest");
        let mut tpq = self.tpq("calibrate");
        tpq.arg("--model")
            .arg(&self.model)
            .arg("--corpus")
            .arg(corpus)
            .arg("--out")
            .arg(&manifest);
        tpq.args(["--sequences", &CALIBRATION_SEQUENCES.to_string()]);
        tpq.args(["--tokens", &CALIBRATION_TOKENS.to_string()]);
        tpq.args(["--dtype", "f32", "--cpu"]);
        Running::start("calibrate", tpq, self.folder)?.finish(COMMAND_LIMIT)?;
        let written = manifest.join("manifest.yaml");
        ensure!(
            written.is_file(),
            "tpq calibrate ended well but wrote no {}",
            written.display()
        );
        fs::write(&self.config, config(&self.options.codec, Some(&written)))?;
        Ok((
            (),
            format!("{CALIBRATION_SEQUENCES} sequences of {CALIBRATION_TOKENS} tokens"),
        ))
    }

    fn evaluate(&self, text: &Path) -> Result<(Evaluation, String)> {
        let mut tpq = self.tpq("eval");
        tpq.arg("--model").arg(&self.model).arg("--text").arg(text);
        tpq.args(["--max-tokens", &EVALUATION_TOKENS.to_string(), "--json"]);
        tpq.args(["--dtype", "f32", "--cpu"]);
        let output = Running::start("eval", tpq, self.folder)?.finish(COMMAND_LIMIT)?;
        let evaluation = Evaluation::parse(&output)?;
        let detail = format!(
            "{:.3} lossless, {:.3} quantized",
            evaluation.ppl_lossless, evaluation.ppl_quantized
        );
        Ok((evaluation, detail))
    }

    fn serve(&self) -> Result<(Reply, String)> {
        let port = process::free_port()?;
        let mut launch = self.command();
        launch.args(["launch", "-n", &self.options.ranks.to_string(), "--"]);
        launch.arg(&self.binaries.server);
        launch.arg("--tpq-config").arg(&self.config);
        launch.args([
            "--port",
            &port.to_string(),
            "--serve-ip",
            "127.0.0.1",
            "--cpu",
            "plain",
            "-m",
        ]);
        launch.arg(&self.model).args(["-d", "f32"]);
        let mut server = Running::start("server", launch, self.folder)?;
        let probe = Client::new(port, Duration::from_secs(2));
        server.wait_until("answer from /health", START_LIMIT, || probe.healthy())?;
        let reply = match Client::new(port, REPLY_LIMIT).complete(PROMPT, REPLY_TOKENS) {
            Ok(reply) => reply,
            // When the server is gone, its last words say more than the broken connection does.
            Err(error) => return Err(server.stop().err().unwrap_or(error)),
        };
        ensure!(probe.healthy(), "/health no longer answers after the completion");
        server.stop()?;
        let detail = format!(
            "{} chunks, finish reason {:?}",
            reply.chunks,
            reply.finish_reason.as_deref()
        );
        Ok((reply, detail))
    }

    fn tpq(&self, subcommand: &str) -> Command {
        let mut command = self.command();
        command.arg(subcommand).arg("--config").arg(&self.config);
        command.args(["-n", &self.options.ranks.to_string()]);
        command
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binaries.tpq);
        command.current_dir(self.workspace.root());
        command
    }
}

/// As a user would write it; unnamed keys keep their defaults.
fn config(codec: &str, manifest_of: Option<&Path>) -> String {
    // A JSON string is a YAML string, whatever the path holds.
    let manifest = |path: &Path| format!("  manifest: {}\n", Value::from(path.to_string_lossy()));
    match (codec, manifest_of) {
        ("paper", Some(path)) => format!("version: 1\ncodec:\n  kind: paper\n{}", manifest(path)),
        // Calibration itself needs no codec, and `paper` no file before there is one.
        ("paper", None) => "version: 1\ncodec:\n  kind: none\n".to_owned(),
        (codec, _) => format!("version: 1\ncodec:\n  kind: {codec}\n"),
    }
}

fn demo_model(workspace: &Workspace) -> Result<PathBuf> {
    let model = workspace.root().join("examples/demo-model");
    ensure!(
        model.join("config.json").is_file(),
        "the demo model is missing: no {}/config.json",
        model.display()
    );
    Ok(model)
}

/// Where the demo writes: the user's folder, or one that is removed at the end unless something failed.
struct Scratch {
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl Scratch {
    fn new(workspace: &Workspace, keep: Option<&Path>) -> Result<Self> {
        if let Some(folder) = keep {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            return Ok(Self {
                path: fs::canonicalize(folder)?,
                temporary: None,
            });
        }
        let temporary = tempfile::Builder::new()
            .prefix(".tpq-demo-")
            .suffix(".tmp")
            .tempdir_in(workspace.root())?;
        Ok(Self {
            path: temporary.path().to_owned(),
            temporary: Some(temporary),
        })
    }

    fn keep_for_inspection(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            let empty = fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_none());
            if !empty {
                let _ = temporary.keep();
            }
        }
        if self.path.exists() {
            eprintln!("configuration and logs of the failed demo: {}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_quotes_a_path_with_blanks_and_colons() {
        let text = config("paper", Some(Path::new("/a b: c/manifest.yaml")));
        assert_eq!(
            text,
            "version: 1\ncodec:\n  kind: paper\n  manifest: \"/a b: c/manifest.yaml\"\n"
        );
    }

    #[test]
    fn a_missing_demo_model_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = demo_model(&Workspace::at(root.path())).unwrap_err().to_string();
        assert!(error.contains("examples/demo-model/config.json"), "{error}");
    }
}
