//! `tpq.yaml` and the environment: what loads, and what each mistake is answered with.

use mistralrs_tpq::config::{
    read_table, table_text, CodecPlan, Environment, Nonfinite, OutlierCount, Plan, Topology, TopologySource,
};
use mistralrs_tpq::exchange::{Algorithm, LinkTable};
use mistralrs_tpq::transport::tcp::Secret;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    assert_eq!(seen, ["dynamic.yaml", "none.yaml", "paper.yaml", "rd.yaml", "tpq.yaml"]);
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
}

#[test]
fn a_full_file_means_what_it_says() {
    let plan = parse(
        "version: 1\ngroup: {rank: 1, peers: [\"10.0.0.1:7700\", \"[fd00::2]:7700\"], insecure: true, connect_timeout_s: 5, \
         timeout_s: 2.5, heartbeat_s: 0.5, busy_poll_us: 0}\ncodec: {kind: paper, manifest: m/manifest.yaml}\n\
         exchange: {algorithm: one_shot, nonfinite: fallback, min_tokens: 8, prefill_only: true}\n\
         calibration: {sequences: 3, tokens: 4, ema: 0.5, outliers: {k: 7}, seed: 9}\n",
    );
    assert_eq!(plan.links.timeout, Duration::from_millis(2500));
    assert_eq!(plan.links.heartbeat, Duration::from_millis(500));
    assert_eq!(plan.links.connect_timeout, Duration::from_secs(5));
    assert_eq!(plan.links.busy_poll, Duration::ZERO);
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
         keys here: algorithm, batch_invariant, gather_bits, nonfinite, min_tokens, min_bytes, prefill_only, table"
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
        "conf/tpq.yaml:3: unknown key `zzz`; keys here: version, group, codec, exchange, calibration"
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
            bits: 4.1875
        }
    );
    assert_eq!(
        rd(", bits: 3").codec,
        CodecPlan::Rd {
            manifest: manifest(),
            bits: 3.0
        }
    );
    assert_ne!(rd("").policy_digest(), rd(", bits: 3").policy_digest());
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

#[test]
fn nothing_configured_is_a_single_process() {
    assert_eq!(topology(NONE, &[]), Ok(Topology::Single));
    assert_eq!(
        topology(NONE, &[("TPQ_RANK", ""), ("TPQ_PEERS", "")]),
        Ok(Topology::Single)
    );
}

#[test]
fn the_environment_overrides_the_file_and_the_file_overrides_ring_config() {
    let launch = [
        ("TPQ_RANK", "1"),
        ("TPQ_PEERS", "127.0.0.1:5,127.0.0.1:6,127.0.0.1:7"),
        ("RING_CONFIG", "r.json"),
    ];
    let Ok(Topology::Group(member)) = topology(TWO, &launch) else {
        panic!("not a group")
    };
    assert_eq!(
        (member.rank, member.world_size(), member.source),
        (1, 3, TopologySource::Environment)
    );
    let Ok(Topology::Group(member)) = topology(TWO, &[("TPQ_RANK", "1"), ("RING_CONFIG", "r.json")]) else {
        panic!("not a group")
    };
    assert_eq!(
        (member.rank, member.world_size(), member.source),
        (1, 2, TopologySource::File)
    );
    assert_eq!(
        topology(NONE, &[("RING_CONFIG", "r.json")]),
        Ok(Topology::Ring(PathBuf::from("r.json")))
    );
}

const HEAD: [(&str, &str); 3] = [
    ("MISTRALRS_MN_GLOBAL_WORLD_SIZE", "3"),
    ("MISTRALRS_MN_HEAD_NUM_WORKERS", "2"),
    ("MISTRALRS_MN_HEAD_PORT", "7700"),
];
const WORKER: [(&str, &str); 3] = [
    ("MISTRALRS_MN_GLOBAL_WORLD_SIZE", "3"),
    ("MISTRALRS_MN_WORKER_SERVER_ADDR", "10.0.0.1:7700"),
    ("MISTRALRS_MN_WORKER_ID", "1"),
];

