//! Models, texts and configurations for tests.

use std::path::{Path, PathBuf};

use mistralrs_tpq::checkpoint::CheckpointSpec;

/// 1,100 tokens for a model with a token a byte.
pub const TEXT: &str = "\
Tensor parallelism splits the weights of each layer over several ranks. After every attention output projection and after
every down projection of the MLP a rank holds a partial sum, and an all-reduce adds the partial sums of all ranks. Over
Ethernet or PCIe that all-reduce takes most of the time, so it pays to send fewer bits.

A few features of a partial sum are much larger than the others, and always the same ones: they keep sixteen bits. The
others are rounded to one of sixteen levels whose distance was measured in advance, feature by feature, on other text.
Every rank adds the rounded copy of its own part as well, in the order of the ranks, so that all of them end with the same
bits and no rank can drift away from the others, however long they run.

fn all_reduce(parts: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = vec![0.0; parts[0].len()];
    for part in parts {
        for (sum, value) in sum.iter_mut().zip(part) {
            *sum += value;
        }
    }
    sum
}
";

/// A checkpoint of `preset` in `folder`, and its spec.
pub fn checkpoint(folder: &Path, preset: &str, seed: u64, outliers: usize) -> (PathBuf, CheckpointSpec) {
    let spec = CheckpointSpec {
        seed,
        outliers,
        ..CheckpointSpec::preset(preset).unwrap()
    };
    let dir = folder.join(format!("{preset}-{seed}"));
    spec.write(&dir).unwrap();
    (dir, spec)
}

/// The trained demo model: its greedy text is text.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo-model")
}

/// [`TEXT`] as a file in `folder`.
pub fn text(folder: &Path) -> PathBuf {
    let path = folder.join("text.md");
    std::fs::write(&path, TEXT).unwrap();
    path
}

/// A tpq.yaml in `folder`. `codec` as in YAML: `{kind: dynamic}`; `group` likewise.
pub fn config(folder: &Path, name: &str, codec: &str, group: &str) -> PathBuf {
    let path = folder.join(format!("{name}.yaml"));
    std::fs::write(&path, format!("version: 1\ncodec: {codec}\ngroup: {group}\n")).unwrap();
    path
}

/// Waits that suit a busy test host, and still end long before a test's deadline.
pub const GROUP: &str = "{connect_timeout_s: 60, timeout_s: 20}";
