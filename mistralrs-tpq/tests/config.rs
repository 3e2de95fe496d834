//! `tpq.yaml` and the environment: what loads, and what each mistake is answered with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mistralrs_tpq::config::{
    BudgetScope, CodecPlan, Environment, Nonfinite, OutlierCount, Plan, Topology, TopologySource,
};
use mistralrs_tpq::exchange::Algorithm;
use mistralrs_tpq::transport::tcp::Congestion;

#[path = "config/drift.rs"]
mod drift;
#[path = "config/exchange.rs"]
mod exchange;
#[path = "config/place.rs"]
mod place;

fn parse(text: &str) -> Plan {
    Plan::parse(text, Path::new("conf/tpq.yaml")).unwrap()
}

fn error(text: &str) -> String {
    Plan::parse(text, Path::new("conf/tpq.yaml")).unwrap_err().to_string()
}

/// `body` below a valid head of two lines.
fn error_in(body: &str) -> String {
    error(&format!("version: 1\ncodec: {{kind: none}}\n{body}\n"))
}

fn topology(text: &str, variables: &[(&str, &str)]) -> Result<Topology, String> {
    let environment: Environment = variables.iter().copied().collect();
    parse(text).topology(&environment).map_err(|error| error.to_string())
}

const NONE: &str = "version: 1\ncodec: {kind: none}\n";
const TWO: &str = "version: 1\ncodec: {kind: none}\ngroup: {peers: [\"127.0.0.1:1\", \"127.0.0.1:2\"]}\n";

#[test]
fn every_file_in_configs_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "yaml") {
            let plan = Plan::load(&path).unwrap_or_else(|error| panic!("{error}"));
            plan.topology(&Environment::from_iter([
                ("TPQ_RANK", "0"),
                ("TPQ_PEERS", "127.0.0.1:1"),
            ]))
            .unwrap();
            seen.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    seen.sort();
    assert_eq!(
        seen,
        [
            "balanced.yaml",
            "dynamic.yaml",
            "near-lossless.yaml",
            "none.yaml",
            "paper.yaml",
            "slow-link.yaml",
            "tpq.yaml"
        ]
    );
}

#[test]
fn the_commented_file_states_the_defaults() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let commented = Plan::load(&folder.join("tpq.yaml")).unwrap();
    let bare = Plan::load(&folder.join("dynamic.yaml")).unwrap();
    assert_eq!(commented.links, bare.links);
    assert_eq!(commented.exchange, bare.exchange);
    assert_eq!(commented.calibration.sequences, bare.calibration.sequences);
    assert_eq!(commented.calibration, bare.calibration);
    assert_eq!(commented.codec, bare.codec);
    assert_eq!(commented.drift, bare.drift);
}

#[test]
fn a_full_file_means_what_it_says() {
    let plan = parse(
        "version: 1\ngroup: {rank: 1, peers: [\"10.0.0.1:7700\", \"[fd00::2]:7700\"], insecure: true, connect_timeout_s: 5, \
         timeout_s: 2.5, heartbeat_s: 0.5, busy_poll_us: 0, congestion_control: reno}\ncodec: {kind: paper, manifest: m/manifest.yaml}\n\
         exchange: {algorithm: one_shot, nonfinite: fallback, min_tokens: 8, prefill_only: true}\n\
         calibration: {sequences: 3, tokens: 4, ema: 0.5, outliers: {k: 7}, seed: 9}\n",
    );
    assert_eq!(plan.links.timeout, Duration::from_millis(2500));
    assert_eq!(plan.links.heartbeat, Duration::from_millis(500));
    assert_eq!(plan.links.connect_timeout, Duration::from_secs(5));
    assert_eq!(plan.links.busy_poll, Duration::ZERO);
    assert_eq!(plan.links.congestion, Congestion::Named("reno".to_owned()));
    assert_eq!(
        plan.codec,
        CodecPlan::Paper {
            manifest: PathBuf::from("conf/m/manifest.yaml")
        }
    );
    assert_eq!(
        (plan.exchange.algorithm, plan.exchange.nonfinite),
        (Algorithm::OneShot, Nonfinite::Fallback)
    );
    assert_eq!((plan.exchange.min_tokens, plan.exchange.prefill_only), (8, true));
    assert_eq!(
        (
            plan.calibration.sequences,
            plan.calibration.tokens,
            plan.calibration.seed
        ),
        (3, 4, 9)
    );
    assert_eq!(plan.calibration.outliers, OutlierCount::Count(7));
    let Topology::Group(member) = plan.topology(&Environment::default()).unwrap() else {
        panic!("not a group")
    };
    assert_eq!(
        (member.rank, member.world_size(), member.source),
        (1, 2, TopologySource::File)
    );
}