#[test]
fn the_variables_of_the_engines_multi_node_mode_make_a_head_and_its_workers() {
    let place = |variables: &[(&str, &str)]| match topology(NONE, variables) {
        Ok(Topology::MultiNode(node)) => (
            node.rank,
            node.world_size,
            node.port,
            node.head.map(|head| head.to_string()),
        ),
        other => panic!("{other:?}"),
    };
    assert_eq!(place(&HEAD), (0, 3, 7700, None));
    assert_eq!(place(&WORKER), (2, 3, 7702, Some("10.0.0.1:7700".to_owned())));
    let with_ring = [&HEAD[..], &[("RING_CONFIG", "r.json")]].concat();
    assert_eq!(topology(NONE, &with_ring), Ok(Topology::Ring(PathBuf::from("r.json"))));
}

#[test]
fn a_wrong_variable_of_the_multi_node_mode_is_named_with_its_value() {
    let message = |variables: &[(&str, &str)], changed: (&'static str, &'static str)| {
        let mut variables: Vec<_> = variables
            .iter()
            .filter(|(name, _)| *name != changed.0)
            .copied()
            .collect();
        variables.push(changed);
        topology(NONE, &variables).unwrap_err().to_string()
    };
    for (variables, changed) in [
        (HEAD, ("MISTRALRS_MN_GLOBAL_WORLD_SIZE", "three")),
        (HEAD, ("MISTRALRS_MN_LOCAL_WORLD_SIZE", "2")),
        (HEAD, ("MISTRALRS_MN_HEAD_NUM_WORKERS", "3")),
        (HEAD, ("MISTRALRS_MN_HEAD_PORT", "0")),
        (HEAD, ("MISTRALRS_MN_HEAD_PORT", "")),
        (WORKER, ("MISTRALRS_MN_WORKER_SERVER_ADDR", "10.0.0.1")),
        (WORKER, ("MISTRALRS_MN_WORKER_SERVER_ADDR", "10.0.0.1:65535")),
        (WORKER, ("MISTRALRS_MN_WORKER_SERVER_ADDR", "")),
        (WORKER, ("MISTRALRS_MN_WORKER_ID", "2")),
        (WORKER, ("MISTRALRS_MN_WORKER_ID", "")),
    ] {
        let text = message(&variables, changed);
        let (name, value) = changed;
        assert!(
            text.contains(&format!("environment variable {name} is ")) && text.contains(value),
            "{changed:?}: {text}"
        );
    }
}

#[test]
fn the_rank_may_come_from_either_variable() {
    let rank = |variables: &[(&str, &str)]| match topology(TWO, variables) {
        Ok(Topology::Group(member)) => member.rank,
        other => panic!("{other:?}"),
    };
    assert_eq!(rank(&[("MISTRALRS_TPQ_RANK", "1")]), 1);
    assert_eq!(rank(&[("MISTRALRS_TPQ_RANK", "1"), ("TPQ_RANK", "0")]), 0);
}

#[test]
fn a_group_of_one_is_allowed() {
    let one = [("TPQ_RANK", "0"), ("TPQ_PEERS", "127.0.0.1:5")];
    assert!(matches!(topology(NONE, &one), Ok(Topology::Group(member)) if member.world_size() == 1));
}

#[test]
fn wrong_variables_name_variable_value_and_expected() {
    let launch = ("TPQ_PEERS", "127.0.0.1:5,127.0.0.1:6");
    for (text, variables, expected) in [
        (NONE, vec![("TPQ_RANK", "two"), launch], "environment variable TPQ_RANK is `two`, expected a whole number"),
        (NONE, vec![("TPQ_RANK", "-1"), launch], "environment variable TPQ_RANK is `-1`, expected a whole number"),
        (NONE, vec![("TPQ_RANK", "2"), launch], "rank 2 (from TPQ_RANK) is outside the group of 2 (from TPQ_PEERS)"),
        (TWO, vec![("MISTRALRS_TPQ_RANK", "9")], "rank 9 (from MISTRALRS_TPQ_RANK) is outside the group of 2 (from `group.peers` in conf/tpq.yaml)"),
        (NONE, vec![launch], "environment variable TPQ_RANK is not set: TPQ_PEERS lists 2 ranks"),
        (TWO, vec![], "environment variable TPQ_RANK is not set: `group.peers` in conf/tpq.yaml lists 2 ranks"),
        (NONE, vec![("TPQ_RANK", "0")], "environment variable TPQ_PEERS is not set: TPQ_RANK is 0, but neither"),
        (NONE, vec![("TPQ_RANK", "0"), ("TPQ_PEERS", "a:1,,b:1")], "environment variable TPQ_PEERS is `a:1,,b:1`, expected addresses separated by commas; `` is not"),
        (NONE, vec![("TPQ_RANK", "0"), ("TPQ_PEERS", "a:1,a:1")], "environment variable TPQ_PEERS is `a:1,a:1`, expected an address of its own for each rank; ranks 0 and 1 share `a:1`"),
        (NONE, vec![("TPQ_RANK", "0"), launch, ("TPQ_WORLD_SIZE", "3")], "environment variable TPQ_WORLD_SIZE is `3`, expected 2, the number of addresses in TPQ_PEERS"),
    ] {
        let message = topology(text, &variables).unwrap_err();
        assert!(message.starts_with(expected), "{message}\n{expected}");
    }
    let many = (1..=65)
        .map(|port| format!("127.0.0.1:{port}"))
        .collect::<Vec<_>>()
        .join(",");
    assert!(topology(NONE, &[("TPQ_RANK", "0"), ("TPQ_PEERS", &many)])
        .unwrap_err()
        .contains("expected at most 64 ranks"));
}

