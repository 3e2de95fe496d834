//! Manifests on disk: round trips, edits by hand, what fits the running model, and (`damage`) what is refused.

#[path = "manifest/damage.rs"]
mod damage;

use mistralrs_tpq::calibrate::Curve;
use mistralrs_tpq::codec::{Dtype, SHAPE_LEN};
use mistralrs_tpq::manifest::{Digest, Expected, Header, Layer, Manifest, ManifestError, Priority};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn header() -> Header {
    Header {
        model: Digest([1; 32]),
        dtype: Dtype::Bf16,
        world_size: 2,
        corpus: Digest([2; 32]),
        sequences: 256,
        tokens: 128,
        ema: 0.99,
    }
}

fn layer(name: &str) -> Layer {
    let ranges = (0..16).map(|i| i as f32 * 0.25 + 0.125).collect();
    Layer::new(name, 8, vec![3, 7], ranges, 17.6).unwrap()
}

fn manifest() -> Manifest {
    let layers = vec![
        layer("model.layers.0.self_attn.o_proj"),
        layer("model.layers.0.mlp.down_proj"),
    ];
    Manifest::new(header(), layers).unwrap()
}

fn curves() -> Vec<Curve> {
    let curve = |i: u8| Curve {
        error: std::array::from_fn(|class| f32::from(i) / (class + 1) as f32),
        step: std::array::from_fn(|class| f32::from(i) + class as f32),
    };
    (0..16).map(curve).collect()
}

#[test]
fn a_layers_priority_round_trips_and_one_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let priority = |extra_bits| Priority {
        sensitivity: 0.0625,
        extra_bits,
    };
    let layers = vec![layer("a.b").with_priority(priority(-0.25)).unwrap(), layer("a.c")];
    let with = Manifest::new(header(), layers).unwrap();
    let path = with.write(folder.path()).unwrap();
    let read = Manifest::load(&path).unwrap();
    assert_eq!(
        (read.layers()[0].priority(), read.layers()[1].priority()),
        (Some(priority(-0.25)), None)
    );
    let without = Manifest::new(header(), vec![layer("a.b"), layer("a.c")]).unwrap();
    assert_ne!(
        with.digest(),
        without.digest(),
        "peers compare what their bits follow from"
    );
    for extra_bits in [1.5, f32::NAN] {
        assert!(layer("a.b").with_priority(priority(extra_bits)).is_err());
    }
}

#[test]
fn curves_round_trip_and_damage_to_them_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let layers = vec![layer("a.b").with_curves(curves(), vec![0.5; SHAPE_LEN]).unwrap()];
    let with = Manifest::new(header(), layers).unwrap();
    let path = with.write(folder.path()).unwrap();
    let read = Manifest::load(&path).unwrap();
    assert_eq!(read, with);
    assert_eq!(read.layers()[0].curves(), curves());
    assert_eq!(read.layers()[0].shape(), [0.5; SHAPE_LEN]);
    let without = Manifest::new(header(), vec![layer("a.b")]).unwrap();
    assert_ne!(with.digest(), without.digest(), "peers compare the curves too");

    let file = folder.path().join("curves.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let error = Manifest::load(&path).unwrap_err().to_string();
    assert!(
        error.contains("curves.safetensors") && error.contains("SHA-256"),
        "{error}"
    );
    std::fs::remove_file(&file).unwrap();
    assert!(Manifest::load(&path).unwrap_err().to_string().contains("cannot read"));

    let mut bad = curves();
    bad[9].error[3] = f32::NAN;
    let error = layer("a.b")
        .with_curves(bad, vec![0.5; SHAPE_LEN])
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("layer a.b, rank 1, feature 1:"), "{error}");
    assert!(matches!(
        layer("a.b").with_curves(curves()[1..].to_vec(), vec![0.5; SHAPE_LEN]),
        Err(ManifestError::Shape { .. })
    ));
}

struct OnDisk {
    folder: tempfile::TempDir,
}

