//! `tpq bench`: the rows, and that a wrong result is counted.

use assert_cmd::Command;
use serde_json::Value;

fn tpq(args: &[&str]) -> (bool, String) {
    let output = Command::cargo_bin("tpq").unwrap().args(args).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_algorithm_is_measured_on_threads_and_nothing_is_wrong() {
    let (ok, text) = tpq(&[
        "bench",
        "exchange",
        "-n",
        "3",
        "--min-bytes",
        "512",
        "--max-bytes",
        "65536",
        "--factor",
        "128",
        "--features",
        "1000",
        "--seconds",
        "0.01",
        "--json",
    ]);
    assert!(ok, "{text}");
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Two sizes; `none` once each, two codecs with four algorithms each.
    assert_eq!(rows.len(), 2 * (1 + 2 * 4), "{text}");
    for row in &rows {
        let keys: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = [
            "ranks",
            "tokens",
            "features",
            "dtype",
            "codec",
            "algorithm",
            "bytes_sent_per_rank",
            "bits_per_value",
            "us_median",
            "us_p99",
            "algbw_gbps",
            "busbw_gbps",
            "wrong",
        ];
        expected.sort_unstable();
        let mut keys_sorted = keys.clone();
        keys_sorted.sort_unstable();
        assert_eq!(keys_sorted, expected);
        assert_eq!(row["wrong"], 0, "{row}");
        assert!(row["us_median"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_table_and_a_plot_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let (table, plot) = (folder.path().join("link.yaml"), folder.path().join("time.svg"));
    let (ok, text) = tpq(&[
        "bench",
        "exchange",
        "-n",
        "2",
        "--min-bytes",
        "1024",
        "--max-bytes",
        "1048576",
        "--factor",
        "32",
        "--codec",
        "dynamic",
        "--seconds",
        "0.02",
        "--write-table",
        table.to_str().unwrap(),
        "--plot",
        plot.to_str().unwrap(),
    ]);
    assert!(ok, "{text}");
    mistralrs_tpq::config::read_table(&table).unwrap();
    assert!(std::fs::read_to_string(plot).unwrap().contains("dynamic two_shot"));
}

#[test]
fn what_cannot_be_measured_or_written_is_said_before_anything_is() {
    let sizes = ["--min-bytes", "10", "--max-bytes", "5"];
    let nowhere = ["--write-table", "no/such/folder/link.yaml"];
    for (args, expected) in [
        (
            &sizes[..],
            "nothing to measure: no message of bf16 has --min-bytes 10 to --max-bytes 5",
        ),
        (&nowhere[..], "cannot write to the folder no/such/folder"),
    ] {
        let mut command = Command::cargo_bin("tpq").unwrap();
        let output = command
            .args(["bench", "exchange", "-n", "2"])
            .args(args)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(expected), "{text}");
    }
}

#[test]
fn encrypted_ranks_are_measured_and_get_the_same_sums() {
    let (ok, text) = tpq(&[
        "bench",
        "exchange",
        "-n",
        "3",
        "--encrypt",
        "--min-bytes",
        "65536",
        "--max-bytes",
        "65536",
        "--codec",
        "dynamic",
        "--algorithm",
        "one_shot,two_shot",
        "--seconds",
        "0.01",
        "--json",
    ]);
    assert!(ok, "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.lines().all(|row| row.contains("\"wrong\":0")), "{text}");
}

#[test]
fn kernels_are_chosen_by_name_and_named_in_the_result() {
    let fastest = mistralrs_tpq::codec::Level::best().name();
    for (asked, used, warned) in [
        ("scalar", "scalar", false),
        (fastest, fastest, false),
        ("mmx", fastest, true),
    ] {
        let output = Command::cargo_bin("tpq")
            .unwrap()
            .env("TPQ_KERNELS", asked)
            .args([
                "bench",
                "codec",
                "--tokens",
                "1",
                "--dtype",
                "bf16",
                "--seconds",
                "0",
                "--json",
            ])
            .output()
            .unwrap();
        let (rows, log) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(rows.lines().count() > 1, "{rows}{log}");
        for row in rows.lines() {
            let row: serde_json::Value = serde_json::from_str(row).unwrap();
            assert_eq!(row["kernels"], used, "{asked}");
        }
        assert_eq!(
            log.contains("TPQ_KERNELS=mmx: this processor has no such kernels"),
            warned,
            "{log}"
        );
    }
}

#[test]
fn what_does_not_exist_is_a_usage_error_that_names_it() {
    let mut command = Command::cargo_bin("tpq").unwrap();
    command
        .args(["bench", "exchange", "--algorithm", "star"])
        .assert()
        .code(2);
    let output = command.output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no algorithm `star`"));
}