#[test]
fn addresses_beyond_this_host_need_consent() {
    let open = "version: 1\ncodec: {kind: none}\ngroup: {rank: 0, peers: [\"127.0.0.1:1\", \"10.0.0.2:7700\"]}\n";
    let message = topology(open, &[]).unwrap_err();
    assert!(
        message.starts_with("rank 1 (10.0.0.2:7700, from `group.peers` in conf/tpq.yaml) is not a loopback address"),
        "{message}"
    );
    assert!(
        message.contains("`group.insecure: true`") && message.contains("TPQ_SECRET_FILE"),
        "{message}"
    );
    let secret = [("TPQ_SECRET", "0123456789abcdef0123456789abcdef")];
    assert!(topology(open, &secret).is_ok());
    assert!(topology(&open.replace("rank: 0", "rank: 0, insecure: true"), &[]).is_ok());
    assert!(topology(NONE, &[("TPQ_RANK", "0"), ("TPQ_PEERS", "host:1")]).is_err());
}

#[test]
fn the_secret_comes_from_the_environment_before_the_file_and_is_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let [a, b, c] = ["a", "b", "c"].map(|letter| letter.repeat(40));
    let (named, configured) = (file("named", &format!("{b}\n")), file("configured", &c));
    let plan = parse(&format!(
        "version: 1\ncodec: {{kind: none}}\ngroup: {{secret_file: {configured}}}\n"
    ));
    let secret = |variables: &[(&str, &str)]| plan.secret(&variables.iter().copied().collect());
    let expected = |text: &str| Some(Secret::new(text.as_bytes()).unwrap());
    assert_eq!(
        secret(&[("TPQ_SECRET", &a), ("TPQ_SECRET_FILE", &named)]).unwrap(),
        expected(&a)
    );
    assert_eq!(secret(&[("TPQ_SECRET_FILE", &named)]).unwrap(), expected(&b));
    assert_eq!(secret(&[]).unwrap(), expected(&c));
    assert_eq!(parse(NONE).secret(&Environment::default()).unwrap(), None);

    let short = secret(&[("TPQ_SECRET", "hunter2")]).unwrap_err().to_string();
    assert!(
        short.contains("TPQ_SECRET") && short.contains("at least 32") && !short.contains("hunter2"),
        "{short}"
    );
    let missing = secret(&[("TPQ_SECRET_FILE", "/no/such/file")]).unwrap_err().to_string();
    assert!(
        missing.contains("/no/such/file") && missing.contains("TPQ_SECRET_FILE"),
        "{missing}"
    );
    let large = file("large", &"x".repeat(5000));
    assert!(secret(&[("TPQ_SECRET_FILE", &large)])
        .unwrap_err()
        .to_string()
        .contains("4096"));
    let environment: Environment = [("TPQ_SECRET", a.as_str())].into_iter().collect();
    assert!(!format!("{environment:?} {plan:?}").contains("aaaa"));
}

