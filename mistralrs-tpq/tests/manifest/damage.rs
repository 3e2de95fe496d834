//! Files that are missing, cut, altered or impossible: each refused with what was expected, none a panic.

use std::error::Error;

use mistralrs_tpq::manifest::{Digest, Manifest, ManifestError};
use proptest::prelude::*;

use crate::{OnDisk, DOWN, O_PROJ};

fn safetensors(tensors: &[(&str, safetensors::Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (
            *name,
            safetensors::tensor::TensorView::new(*dtype, shape.to_vec(), data).unwrap(),
        )
    });
    safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
}

#[test]
fn truncated_or_altered_scales_state_both_digests() {
    let disk = OnDisk::new();
    let bytes = std::fs::read(disk.scales()).unwrap();
    let expected = Digest::of(&bytes);
    let mut altered = bytes.clone();
    *altered.last_mut().unwrap() ^= 1;
    for damaged in [&bytes[..bytes.len() - 1], &bytes[..4], &[], &altered] {
        std::fs::write(disk.scales(), damaged).unwrap();
        let message = disk.error();
        assert!(message.starts_with(&disk.scales().display().to_string()), "{message}");
        let got = Digest::of(damaged);
        assert!(
            message.contains(&format!(
                "SHA-256 {got} ({} bytes), the manifest expects {expected}",
                damaged.len()
            )),
            "{message}"
        );
    }
}

#[test]
fn missing_files_are_named_with_the_command_that_makes_them() {
    let disk = OnDisk::new();
    std::fs::remove_file(disk.scales()).unwrap();
    let message = disk.error();
    assert!(
        message.starts_with(&format!("cannot read {}", disk.scales().display())) && message.contains("`tpq calibrate`"),
        "{message}"
    );
    std::fs::remove_file(disk.yaml()).unwrap();
    assert!(disk
        .error()
        .starts_with(&format!("cannot read {}", disk.yaml().display())));
}

#[test]
fn scales_larger_than_the_layers_allow_are_not_read() {
    let disk = OnDisk::new();
    std::fs::File::create(disk.scales()).unwrap().set_len(1 << 40).unwrap();
    let message = disk.error();
    assert!(
        message.contains(&format!("{} bytes, expected at most", 1u64 << 40)),
        "{message}"
    );
}

#[test]
fn scales_that_do_not_fit_the_layers_are_refused() {
    use safetensors::Dtype::{BF16, F32};
    let good = [0u8; 64];
    let nan = [f32::NAN.to_le_bytes(); 16].concat();
    let negative = [(-1f32).to_le_bytes(); 16].concat();
    for (bytes, expected) in [
        (b"not tensors".to_vec(), "not a safetensors file"),
        ([u64::MAX.to_le_bytes(), [b'{'; 8]].concat(), "not a safetensors file"),
        (
            safetensors(&[(O_PROJ, F32, &[2, 8], &good)]),
            "no scales for layer model.layers.0.mlp.down_proj",
        ),
        (
            safetensors(&[
                (O_PROJ, F32, &[2, 8], &good),
                (DOWN, F32, &[2, 8], &good),
                ("extra", F32, &[2, 8], &good),
            ]),
            "scales for extra, which the manifest does not list",
        ),
        (
            safetensors(&[(O_PROJ, F32, &[2, 8], &good), (DOWN, F32, &[4, 4], &good)]),
            "layer model.layers.0.mlp.down_proj has ranges of shape [4, 4], expected [2, 8]",
        ),
        (
            safetensors(&[(O_PROJ, F32, &[2, 8], &good), (DOWN, BF16, &[2, 16], &good)]),
            "scales of layer model.layers.0.mlp.down_proj have dtype BF16, expected F32",
        ),
        (
            safetensors(&[(O_PROJ, F32, &[2, 8], &good), (DOWN, F32, &[2, 8], &nan)]),
            "layer model.layers.0.mlp.down_proj, rank 0, feature 0 has range NaN",
        ),
        (
            safetensors(&[(O_PROJ, F32, &[2, 8], &good), (DOWN, F32, &[2, 8], &negative)]),
            "has range -1, expected a finite number that is not negative",
        ),
    ] {
        let message = OnDisk::new().forge(&bytes).error();
        assert!(message.contains(expected), "{message}\n{expected}");
    }
}

