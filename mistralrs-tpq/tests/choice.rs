//! Files of multiple-choice data sets, in the two forms in which Hugging Face publishes them.

use std::path::{Path, PathBuf};

use mistralrs_tpq::eval::choice::{read, Task};

const FILES: [(&str, Task); 5] = [
    ("arc", Task::ArcEasy),
    ("arc", Task::ArcChallenge),
    ("winogrande", Task::WinoGrande),
    ("hellaswag", Task::HellaSwag),
    ("boolq", Task::BoolQ),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn parquet_and_json_lines_hold_the_same_items() {
    for (name, task) in FILES {
        let [parquet, json] =
            ["parquet", "jsonl"].map(|kind| read(task, &fixture(&format!("{name}.{kind}")), 1000).unwrap());
        assert_eq!(parquet, json, "{name}");
        assert!(parquet.len() >= 2 && read(task, &fixture(&format!("{name}.parquet")), 1).unwrap() == parquet[..1]);
    }
    let arc = read(Task::ArcEasy, &fixture("arc.parquet"), 1000).unwrap();
    assert_eq!((arc[2].gold, arc[1].choices.len()), (0, 3));
    assert_eq!(
        arc[2].choices[0].0,
        "Question: Where does a caf\u{e9} keep milk fresh?\nAnswer:"
    );
}

#[test]
fn a_file_of_another_task_and_a_broken_one_are_refused_by_name() {
    let error = |task, path: &Path| format!("{:#}", read(task, path, 1000).unwrap_err());
    let message = error(Task::BoolQ, &fixture("arc.parquet"));
    assert!(
        message.contains("arc.parquet, row 1 as boolq: field `passage` is null"),
        "{message}"
    );
    assert!(error(Task::BoolQ, &fixture("none.jsonl")).contains("none.jsonl"));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, "{\"a\": 1}\n{\n").unwrap();
    assert!(error(Task::BoolQ, &path).contains("line 2: not JSON"));
    std::fs::write(&path, "").unwrap();
    assert!(error(Task::BoolQ, &path).contains("has no rows"));
    // Cut off, and with every hundredth byte changed: an error each time, or the same number of rows, and never a panic.
    let good = std::fs::read(fixture("hellaswag.parquet")).unwrap();
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(error(Task::HellaSwag, &path).contains("data"));
    for at in (4..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        std::fs::write(&path, &bad).unwrap();
        let _ = read(Task::HellaSwag, &path, 1000);
    }
}
