//! Which rank this process is: file, environment, the engine's own variables; secrets and consent.

use std::path::PathBuf;

use mistralrs_tpq::config::{Environment, Topology, TopologySource};
use mistralrs_tpq::transport::tcp::Secret;

use super::{parse, topology, NONE, TWO};

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