#[test]
fn a_shorter_timeout_brings_its_heartbeat_along() {
    let plan = parse("version: 1\ncodec: {kind: none}\ngroup: {timeout_s: 1}\n");
    assert_eq!(plan.links.heartbeat, Duration::from_millis(100));
}

#[test]
fn an_absolute_manifest_path_stays_absolute() {
    let plan = parse("version: 1\ncodec: {kind: paper, manifest: /models/m.yaml}\n");
    assert_eq!(
        plan.codec,
        CodecPlan::Paper {
            manifest: PathBuf::from("/models/m.yaml")
        }
    );
}

#[test]
fn outliers_may_be_dealt_out_over_the_model() {
    let outliers = |text: &str| format!("version: 1\ncodec: {{kind: none}}\ncalibration: {{outliers: {text}}}\n");
    let adaptive = parse(&outliers("adaptive")).calibration.outliers;
    // The average over the layers.
    assert!(matches!(adaptive, OutlierCount::Adaptive(_)));
    assert_eq!(adaptive.resolve("l", 4096).ok(), Some(64));
    assert!(error(&outliers("adaptiv")).contains("`calibration.outliers` is `adaptiv`, expected adaptive, or keys"));
}

#[test]
fn outliers_are_floored_exactly() {
    let k = |outliers: &str, features| {
        let plan = parse(&format!(
            "version: 1\ncodec: {{kind: none}}\ncalibration: {{outliers: {outliers}}}\n"
        ));
        plan.calibration
            .outliers
            .resolve("l", features)
            .map_err(|error| error.to_string())
    };
    assert_eq!(k("{fraction: \"1/64\"}", 4096), Ok(64));
    assert_eq!(k("{fraction: 0.015625}", 4096), Ok(64));
    assert_eq!(k("{}", 63), Ok(0));
    assert_eq!(k("{fraction: 0}", 4096), Ok(0));
    assert_eq!(k("{k: 64}", 65), Ok(64));
    assert_eq!(
        k("{k: 64}", 64).unwrap_err(),
        "layer l: 64 outliers of 64 features, expected fewer outliers than features (`calibration.outliers.k`)"
    );
}

#[test]
fn an_unknown_key_names_file_line_path_and_the_nearest_key() {
    assert_eq!(
        error_in("exchange:\n  # a comment\n  algoritm: auto"),
        "conf/tpq.yaml:5: unknown key `exchange.algoritm`, did you mean `exchange.algorithm`?; \
         keys here: algorithm, batch_invariant, gather_bits, nonfinite, min_tokens, min_bytes, prefill_only, table, gpu_link"
    );
    let top = error_in("codecs: {kind: none}");
    assert!(
        top.starts_with("conf/tpq.yaml:3: unknown key `codecs`, did you mean `codec`?"),
        "{top}"
    );
    let deep = error_in("calibration:\n  outliers:\n    frac: 1/64");
    assert!(
        deep.starts_with(
            "conf/tpq.yaml:5: unknown key `calibration.outliers.frac`, did you mean `calibration.outliers.fraction`?"
        ),
        "{deep}"
    );
}

#[test]
fn an_unknown_key_unlike_any_other_gets_the_list_only() {
    let message = error_in("zzz: 1");
    assert_eq!(
        message,
        "conf/tpq.yaml:3: unknown key `zzz`; keys here: version, group, codec, exchange, calibration, drift"
    );
}

#[test]
fn a_key_that_is_not_text_is_unknown() {
    assert!(error_in("7: 1").contains("unknown key `7`"));
}

#[test]
fn a_file_without_version_or_with_another_is_refused() {
    assert_eq!(
        error("codec: {kind: none}"),
        "conf/tpq.yaml: `version` is missing: write `version: 1`, the format of this file"
    );
    assert_eq!(
        error("version: 2\n"),
        "conf/tpq.yaml:1: `version` is 2, expected 1, the only format this version of tpq reads"
    );
    assert!(error("").contains("`version` is missing"));
}

#[test]
fn text_that_is_not_a_mapping_is_refused() {
    assert!(error("- a\n").contains("the file holds a list of 1, expected keys such as `version: 1`"));
    let broken = error("version: 1\ncodec: {kind: none\ngroup: 3\n");
    assert!(
        broken.starts_with("conf/tpq.yaml:") && broken.contains("not valid YAML"),
        "{broken}"
    );
    assert!(error("version: 1\nversion: 1\n").contains("duplicate"));
}

