//! `tpq` as a user runs it: `inspect`, help, exit codes.

#[path = "common/manifest.rs"]
mod small;

use assert_cmd::Command;
use mistralrs_tpq::manifest::Manifest;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, starts_with};
use std::path::PathBuf;

fn tpq() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tpq"))
}

fn manifest() -> (tempfile::TempDir, PathBuf) {
    let layer = |name: &str, peak: f32| {
        let mut ranges = vec![1.0; 128];
        (ranges[9], ranges[64 + 9]) = (peak, peak / 2.0);
        small::layer(name, &[9], ranges)
    };
    let layers = vec![
        layer("model.layers.0.self_attn.o_proj", 8.0),
        layer("model.layers.0.mlp.down_proj", 80.0),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = small::manifest(layers).write(folder.path()).unwrap();
    (folder, path)
}

#[test]
fn inspect_prints_a_row_for_each_layer() {
    let (_folder, path) = manifest();
    let output = tpq().arg("inspect").arg(&path).assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(text.contains("6 sequences of 64 tokens, EMA 0.99"), "{text}");
    assert!(text.contains("4.1875 bits a value"), "{text}");
    let row = rows
        .iter()
        .find(|row| row.first() == Some(&"model.layers.0.mlp.down_proj"))
        .unwrap();
    assert_eq!(
        row[1..],
        ["64", "1.000", "1.000", "60.000", "60.0", "1", "1.56", "17.5"]
    );
}

#[test]
fn inspect_of_one_layer_lists_its_outliers_with_their_range_on_each_rank() {
    let (_folder, path) = manifest();
    let name = "model.layers.0.self_attn.o_proj";
    let output = tpq()
        .arg("inspect")
        .arg(&path)
        .args(["--layer", name])
        .assert()
        .success();
    output.stdout(
        contains("rank 1")
            .and(contains("      9   8.000   4.000"))
            .and(contains("down_proj").not()),
    );
}

#[test]
fn inspect_json_carries_the_same_numbers() {
    let (_folder, path) = manifest();
    let output = tpq().args(["--json", "inspect"]).arg(&path).assert().success();
    let report: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(report["world_size"], 2);
    assert_eq!(report["digest"], Manifest::load(&path).unwrap().digest().to_string());
    assert_eq!(
        report["layers"][1]["outlier_ranges"][0],
        serde_json::json!({"feature": 9, "ranges": [80.0, 40.0]})
    );
    assert_eq!(report["layers"][0]["expected_sqnr_db"], 17.5);
}

#[test]
fn inspect_plots_every_layer() {
    let (folder, path) = manifest();
    let svg = folder.path().join("ranges.svg");
    tpq()
        .arg("inspect")
        .arg(&path)
        .arg("--plot")
        .arg(&svg)
        .assert()
        .success();
    let text = std::fs::read_to_string(svg).unwrap();
    assert!(text.starts_with("<svg") && text.contains("down_proj") && text.contains("BF16 outliers"));
    let blocked = folder.path().join("no/such/folder.svg");
    tpq()
        .arg("inspect")
        .arg(&path)
        .arg("--plot")
        .arg(blocked)
        .assert()
        .code(1)
        .stderr(contains("cannot write"));
}

#[test]
fn a_bad_manifest_exits_2_and_an_unknown_layer_names_the_nearest() {
    let (folder, path) = manifest();
    tpq()
        .args(["inspect", "/nonexistent.yaml"])
        .assert()
        .code(2)
        .stderr(starts_with("tpq: cannot read /nonexistent.yaml"));
    tpq()
        .arg("inspect")
        .arg(&path)
        .args(["--layer", "model.layers.0.mlp.down"])
        .assert()
        .code(2)
        .stderr(contains(
            "no layer model.layers.0.mlp.down; nearest: model.layers.0.mlp.down_proj",
        ));
    std::fs::write(folder.path().join("scales.safetensors"), b"x").unwrap();
    let output = tpq().args(["inspect", "--json"]).arg(&path).assert().code(2);
    let error: serde_json::Value = serde_json::from_slice(&output.get_output().stderr).unwrap();
    assert_eq!(error["exit_code"], 2);
    assert!(error["error"].as_str().unwrap().contains("truncated or altered"));
}

#[test]
fn help_shows_examples_and_hides_what_is_internal() {
    tpq()
        .args(["launch", "--help"])
        .assert()
        .success()
        .stdout(contains("tpq launch -n 2 --").and(contains("--base-port")));
    tpq()
        .args(["inspect", "--help"])
        .assert()
        .success()
        .stdout(contains("--plot ranges.svg"));
    tpq().arg("--help").assert().success().stdout(
        contains("launch")
            .and(contains("__rank").not())
            .and(contains("__guard").not()),
    );
}

#[test]
fn wrong_usage_exits_2() {
    for args in [
        &["launch", "-n", "0", "--", "true"][..],
        &["launch", "-n", "65", "--", "true"],
        &["launch", "-n", "2"],
        &["inspekt"],
        &[],
    ] {
        tpq().args(args).assert().code(2);
    }
    tpq()
        .args(["launch", "-n", "2", "--grace-s", "-1", "--", "true"])
        .assert()
        .code(2);
    tpq()
        .args(["launch", "-n", "9", "--base-port", "65530", "--", "true"])
        .assert()
        .code(2)
        .stderr(contains("65535"));
}

#[test]
fn doctor_measures_every_link_and_reports_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tpq.yaml");
    std::fs::write(
        &config,
        "version: 1\ncodec: {kind: dynamic}\ngroup: {connect_timeout_s: 30, encrypt: true}\n",
    )
    .unwrap();
    let output = tpq()
        .args(["doctor", "-n", "3", "--json", "--config"])
        .arg(&config)
        .env("TPQ_SECRET", "s".repeat(40))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let links = report["links"].as_array().unwrap();
    let ranks: Vec<String> = links.iter().map(|link| link["ranks"].to_string()).collect();
    assert_eq!(ranks, ["[0,1]", "[0,2]", "[1,2]"]);
    for link in links {
        assert!(link["latency_us"].as_f64().unwrap() > 0.0 && link["up_mbit_s"].as_f64().unwrap() > 0.0);
        assert!(link["p99_us"].as_f64() >= link["latency_us"].as_f64());
    }
    assert!(
        text.contains("everything is encrypted") && !text.contains("ssss"),
        "{text}"
    );
}

#[test]
fn doctor_says_what_to_fix() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tpq.yaml");
    let doctor = |group: &str, variables: &[(&str, &str)]| {
        std::fs::write(
            &config,
            format!("version: 1\ncodec: {{kind: dynamic}}\ngroup: {{connect_timeout_s: 0.3{group}}}\n"),
        )
        .unwrap();
        let mut command = tpq();
        command.args(["doctor", "--config"]).arg(&config);
        variables.iter().for_each(|(name, value)| {
            command.env(name, value);
        });
        command.assert()
    };
    doctor("", &[]).code(2).stderr(contains("give -n"));
    doctor(", rank: 0, peers: [\"10.0.0.1:7700\", \"10.0.0.2:7700\"]", &[])
        .code(2)
        .stderr(contains("openssl rand -hex 32"));
    doctor("", &[("TPQ_RANK", "1"), ("TPQ_PEERS", "127.0.0.1:9,127.0.0.1:17990")])
        .code(1)
        .stderr(contains("rank 0 at 127.0.0.1:9 did not join within"));
}