impl OnDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        manifest().write(folder.path()).unwrap();
        Self { folder }
    }

    fn yaml(&self) -> PathBuf {
        self.folder.path().join("manifest.yaml")
    }

    fn scales(&self) -> PathBuf {
        self.folder.path().join("scales.safetensors")
    }

    fn edit(&self, from: &str, to: &str) -> &Self {
        let text = std::fs::read_to_string(self.yaml()).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        std::fs::write(self.yaml(), text.replacen(from, to, 1)).unwrap();
        self
    }

    /// Replaces the scales, with a digest in the YAML that matches.
    fn forge(&self, bytes: &[u8]) -> &Self {
        let old = Digest::of(&std::fs::read(self.scales()).unwrap());
        std::fs::write(self.scales(), bytes).unwrap();
        self.edit(&old.to_string(), &Digest::of(bytes).to_string())
    }

    fn load(&self) -> Result<Manifest, ManifestError> {
        Manifest::load(&self.yaml())
    }

    fn error(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

const O_PROJ: &str = "model.layers.0.self_attn.o_proj";
const DOWN: &str = "model.layers.0.mlp.down_proj";

#[test]
fn a_written_manifest_loads_to_the_same_and_leaves_no_other_file() {
    let disk = OnDisk::new();
    assert_eq!(disk.load().unwrap(), manifest());
    assert_eq!(disk.load().unwrap().digest(), manifest().digest());
    assert_eq!(std::fs::read_dir(disk.folder.path()).unwrap().count(), 2);
    // Writing again over an older manifest replaces both files.
    let one = Manifest::new(header(), vec![layer("x")]).unwrap();
    one.write(disk.folder.path()).unwrap();
    assert_eq!(disk.load().unwrap(), one);
}

#[test]
fn a_folder_that_cannot_be_written_is_named_and_nothing_is_left_behind() {
    let disk = OnDisk::new();
    let blocked = disk.yaml().join("sub");
    let message = manifest().write(&blocked).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("cannot write {}", blocked.display())),
        "{message}"
    );
    assert_eq!(std::fs::read_dir(disk.folder.path()).unwrap().count(), 2);
}

#[test]
fn an_edited_outlier_list_loads_and_changes_the_digest() {
    let disk = OnDisk::new();
    let before = disk.load().unwrap();
    let after = disk.edit("outliers: [3, 7]", "outliers: [0, 3, 5]").load().unwrap();
    assert_eq!(after.layer(O_PROJ).unwrap().outliers(), [0, 3, 5]);
    assert_eq!(after.layer(DOWN).unwrap().outliers(), [3, 7]);
    assert_ne!(after.digest(), before.digest());
    assert_eq!(after.scales_digest(), before.scales_digest());
    let emptied = disk.edit("outliers: [0, 3, 5]", "outliers: []").load().unwrap();
    assert!(emptied.layer(O_PROJ).unwrap().outliers().is_empty());
}

#[test]
fn comments_and_spacing_do_not_change_the_digest() {
    let disk = OnDisk::new();
    disk.edit("[3, 7]", "\n  - 3   # the loud one\n  - 7");
    assert_eq!(disk.load().unwrap().digest(), manifest().digest());
}

#[test]
fn a_copy_keeps_its_digest_even_after_being_written_again() {
    let disk = OnDisk::new();
    let again = tempfile::tempdir().unwrap();
    let path = disk.load().unwrap().write(again.path()).unwrap();
    assert_eq!(Manifest::load(&path).unwrap().digest(), manifest().digest());
    assert_eq!(std::fs::read(path).unwrap(), std::fs::read(disk.yaml()).unwrap());
}

#[test]
fn a_manifest_for_another_model_dtype_or_world_size_names_field_both_values_and_remedy() {
    let manifest = manifest();
    let good = Expected {
        fingerprint: Digest([1; 32]),
        dtype: Dtype::Bf16,
        world_size: 2,
    };
    manifest.check_matches(&good).unwrap();
    let message = |expected: Expected| manifest.check_matches(&expected).unwrap_err().to_string();
    let model = message(Expected {
        fingerprint: Digest([9; 32]),
        ..good
    });
    assert!(
        model.contains("another model fingerprint")
            && model.contains(&"01".repeat(32))
            && model.contains(&"09".repeat(32)),
        "{model}"
    );
    assert!(model.contains("`tpq calibrate`"));
    let dtype = message(Expected {
        dtype: Dtype::F32,
        ..good
    });
    assert!(
        dtype.contains("another dtype: it has bf16, the running model has f32"),
        "{dtype}"
    );
    let size = message(Expected { world_size: 4, ..good });
    assert!(
        size.contains("another world size: it has 2, the running model has 4; ") && size.contains("calibrate again"),
        "{size}"
    );
}