#[test]
fn deep_nesting_and_alias_bombs_are_errors() {
    assert!(error(&"[".repeat(100_000)).contains("not valid YAML"));
    let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x]\n");
    for (name, last) in ('b'..='i').zip('a'..) {
        bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{last}"); 9].join(", "));
    }
    error(&bomb);
}

#[test]
fn a_codec_without_kind_or_with_an_unknown_one_is_refused() {
    let missing = error("version: 1\n");
    assert!(
        missing.contains("`codec.kind` is missing: choose none, rd or paper"),
        "{missing}"
    );
    assert_eq!(
        error("version: 1\ncodec:\n  kind: papr\n"),
        "conf/tpq.yaml:3: `codec.kind` is `papr`, expected one of none, paper, dynamic, rd (did you mean `paper`?)"
    );
    assert!(error("version: 1\ncodec: {kind: 4}\n").contains("`codec.kind` is 4, expected one of"));
    assert!(error("version: 1\ncodec: paper\n").contains("`codec` is `paper`, expected keys: kind, manifest"));
}

#[test]
fn rd_takes_a_budget_that_is_part_of_the_policy() {
    let rd = |bits: &str| parse(&format!("version: 1\ncodec: {{kind: rd, manifest: m.yaml{bits}}}\n"));
    let manifest = || PathBuf::from("conf/m.yaml");
    assert_eq!(
        rd("").codec,
        CodecPlan::Rd {
            manifest: manifest(),
            bits: 4.1875,
            entropy: false,
            scope: BudgetScope::Layer,
        }
    );
    assert_eq!(
        rd(", bits: 3, entropy: true, budget_scope: model").codec,
        CodecPlan::Rd {
            manifest: manifest(),
            bits: 3.0,
            entropy: true,
            scope: BudgetScope::Model,
        }
    );
    assert_ne!(rd("").policy_digest(), rd(", bits: 3").policy_digest());
    assert_ne!(rd("").policy_digest(), rd(", entropy: true").policy_digest());
    assert_ne!(rd("").policy_digest(), rd(", budget_scope: model").policy_digest());
    assert!(
        error("version: 1\ncodec: {kind: rd, manifest: m.yaml, budget_scope: all}\n")
            .contains("`codec.budget_scope` is `all`, expected one of layer, model")
    );
    for bits in ["0.4", "17", "many"] {
        let message = error(&format!(
            "version: 1\ncodec: {{kind: rd, manifest: m.yaml, bits: {bits}}}\n"
        ));
        assert!(
            message.contains("`codec.bits` is") && message.contains("from 0.5 to 16"),
            "{message}"
        );
    }
    let message = error("version: 1\ncodec: {kind: rd}\n");
    assert!(
        message.contains("`codec.manifest` is missing") && message.contains("`tpq calibrate`"),
        "{message}"
    );
}

#[test]
fn paper_without_a_manifest_names_the_command_that_makes_one() {
    let message = error("version: 1\ncodec: {kind: paper}\n");
    assert!(
        message.starts_with("conf/tpq.yaml:2: `codec.manifest` is missing"),
        "{message}"
    );
    assert!(message.contains("`tpq calibrate`"), "{message}");
    assert!(
        error("version: 1\ncodec: {kind: paper, manifest: 3}\n").contains("`codec.manifest` is 3, expected the path")
    );
}

