//! `tpq eval` and `tpq simulate` on the demo model over two ranks: what the one measures on the engine, the other finds in-process from
//! recorded sums.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::process::{succeed, tpq};
use crate::common::{model, turn};
use crate::runs::{paper, LIMIT};

const WINDOWS: [&str; 4] = ["--window", "64", "--max-tokens", "256"];

fn on_two_ranks(command: &[&str], folder: &Path) -> Command {
    let mut started = tpq();
    started.args(command);
    started
        .args(["-n", "2", "--dtype", "f32", "--cpu", "--json", "--model"])
        .arg(model::demo());
    if command[0] != "eval" {
        return started;
    }
    started.arg("--text").arg(model::text(folder));
    started
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn lines(command: Command) -> Vec<Value> {
    let finished = succeed(command, LIMIT);
    finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_simulation_of_recorded_sums_has_the_noise_that_eval_measures_and_eval_answers_questions() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    // The text of the other tests is too short for this tokenizer.
    let mut calibrate = on_two_ranks(&["calibrate"], folder.path());
    calibrate.args(["--sequences", "24", "--tokens", "64", "--corpus"]);
    calibrate.args(["src/manifest/mod.rs", "src/codec/scalar.rs"].map(|file| root().join(file)));
    let made = folder.path().join("manifest");
    succeed(with_out(calibrate, &made), LIMIT);
    let manifest = made.join("manifest.yaml");
    let config = paper(folder.path(), &manifest);

    let page = folder.path().join("page.html");
    let evaluate = || {
        let mut eval = on_two_ranks(&["eval"], folder.path());
        eval.args(WINDOWS).args(["--greedy", "2"]).arg("--config").arg(&config);
        for (task, file) in [
            ("arc_easy", "arc.parquet"),
            ("boolq", "boolq.jsonl"),
            ("winogrande", "winogrande.parquet"),
        ] {
            let fixture = root().join("tests/fixtures").join(file);
            eval.arg("--task").arg(format!("{task}={}", fixture.display()));
        }
        eval.arg("--html").arg(&page);
        lines(eval)
    };
    let rows = evaluate();
    let timeless = |rows: &[Value]| {
        let mut rows = rows.to_vec();
        for row in &mut rows {
            row.as_object_mut().unwrap().remove("seconds");
        }
        rows
    };
    assert_eq!(timeless(&rows), timeless(&evaluate()), "two evaluations of one text");
    let [text, arc, boolq, winogrande] = rows.as_slice() else {
        panic!("expected four rows: {rows:?}")
    };
    let greedy = &text["greedy"];
    assert_eq!(greedy["continuations"], 2, "{text}");
    assert!(
        greedy["same_tokens"].as_f64() <= greedy["tokens"].as_f64() && greedy["tokens"].as_f64() > Some(1.0),
        "{text}"
    );
    assert!(std::fs::read_to_string(&page).unwrap().contains("arc_easy"));
    for (row, items) in [(arc, 3), (boolq, 2), (winogrande, 2)] {
        assert_eq!(
            (&row["items"], &row["ranks_bit_identical"]),
            (&items.into(), &true.into()),
            "{row}"
        );
        assert!(row["bits_per_value"].as_f64() < Some(4.3), "{row}");
    }

    // The lossless figures are those of a single process.
    let mut alone = tpq();
    alone
        .args(["eval", "--dtype", "f32", "--cpu", "--json", "--model"])
        .arg(model::demo());
    let fixture = root().join("tests/fixtures/arc.jsonl");
    alone.arg("--task").arg(format!("arc_easy={}", fixture.display()));
    assert_eq!(lines(alone)[0]["acc"], arc["lossless"]["acc"]);

    let sums = folder.path().join("sums");
    let mut record = on_two_ranks(&["simulate", "record"], folder.path());
    record
        .args(["--window", "64", "--tokens", "256", "--text"])
        .arg(model::text(folder.path()));
    succeed(with_out(record, &sums), LIMIT);
    let mut run = tpq();
    run.args(["simulate", "run", "--json", "--ranks", "2,8", "--codec", "paper"])
        .arg(&sums);
    run.arg("--manifest").arg(&manifest);
    let simulation: Value = serde_json::from_str(&succeed(run, LIMIT).stdout).unwrap();
    let row = &simulation["rows"][0];
    assert_eq!(
        (&row["algorithm"], &row["calibration"]),
        (&"one_shot".into(), &"manifest".into()),
        "{row}"
    );
    let (simulated, measured) = (
        row["partial_sqnr_db"].as_f64().unwrap(),
        text["sqnr_db"].as_f64().unwrap(),
    );
    // Within 5% of the noise's energy. It is the same codec on the same sums, but for those after a quantized layer.
    assert!(
        (simulated - measured).abs() < 0.21,
        "simulated {simulated} dB, measured {measured} dB"
    );
}

fn with_out(mut command: Command, out: &Path) -> Command {
    command.arg("--out").arg(out);
    command
}