#[test]
fn a_layer_the_model_has_and_the_manifest_lacks_names_the_nearest() {
    let manifest = manifest();
    assert!(manifest.require(DOWN, 8).is_ok());
    let missing = manifest.require("model.layers.0.mlp.down", 8).unwrap_err().to_string();
    assert_eq!(
        missing,
        "the manifest has no layer model.layers.0.mlp.down; nearest: model.layers.0.mlp.down_proj"
    );
    let width = manifest.require(DOWN, 16).unwrap_err().to_string();
    assert!(
        width.contains("has ranges of shape [2, 8], expected [2, 16]"),
        "{width}"
    );
}

#[test]
fn a_manifest_cannot_be_made_from_parts_that_do_not_fit() {
    let make = |header, layers| Manifest::new(header, layers).unwrap_err().to_string();
    assert!(make(header(), vec![]).contains("`layers` is 0"));
    assert!(make(
        Header {
            world_size: 4,
            ..header()
        },
        vec![layer("a")]
    )
    .contains("[2, 8], expected [4, 8]"));
    assert!(make(
        Header {
            ema: f64::NAN,
            ..header()
        },
        vec![layer("a")]
    )
    .contains("`calibration.ema` is NaN"));
    assert!(make(header(), vec![layer("a"), layer("a")]).contains("layer a is listed twice"));
    let bad = |name: &str, ranges: Vec<f32>| Layer::new(name, 2, vec![], ranges, 0.0).unwrap_err().to_string();
    assert!(bad("a", vec![1.0; 3]).contains("shape [3]"));
    assert!(bad("a", vec![]).contains("shape [0]"));
    assert!(bad("a", vec![1.0, f32::INFINITY]).contains("rank 0, feature 1 has range inf"));
    assert!(bad("", vec![1.0; 2]).contains("`layers.name`"));
}

#[test]
fn the_summary_describes_the_mean_over_ranks() {
    let layer = Layer::new(
        "a",
        4,
        vec![3],
        vec![0.0, 1.0, 2.0, 10.0, 0.0, 3.0, 2.0, 30.0],
        f32::INFINITY,
    )
    .unwrap();
    let summary = layer.summary();
    assert_eq!(
        (summary.min, summary.median, summary.max, summary.spread),
        (0.0, 2.0, 20.0, 10.0)
    );
    assert_eq!(summary.expected_sqnr_db, 200.0);
    assert_eq!(layer.bits_per_value(), 4.0 + 12.0 / 4.0);
    let zeros = Layer::new("a", 2, vec![], vec![0.0; 2], 0.0).unwrap().summary();
    assert_eq!((zeros.max, zeros.spread), (0.0, 1.0));
}

fn any_layer(world_size: usize) -> impl Strategy<Value = (usize, Vec<u32>, Vec<f32>, f32)> {
    (1usize..40).prop_flat_map(move |features| {
        let outliers = prop::collection::btree_set(0..features as u32, 0..features.min(9));
        let range = prop_oneof![
            Just(0.0f32),
            0f32..100.0,
            0f32..=f32::MAX,
            Just(f32::MIN_POSITIVE / 8.0)
        ];
        let ranges = prop::collection::vec(range, world_size * features);
        (
            Just(features),
            outliers.prop_map(|set| set.into_iter().collect()),
            ranges,
            -250f32..250.0,
        )
    })
}

prop_compose! {
    fn any_manifest()(world_size in 1usize..5)(
        world_size in Just(world_size),
        layers in prop::collection::vec(any_layer(world_size), 1..6),
        (model, corpus) in (any::<[u8; 32]>(), any::<[u8; 32]>()),
        (sequences, tokens) in any::<(u64, u64)>(),
        ema in 1e-9f64..1.0,
        dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::Bf16), Just(Dtype::F16)],
    ) -> Manifest {
        let layers = layers
            .into_iter()
            .enumerate()
            .map(|(i, (features, outliers, ranges, sqnr))| Layer::new(&format!("model.layers.{i}.x"), features, outliers, ranges, sqnr).unwrap())
            .collect();
        let header = Header { model: Digest(model), dtype, world_size, corpus: Digest(corpus), sequences, tokens, ema };
        Manifest::new(header, layers).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_manifest_survives_the_disk_bit_for_bit(manifest in any_manifest()) {
        let folder = tempfile::tempdir().unwrap();
        let loaded = Manifest::load(&manifest.write(folder.path()).unwrap()).unwrap();
        prop_assert_eq!(loaded.digest(), manifest.digest());
        prop_assert_eq!(loaded, manifest);
    }
}

#[test]
fn a_name_alone_is_a_path_too() {
    assert!(Manifest::load(Path::new("no-such-manifest.yaml")).is_err());
}