#[test]
fn every_wrong_value_names_key_value_and_expected() {
    for (body, expected) in [
        (
            "exchange: {algorithm: rings}",
            "`exchange.algorithm` is `rings`, expected one of auto, one_shot, two_shot, ring, doubling, lossless (did you mean `ring`?)",
        ),
        (
            "exchange: {nonfinite: ignore}",
            "`exchange.nonfinite` is `ignore`, expected one of fail, fallback",
        ),
        (
            "exchange: {min_tokens: -1}",
            "`exchange.min_tokens` is -1, expected a whole number from 0 to 1048576",
        ),
        (
            "exchange: {min_tokens: 1.5}",
            "`exchange.min_tokens` is 1.5, expected a whole number",
        ),
        (
            "exchange: {prefill_only: 1}",
            "`exchange.prefill_only` is 1, expected true or false",
        ),
        (
            "group: {insecure: \"yes\"}",
            "`group.insecure` is `yes`, expected true or false",
        ),
        (
            "group: {timeout_s: 0}",
            "`group.timeout_s` is 0, expected seconds from 0.05 to 3600",
        ),
        (
            "group: {timeout_s: ten}",
            "`group.timeout_s` is `ten`, expected seconds",
        ),
        (
            "group: {timeout_s: .nan}",
            "`group.timeout_s` is .nan, expected seconds",
        ),
        (
            "group: {connect_timeout_s: 1e9}",
            "`group.connect_timeout_s` is 1000000000.0, expected seconds from 0.1 to 86400",
        ),
        (
            "group: {heartbeat_s: 6}",
            "`group.heartbeat_s` is 6, expected at most half of `group.timeout_s`, which is 10",
        ),
        (
            "group: {busy_poll_us: 100001}",
            "`group.busy_poll_us` is 100001, expected a whole number from 0 to 100000",
        ),
        (
            "group: {congestion_control: 3}",
            "`group.congestion_control` is 3, expected auto, system, or a name such as cubic",
        ),
        (
            "group: {congestion_control: more-than-15-bytes}",
            "`group.congestion_control` is `more-than-15-bytes`, expected auto, system, or a name such as cubic",
        ),
        (
            "group: {peers: 3}",
            "`group.peers` is 3, expected a list of 1 to 64 addresses",
        ),
        (
            "group: {peers: []}",
            "`group.peers` is a list of 0, expected a list of 1 to 64 addresses",
        ),
        (
            "group: {peers: [\"127.0.0.1:1\", \"host\"]}",
            "`group.peers[1]` is `host`, expected an address that the other ranks",
        ),
        (
            "group: {peers: [7700]}",
            "`group.peers[0]` is 7700, expected an address",
        ),
        (
            "group: {peers: [\"a:1\", \"b:1\", \"A:1\"]}",
            "`group.peers[2]` is `A:1`, expected an address of its own: rank 0 has the same",
        ),
        (
            "group: {rank: 2, peers: [\"a:1\", \"b:1\"]}",
            "`group.rank` is 2, expected below the world size 2",
        ),
        (
            "group: {rank: -1, peers: [\"a:1\"]}",
            "`group.rank` is -1, expected a whole number from 0 to 63",
        ),
        (
            "group: {rank: 0}",
            "`group.peers` is missing: `group.rank` means nothing without",
        ),
        (
            "calibration: {sequences: 0}",
            "`calibration.sequences` is 0, expected a whole number from 1 to 1000000",
        ),
        (
            "calibration: {tokens: many}",
            "`calibration.tokens` is `many`, expected a whole number",
        ),
        (
            "calibration: {ema: 1}",
            "`calibration.ema` is 1, expected a number above 0 and below 1",
        ),
        (
            "calibration: {ema: 0.0}",
            "`calibration.ema` is 0.0, expected a number above 0 and below 1",
        ),
        (
            "calibration: {seed: -3}",
            "`calibration.seed` is -3, expected a whole number",
        ),
        (
            "calibration: {outliers: 64}",
            "`calibration.outliers` is 64, expected keys: fraction, k",
        ),
        (
            "calibration: {outliers: {k: -1}}",
            "`calibration.outliers.k` is -1, expected a whole number from 0 to 1048575",
        ),
        (
            "calibration: {outliers: {k: 1048576}}",
            "`calibration.outliers.k` is 1048576, expected a whole number",
        ),
        (
            "calibration: {outliers: {fraction: \"1/0\"}}",
            "`calibration.outliers.fraction` is `1/0`, expected at least 0 and below 1",
        ),
        (
            "calibration: {outliers: {fraction: \"3/2\"}}",
            "`calibration.outliers.fraction` is `3/2`, expected at least 0",
        ),
        (
            "calibration: {outliers: {fraction: 1.0}}",
            "`calibration.outliers.fraction` is 1.0, expected at least 0",
        ),
        (
            "calibration: {outliers: {fraction: 0.5, k: 3}}",
            "`calibration.outliers.k` is 3, and `calibration.outliers.fraction` is 0.5, expected one of the two",
        ),
    ] {
        let message = error_in(body);
        assert!(
            message.starts_with(&format!("conf/tpq.yaml:3: {expected}")),
            "{body}\n{message}"
        );
    }
}

#[test]
fn a_value_cannot_break_the_line_of_its_message() {
    let message = error_in("exchange: {algorithm: \"a\\nb\\e[31m\"}");
    assert!(!message.contains('\n') && !message.contains('\u{1b}'), "{message:?}");
}

#[test]
fn a_missing_file_and_a_huge_one_are_named() {
    let missing = Plan::load(Path::new("/nonexistent/tpq.yaml")).unwrap_err().to_string();
    assert!(
        missing.starts_with("cannot read the configuration /nonexistent/tpq.yaml: "),
        "{missing}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.yaml");
    std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(Plan::load(&path)
        .unwrap_err()
        .to_string()
        .contains("not a tpq configuration"));
    std::fs::write(&path, b"version: \xff").unwrap();
    assert!(Plan::load(&path).unwrap_err().to_string().contains("big.yaml"));
}