#[test]
fn impossible_edits_are_refused_with_layer_and_index() {
    let huge = format!("features: {}", 1u64 << 40);
    for (from, to, expected) in [
        (
            "[3, 7]",
            "[7, 3]",
            "layer model.layers.0.self_attn.o_proj: outlier 3 follows 7, expected indices in ascending order",
        ),
        (
            "[3, 7]",
            "[3, 3]",
            "layer model.layers.0.self_attn.o_proj: outlier 3 is listed twice",
        ),
        (
            "[3, 7]",
            "[3, 8]",
            "layer model.layers.0.self_attn.o_proj: outlier 8 does not exist, expected indices below 8",
        ),
        ("[3, 7]", "[99999999999]", "outlier 99999999999 does not exist"),
        ("[3, 7]", "[-1]", "layers[0].outliers[0]: invalid type: integer `-1`"),
        (
            "features: 8",
            "features: 0",
            "`features of layer model.layers.0.self_attn.o_proj` is 0, expected 1 to 1048576",
        ),
        ("features: 8", &huge, "is 1099511627776, expected 1 to 1048576"),
        (
            "features: 8",
            "features: 9",
            "has ranges of shape [2, 8], expected [2, 9]",
        ),
        ("world_size: 2", "world_size: 0", "`world_size` is 0, expected 1 to 64"),
        (
            "world_size: 2",
            "world_size: 65",
            "`world_size` is 65, expected 1 to 64",
        ),
        (
            "world_size: 2",
            "world_size: 4",
            "has ranges of shape [2, 8], expected [4, 8]",
        ),
        (
            "dtype: bf16",
            "dtype: int4",
            "`dtype` is `int4`, expected f32, bf16 or f16",
        ),
        ("ema: 0.99", "ema: 1.5", "`calibration.ema` is 1.5"),
        ("format: 1", "format: 2", "`format` is 2, expected 1"),
        (
            "file: scales.safetensors",
            "file: ../../etc/passwd",
            "`scales.file` is `../../etc/passwd`, expected scales.safetensors",
        ),
        ("sha256: \"", "sha256: \"0", "`scales.sha256` is"),
        (
            "expected_sqnr_db: 17.6",
            "expected_sqnr_db: .nan",
            "`summary.expected_sqnr_db of layer model.layers.0.self_attn.o_proj` is NaN",
        ),
        ("dtype: bf16", "dtype: bf16\nextra: 1", "unknown field `extra`"),
        ("self_attn.o_proj", "mlp.down_proj", "is listed twice"),
        (
            "model.layers.0.mlp.down_proj",
            "model.layers.0.mlp",
            "no scales for layer model.layers.0.mlp,",
        ),
        (
            "model.layers.0.mlp.down_proj",
            "a\\nb",
            "`layers.name` is `a\\nb`, expected 1 to 256 letters",
        ),
        ("layers:", "layers: []\nother:", "unknown field `other`"),
    ] {
        let disk = OnDisk::new();
        let message = disk.edit(from, to).error();
        assert!(message.contains(expected), "{to}\n{message}\n{expected}");
        assert!(
            message.starts_with(&disk.folder.path().display().to_string()),
            "{message}"
        );
    }
}

#[test]
fn an_error_keeps_its_type_as_the_source() {
    let error = OnDisk::new().edit("[3, 7]", "[3, 3]").load().unwrap_err();
    let source = error
        .source()
        .and_then(|source| source.downcast_ref::<Box<ManifestError>>())
        .map(AsRef::as_ref);
    assert!(
        matches!(source, Some(ManifestError::OutlierDuplicate { index: 3, .. })),
        "{error:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_files_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(), yaml in any::<bool>()) {
        let disk = OnDisk::new();
        let path = if yaml { disk.yaml() } else { disk.scales() };
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        if yaml {
            std::fs::write(&path, &bytes).unwrap();
        } else {
            // Past the digest check, into the parser.
            disk.forge(&bytes);
        }
        let _ = Manifest::load(&disk.yaml());
    }
}