#[test]
fn a_lost_rank_may_come_back_where_the_file_or_the_launcher_says_so() {
    let launcher: Environment = [("TPQ_REJOIN", "1")].into_iter().collect();
    let alone = Environment::default();
    let with = |rejoin: &str| {
        parse(&format!(
            "version: 1\ncodec: {{kind: none}}\ngroup: {{rejoin: {rejoin}}}\n"
        ))
    };
    assert!(!parse(NONE).rejoins(&alone) && parse(NONE).rejoins(&launcher));
    assert!(with("true").rejoins(&alone) && !with("false").rejoins(&launcher));
}

#[test]
fn the_policy_digest_covers_what_ranks_must_agree_on_and_nothing_else() {
    let digest = |text: &str| parse(text).policy_digest();
    let base = digest(NONE);
    for same in [TWO, "version: 1\ncodec: {kind: none, manifest: m}\ngroup: {timeout_s: 3}\ncalibration: {seed: 4}\nexchange: {algorithm: auto}\n"] {
        assert_eq!(digest(same), base);
    }
    let paper = |path: &str| format!("version: 1\ncodec: {{kind: paper, manifest: {path}}}\n");
    assert_eq!(
        digest(&paper("a.yaml")),
        digest(&paper("/b/a.yaml")),
        "each host may keep its copy elsewhere"
    );
    let mut all = vec![
        base,
        digest(&paper("a.yaml")),
        digest("version: 1\ncodec: {kind: dynamic}\n"),
    ];
    for exchange in [
        "algorithm: one_shot",
        "algorithm: lossless",
        "nonfinite: fallback",
        "min_tokens: 1",
        "algorithm: two_shot",
        "gather_bits: 4",
        "min_bytes: 1",
        "prefill_only: true",
        "batch_invariant: false",
    ] {
        all.push(digest(&format!("{NONE}exchange: {{{exchange}}}\n")));
    }
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
    // Pinned: ranks of different builds compare it.
    assert_eq!(base.short(), "0def9ae9");
}

#[test]
fn batch_invariance_is_the_default_and_not_to_be_had_with_keys_that_break_it() {
    let invariant = |exchange: &str| {
        parse(&format!("{NONE}exchange: {{{exchange}}}\n"))
            .exchange
            .batch_invariant
    };
    assert!(invariant("") && invariant("algorithm: two_shot") && invariant("min_bytes: 0"));
    assert!(!invariant("batch_invariant: false"));
    for (key, named) in [
        ("algorithm: ring", "`exchange.algorithm: ring`"),
        ("min_tokens: 2", "`exchange.min_tokens`"),
        ("min_bytes: 2", "`exchange.min_bytes`"),
        ("prefill_only: true", "`exchange.prefill_only`"),
    ] {
        assert!(!invariant(key), "{key}");
        let message = error_in(&format!("exchange: {{{key}, batch_invariant: true}}"));
        assert!(
            message.contains("`exchange.batch_invariant` is true") && message.contains(named),
            "{message}"
        );
    }
}

#[test]
fn a_table_comes_back_as_written_and_changes_the_policy_digest() {
    let folder = tempfile::tempdir().unwrap();
    let table = LinkTable {
        latency_ns: 31_000,
        message_ns: 2_500,
        kbyte_per_s: 1_190_000,
    };
    std::fs::write(folder.path().join("link.yaml"), table_text(&table)).unwrap();
    let plan = |text: &str| Plan::parse(text, &folder.path().join("tpq.yaml")).unwrap();
    let with_table = plan(&format!("{NONE}exchange: {{table: link.yaml}}\n"));
    assert_eq!(with_table.exchange.table, table);
    assert_ne!(with_table.policy_digest(), plan(NONE).policy_digest());
}

#[test]
fn a_table_that_is_not_one_is_refused_with_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("link.yaml");
    for (text, expected) in [
        ("version: 1\nlatency_ns: 1\nmessage_ns: 1\n", "`kbyte_per_s` is missing"),
        ("version: 1\nlatency_ns: -4\n", "`latency_ns` is -4"),
        (
            "version: 1\nlatency_us: 4\n",
            "unknown key `latency_us`, did you mean `latency_ns`?",
        ),
        (
            "version: 1\nlatency_ns: 1\nmessage_ns: 1\nkbyte_per_s: 0\n",
            "`kbyte_per_s` is 0",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let message = read_table(&path).unwrap_err().to_string();
        assert!(message.contains("link.yaml") && message.contains(expected), "{message}");
    }
}
