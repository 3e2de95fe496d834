//! `tpq eval`, `tpq calibrate` and servers, as a user starts them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{json, Value};

use crate::common::http::Http;
use crate::common::logits::{self, Logits};
use crate::common::process::{clean, succeed, tpq, Process, SERVER};
use crate::common::{model, ports::free_ports};

/// For one command that loads a model and runs a page of text, in an unoptimised build on a busy host.
pub const LIMIT: Duration = Duration::from_secs(240);

pub const WINDOW: usize = 64;
pub const WINDOWS: usize = 3;

/// What `tpq eval --json` said, and the logits it dumped.
pub struct Evaluated {
    pub result: Value,
    pub logits: BTreeMap<String, Logits>,
}

/// One process where `config` is `None`.
pub fn eval(folder: &Path, model: &Path, ranks: usize, config: Option<&Path>) -> Evaluated {
    let dump = folder.join(format!("logits-{ranks}.safetensors"));
    let mut command = tpq();
    command
        .args([
            "eval",
            "-n",
            &ranks.to_string(),
            "--dtype",
            "f32",
            "--cpu",
            "--json",
            "--model",
        ])
        .arg(model);
    command
        .arg("--text")
        .arg(model::text(folder))
        .arg("--dump-logits")
        .arg(&dump);
    command.args([
        "--window",
        &WINDOW.to_string(),
        "--max-tokens",
        &(WINDOW * WINDOWS).to_string(),
    ]);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    let finished = succeed(command, LIMIT);
    let last = finished.stdout.lines().last().unwrap_or_default();
    let result = serde_json::from_str(last)
        .unwrap_or_else(|error| panic!("the last line is not JSON: {error}\n{}", finished.stdout));
    Evaluated {
        result,
        logits: logits::read(&dump),
    }
}

/// Calibrates on a few short sequences; returns the manifest.
pub fn calibrate(folder: &Path, model: &Path, ranks: usize) -> PathBuf {
    let out = folder.join(format!("manifest-{ranks}"));
    let mut command = tpq();
    command
        .arg("calibrate")
        .arg("--config")
        .arg(model::config(folder, "calibrate", "{kind: none}", model::GROUP));
    command.args([
        "-n",
        &ranks.to_string(),
        "--dtype",
        "f32",
        "--cpu",
        "--sequences",
        "6",
        "--tokens",
        "64",
    ]);
    command
        .arg("--model")
        .arg(model)
        .arg("--corpus")
        .arg(model::text(folder))
        .arg("--out")
        .arg(&out);
    succeed(command, LIMIT);
    out.join("manifest.yaml")
}

/// A configuration that quantizes with `manifest`.
pub fn paper(folder: &Path, manifest: &Path) -> PathBuf {
    model::config(
        folder,
        "paper",
        &format!("{{kind: paper, manifest: {:?}}}", manifest),
        model::GROUP,
    )
}

/// `mistralrs-server` on a port of its own; the model's arguments come last.
pub fn server_command(port: u16, config: Option<&Path>, model: &Path, dtype: &str) -> Command {
    let mut command = clean(SERVER);
    add_server_arguments(&mut command, port, config, model, dtype);
    command
}

/// The same under `tpq launch`.
pub fn launch_command(ranks: usize, port: u16, config: &Path, model: &Path, dtype: &str) -> Command {
    let mut command = tpq();
    command.args(["launch", "-n", &ranks.to_string(), "--", SERVER]);
    add_server_arguments(&mut command, port, Some(config), model, dtype);
    command
}

fn add_server_arguments(command: &mut Command, port: u16, config: Option<&Path>, model: &Path, dtype: &str) {
    if let Some(config) = config {
        command.arg("--tpq-config").arg(config);
    }
    command
        .args(["--port", &port.to_string(), "--cpu", "plain", "-m"])
        .arg(model)
        .args(["-d", dtype]);
}

/// A server that answers.
pub struct Server {
    pub process: Process,
    pub http: Http,
}

impl Server {
    /// Two ranks with this codec on the demo model.
    pub fn two_ranks(folder: &Path, codec: &str) -> Self {
        let config = model::config(folder, "serve", codec, model::GROUP);
        let port = free_ports(1)[0];
        Self::start(launch_command(2, port, &config, &model::demo(), "f32"), port)
    }

    pub fn start(command: Command, port: u16) -> Self {
        Self::ready(Process::start(command, LIMIT), port)
    }

    /// Waits until `/health` is good.
    pub fn ready(mut process: Process, port: u16) -> Self {
        let probe = Http {
            port,
            limit: Duration::from_secs(2),
        };
        while !probe.get("/health").is_ok_and(|response| response.status == 200) {
            if process.has_ended() {
                process.fail("ended before it served");
            }
            if process.left().is_zero() {
                process.fail("does not serve at its deadline");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let limit = process.left();
        Self {
            process,
            http: Http { port, limit },
        }
    }

    /// Greedy continuation.
    pub fn complete(&self, prompt: &str, max_tokens: usize) -> String {
        let response = self
            .http
            .post(COMPLETIONS, &request(prompt, max_tokens))
            .unwrap_or_else(|error| self.process.fail(&format!("no completion: {error}")));
        if response.status != 200 {
            self.process
                .fail(&format!("status {}: {}", response.status, response.body));
        }
        response.json()["choices"][0]["text"]
            .as_str()
            .expect("a completion has a text")
            .to_owned()
    }
}

pub const COMPLETIONS: &str = "/v1/completions";

pub fn request(prompt: &str, max_tokens: usize) -> Value {
    json!({"model": "default", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0})
}

/// The text that one event of a stream carries.
pub fn text_of(event: &str) -> String {
    let chunk: Value = serde_json::from_str(event).unwrap_or_else(|error| panic!("{error}: {event}"));
    let text = chunk["choices"][0]["text"].as_str();
    text.unwrap_or_else(|| panic!("no text: {chunk}")).to_owned()
}
