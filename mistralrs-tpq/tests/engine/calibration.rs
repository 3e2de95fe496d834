//! `tpq calibrate`: the same run gives the same bytes, and an interrupted one goes on where it was.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::process::{succeed, tpq, Process};
use crate::common::{model, turn, within};
use crate::runs::LIMIT;

/// Three saves of the state on the way: one every 32 sequences.
const SEQUENCES: usize = 120;
const RANKS: usize = 2;

#[test]
fn a_calibration_repeats_to_the_byte_and_goes_on_after_a_kill() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model::checkpoint(folder.path(), "tiny-llama", 0, 0);
    let calibrate = |out: &Path| calibrate(folder.path(), &model, out);
    let [first, again, killed] = ["first", "again", "killed"].map(|name| folder.path().join(name));

    assert_eq!(result(calibrate(&first))["resumed_at"], 0);
    succeed(calibrate(&again), LIMIT);
    assert_eq!(written(&first), written(&again), "two runs with one seed");

    let state = killed.join("calibration.state");
    let mut run = Process::start(calibrate(&killed), LIMIT);
    assert!(within(LIMIT, || state.is_file() || run.has_ended()));
    assert!(
        !run.has_ended(),
        "the calibration was over before it could be interrupted"
    );
    run.signal(Signal::SIGKILL);
    drop(run);
    assert!(
        !killed.join("manifest.yaml").exists(),
        "a half-finished calibration left a manifest"
    );

    let mut resumed = calibrate(&killed);
    resumed.arg("--resume");
    let at = result(resumed)["resumed_at"].as_u64().unwrap();
    assert!(at >= 32 && at < SEQUENCES as u64, "resumed at {at}");
    assert_eq!(
        written(&first),
        written(&killed),
        "an interrupted run and one in a piece"
    );
    assert!(!state.exists(), "the state outlived the calibration");
}

fn calibrate(folder: &Path, model: &Path, out: &Path) -> Command {
    let mut command = tpq();
    command.args([
        "calibrate",
        "-n",
        &RANKS.to_string(),
        "--dtype",
        "f32",
        "--cpu",
        "--json",
    ]);
    command.args(["--sequences", &SEQUENCES.to_string(), "--tokens", "32"]);
    command.arg("--model").arg(model).arg("--out").arg(out);
    command.arg("--corpus").arg(corpus(folder));
    command
}

fn result(command: Command) -> Value {
    let finished = succeed(command, LIMIT);
    assert!(!finished.stderr.contains(" WARN "), "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stdout))
}

/// Enough tokens, a byte each.
fn corpus(folder: &Path) -> PathBuf {
    let path = folder.join("corpus.txt");
    std::fs::write(&path, model::TEXT.repeat(5)).unwrap();
    path
}

/// Both files, byte for byte.
fn written(out: &Path) -> [Vec<u8>; 2] {
    ["manifest.yaml", "scales.safetensors"].map(|name| std::fs::read(PathBuf::from(out).join(name)).unwrap())
}
