//! `tpq bench engine` on a small model.

use crate::common::process::{succeed, tpq};
use crate::common::{model, turn};
use crate::runs::LIMIT;

#[test]
fn bench_engine_tells_exchange_time_and_bytes_of_both_codecs() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (dir, _) = model::checkpoint(folder.path(), "tiny-llama", 1, 0);
    let config = model::config(folder.path(), "tpq", "{kind: dynamic}", model::GROUP);
    let mut command = tpq();
    command.args([
        "bench", "engine", "-n", "2", "--cpu", "--dtype", "f32", "--json", "--runs", "1",
    ]);
    command.args(["--prompt", "96", "--generate", "4"]);
    command.arg("--config").arg(&config).arg("--model").arg(&dir);
    let output = succeed(command, LIMIT);
    let rows: Vec<serde_json::Value> = output
        .stdout
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 2, "{}", output.stdout);
    for (row, codec) in rows.iter().zip(["none", "dynamic"]) {
        assert_eq!(row["codec"], codec);
        assert_eq!(row["ranks"], 2);
        assert_eq!(row["prompt_tokens"], 96);
        let share = row["prefill_exchange_share"].as_f64().unwrap();
        assert!(share > 0.0 && share < 1.0, "{row}");
        assert!(row["prefill_exchange_met_ms"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["decode_tokens_per_s"].as_f64().unwrap() > 0.0, "{row}");
    }
    // 32 bits a value against 4.5, and 40 bytes a frame.
    let bytes = |row: usize| rows[row]["prefill_bytes_per_rank"].as_u64().unwrap();
    assert!(bytes(0) > 6 * bytes(1), "{} and {}", bytes(0), bytes(1));
}
