//! `rd` against `paper` at the same bits: divergence from lossless logits of the trained demo model over four ranks, on text that
//! calibration has not seen, in one run.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::process::{succeed, tpq};
use crate::common::{model, turn};
use crate::runs::LIMIT;

const COMMON: [&str; 7] = ["-n", "4", "--dtype", "f32", "--cpu", "--json", "--model"];

#[test]
fn at_papers_bits_rd_diverges_a_third_as_much_and_a_fifth_with_entropy_coding() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let seen = [
        "src/codec/scalar.rs",
        "src/manifest/mod.rs",
        "src/config/plan.rs",
        "../README.md",
        "../ARCHITECTURE.md",
    ];
    let unseen = ["tests/config.rs", "../patches/README.md"];
    let manifest = folder.path().join("manifest");
    let mut calibrate = tpq();
    calibrate.arg("calibrate").args(COMMON).arg(model::demo());
    calibrate.args(["--sequences", "64", "--tokens", "128", "--corpus"]);
    calibrate
        .arg(text(folder.path(), "seen", &seen))
        .arg("--out")
        .arg(&manifest);
    succeed(calibrate, LIMIT);

    let codec = |name: &str, keys: &str| {
        let path = folder.path().join(format!("{name}.yaml"));
        let manifest = manifest.join("manifest.yaml");
        let text = format!(
            "version: 1\ncodec: {{{keys}, manifest: {}}}\nexchange: {{algorithm: one_shot}}\ngroup: {}\n",
            manifest.display(),
            model::GROUP
        );
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut eval = tpq();
    eval.arg("eval").args(COMMON).arg(model::demo());
    eval.args(["--max-tokens", "3072", "--text"])
        .arg(text(folder.path(), "unseen", &unseen));
    eval.arg("--config").arg(codec("paper", "kind: paper")).arg("--also");
    eval.arg(codec("rd", "kind: rd"))
        .arg(codec("rd_entropy", "kind: rd, entropy: true"));
    let finished = succeed(eval, LIMIT);
    let rows: Vec<Value> = finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [paper, rd, coded] = rows.as_slice() else {
        panic!("expected three rows: {}", finished.stdout)
    };
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    for row in [rd, coded] {
        assert!(
            number(row, "bits_per_value") <= number(paper, "bits_per_value"),
            "{row}"
        );
    }
    let [paper, rd, coded] = [paper, rd, coded].map(|row| number(row, "kl"));
    assert!(rd <= paper / 3.0, "rd {rd}, paper {paper}");
    assert!(coded <= paper / 5.0, "rd with entropy coding {coded}, paper {paper}");
}

/// Files of this repository, one after another.
fn text(folder: &Path, name: &str, files: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &&str| std::fs::read_to_string(root.join(file)).unwrap();
    let path = folder.join(format!("{name}.txt"));
    std::fs::write(&path, files.iter().map(read).collect::<String>()).unwrap();
    path
}
