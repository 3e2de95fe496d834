//! Each architecture computes under tensor parallelism what it computes alone, and quantizes within its bounds.

use std::path::Path;

use crate::common::logits::{relative_difference, Logits};
use crate::common::process::{succeed, tpq};
use crate::common::{model, turn};
use crate::runs::{calibrate, eval, paper, Evaluated, LIMIT, WINDOW, WINDOWS};

/// Of f32 sums in another order: a few units in the last place (6e-8), grown over two layers.
const LOSSLESS: f32 = 1e-4;

#[test]
fn llama_computes_the_same_on_two_and_four_ranks_and_stays_in_bounds() {
    check("tiny-llama", &[2, 4]);
}

#[test]
fn gemma2_computes_the_same_on_two_and_four_ranks_and_stays_in_bounds() {
    check("tiny-gemma2", &[2, 4]);
}

#[test]
fn mistral_with_a_head_size_of_its_own_computes_the_same_on_two_and_four_ranks_and_stays_in_bounds() {
    check("tiny-nemo", &[2, 4]);
}

#[test]
fn qwen3_computes_the_same_on_two_and_four_ranks_and_stays_in_bounds() {
    check("tiny-qwen3", &[2, 4]);
}

#[test]
fn mixtral_computes_the_same_on_two_and_four_ranks_and_stays_in_bounds() {
    check("tiny-mixtral", &[2, 4]);
}

#[test]
fn three_ranks_serve_a_model_whose_sizes_divide_by_three() {
    check("tiny-6-heads", &[3]);
}

#[test]
fn the_dynamic_codec_needs_no_manifest_and_stays_in_bounds() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model::checkpoint(folder.path(), "tiny-llama", 0, 0);
    let config = model::config(folder.path(), "dynamic", "{kind: dynamic}", model::GROUP);
    let evaluated = eval(folder.path(), &model, 2, Some(&config));
    assert_eq!(evaluated.result["codec"], "dynamic");
    assert_sound(&evaluated, 2);
    assert_quantized(&evaluated);
}

fn check(preset: &str, worlds: &[usize]) {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let width = mistralrs_tpq::checkpoint::CheckpointSpec::preset(preset)
        .unwrap()
        .hidden;
    // As many as `calibration.outliers` selects by default.
    let (model, spec) = model::checkpoint(folder.path(), preset, 0, width / 64);
    let alone = eval(folder.path(), &model, 1, None);
    assert_eq!(alone.result["ranks"], 1);
    assert_eq!(alone.result["tokens"], WINDOW * WINDOWS);
    assert_eq!(alone.logits["lossless.0000"].shape, [WINDOW, spec.vocab]);
    assert_varied(&alone.logits["lossless.0000"]);

    for &ranks in worlds {
        let manifest = calibrate(folder.path(), &model, ranks);
        assert_outliers(&manifest, &spec.outlier_features());
        let together = eval(folder.path(), &model, ranks, Some(&paper(folder.path(), &manifest)));
        assert_eq!(together.result["codec"], "paper");
        assert_sound(&together, ranks);
        assert_quantized(&together);
        for window in 0..WINDOWS {
            let name = format!("lossless.{window:04}");
            let difference = relative_difference(&alone.logits[&name], &together.logits[&name]);
            assert!(difference <= LOSSLESS, "{preset}, {ranks} ranks, {name}: {difference}");
        }
    }
}

/// What holds for every codec.
fn assert_sound(evaluated: &Evaluated, ranks: usize) {
    let result = &evaluated.result;
    assert_eq!(result["ranks"], ranks, "{result}");
    assert_eq!(result["out_of_bound"], 0, "{result}");
    assert_eq!(result["ranks_bit_identical"], true, "{result}");
    assert!(
        result["kl"].as_f64().unwrap() >= -1e-9 && result["ppl"].as_f64().unwrap().is_finite(),
        "{result}"
    );
    assert!(
        result["bytes_per_rank"].as_u64() < result["bytes_per_rank_bf16"].as_u64(),
        "{result}"
    );
}

/// The configured codec was in use, and its error is a rounding error. No upper limit for the logits: random weights have
/// none (Gemma 2 normalises each block's small output, Mixtral may route to another expert); the bound of each site is
/// what `out_of_bound` counts.
fn assert_quantized(evaluated: &Evaluated) {
    let result = &evaluated.result;
    let bits = result["bits_per_value"].as_f64().unwrap();
    assert!((4.1..=4.5).contains(&bits), "{result}");
    assert!(result["sqnr_db"].as_f64().unwrap() > 10.0, "{result}");
    for window in 0..WINDOWS {
        let lossless = &evaluated.logits[&format!("lossless.{window:04}")];
        let configured = &evaluated.logits[&format!("configured.{window:04}")];
        let difference = relative_difference(lossless, configured);
        assert!(
            difference > 1e-6 && difference.is_finite(),
            "window {window}: {difference}"
        );
    }
}

/// A model that ignored its input would agree with itself under any exchange.
fn assert_varied(logits: &Logits) {
    let vocab = logits.shape[1];
    let (first, last) = (&logits.values[..vocab], &logits.values[logits.values.len() - vocab..]);
    let row = |values: &[f32]| Logits {
        shape: vec![vocab],
        values: values.to_vec(),
    };
    assert!(relative_difference(&row(first), &row(last)) > 0.01);
}

/// Calibration selected the features that the checkpoint was given large.
fn assert_outliers(manifest: &Path, expected: &[usize]) {
    let mut command = tpq();
    command.args(["--json", "inspect"]).arg(manifest);
    let report: serde_json::Value = serde_json::from_str(&succeed(command, LIMIT).stdout).unwrap();
    let layers = report["layers"].as_array().unwrap();
    assert!(!layers.is_empty());
    for layer in layers {
        let features: Vec<usize> = layer["outlier_ranges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["feature"].as_u64().unwrap() as usize)
            .collect();
        assert_eq!(features, expected, "{}", layer["name"]);
    }
}
