//! What the codecs cost on the trained demo model over four ranks, on text that calibration has not seen.

use std::path::{Path, PathBuf};

use crate::common::process::{succeed, tpq};
use crate::common::{model, turn};
use crate::runs::{paper, LIMIT};

const RANKS: &str = "4";
/// Above a study outside the engine, which found 2.2 to 2.5% and 0.5 to 0.9% on 60,000 held-out tokens.
/// Sequences as long as the windows that are evaluated: with sequences of 64 or 128 tokens paper costs 4.5 to 5% here.
const PAPER_LIMIT: f64 = 1.035;
const DYNAMIC_LIMIT: f64 = 1.012;

#[test]
fn perplexity_on_held_out_text_stays_within_the_limits_of_paper_and_dynamic() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |files: &[PathBuf]| -> String {
        let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap());
        texts.collect()
    };
    let (corpus, held_out) = (folder.path().join("corpus.txt"), folder.path().join("held-out.txt"));
    let mut seen = sources(&root.join("src"));
    seen.sort();
    seen.extend(["../README.md", "../ARCHITECTURE.md"].map(|name| root.join(name)));
    let unseen = ["tests/config.rs", "tests/tcp.rs", "../patches/README.md"].map(|name| root.join(name));
    std::fs::write(&corpus, read(&seen)).unwrap();
    std::fs::write(&held_out, read(&unseen)).unwrap();

    let out = folder.path().join("manifest");
    let mut command = tpq();
    command.args([
        "calibrate",
        "-n",
        RANKS,
        "--dtype",
        "f32",
        "--cpu",
        "--sequences",
        "64",
        "--tokens",
        "256",
    ]);
    command
        .arg("--model")
        .arg(model::demo())
        .arg("--corpus")
        .arg(&corpus)
        .arg("--out")
        .arg(&out);
    succeed(command, LIMIT);

    let ratio = |config: &Path| {
        let mut command = tpq();
        command.args([
            "eval",
            "-n",
            RANKS,
            "--dtype",
            "f32",
            "--cpu",
            "--json",
            "--max-tokens",
            "4096",
        ]);
        command
            .arg("--model")
            .arg(model::demo())
            .arg("--text")
            .arg(&held_out)
            .arg("--config")
            .arg(config);
        let finished = succeed(command, LIMIT);
        let row: serde_json::Value = serde_json::from_str(finished.stdout.lines().last().unwrap()).unwrap();
        assert_eq!(row["ranks_bit_identical"], true, "{row}");
        row["ppl_quantized"].as_f64().unwrap() / row["ppl_lossless"].as_f64().unwrap()
    };
    let dynamic = ratio(&model::config(
        folder.path(),
        "dynamic",
        "{kind: dynamic}",
        model::GROUP,
    ));
    assert!(dynamic <= DYNAMIC_LIMIT, "dynamic: {dynamic}");
    let paper = ratio(&paper(folder.path(), &out.join("manifest.yaml")));
    assert!(paper <= PAPER_LIMIT, "paper: {paper}");
    assert!(
        dynamic < paper,
        "dynamic {dynamic} has more bits than paper {paper}, and costs more"
    );
}

/// All files below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![path],
        })
        .collect()
}
