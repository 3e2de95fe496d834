//! examples/multi-host: what can be checked of units and manifests without the machines they are for.

use std::path::{Path, PathBuf};
use std::process::Command;

use mistralrs_tpq::config::{Environment, Plan, Topology};
use serde::Deserialize;
use serde_yaml::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/multi-host")
}

fn read(name: &str) -> String {
    let path = folder().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text<'a>(value: &'a Value, what: &str) -> &'a str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{what} is {value:?}, not a text"))
}

/// That `variables` make rank `rank` of `world_size` with this configuration.
fn is_rank(plan: &Plan, variables: &[(&str, &str)], rank: usize, world_size: usize) {
    let environment: Environment = variables.iter().copied().collect();
    let Topology::Group(place) = plan.topology(&environment).unwrap() else {
        panic!("{variables:?} make no group")
    };
    assert_eq!((place.rank, place.world_size()), (rank, world_size));
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn the_shared_configuration_makes_each_host_a_rank_and_asks_for_a_secret() {
    let plan = Plan::load(&folder().join("tpq.yaml")).unwrap();
    for (rank, name) in ["0", "1"].into_iter().enumerate() {
        is_rank(&plan, &[("TPQ_RANK", name), ("TPQ_SECRET", SECRET)], rank, 2);
    }
    let open: Environment = [("TPQ_RANK", "0")].into_iter().collect();
    assert!(plan
        .topology(&open)
        .unwrap_err()
        .to_string()
        .contains("TPQ_SECRET_FILE"));
}

#[test]
fn the_statefulset_its_services_and_its_configuration_belong_together() {
    let documents: Vec<Value> = serde_yaml::Deserializer::from_str(&read("kubernetes/statefulset.yaml"))
        .map(|document| Value::deserialize(document).unwrap())
        .collect();
    let named = |kind: &str, name: &str| {
        let found = documents
            .iter()
            .find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    let set = &named("StatefulSet", "mistralrs")["spec"];
    let pod = &set["template"]["spec"];
    let container = &pod["containers"][0];
    let headless = text(&set["serviceName"], "serviceName");
    assert_eq!(named("Service", headless)["spec"]["clusterIP"], "None");
    assert_eq!(set["selector"]["matchLabels"], set["template"]["metadata"]["labels"]);

    let plan = text(&named("ConfigMap", "tpq")["data"]["tpq.yaml"], "tpq.yaml");
    let plan = Plan::parse(plan, Path::new("tpq.yaml")).unwrap();
    let variable = |name: &str| {
        let variables = container["env"].as_sequence().unwrap();
        variables
            .iter()
            .find(|one| one["name"] == name)
            .unwrap_or_else(|| panic!("no variable {name}"))
    };
    let peers = text(&variable("TPQ_PEERS")["value"], "TPQ_PEERS");
    let replicas = set["replicas"].as_u64().unwrap() as usize;
    let expected: Vec<_> = (0..replicas)
        .map(|rank| format!("mistralrs-{rank}.{headless}:7700"))
        .collect();
    assert_eq!(peers, expected.join(","));
    is_rank(
        &plan,
        &[("TPQ_RANK", "1"), ("TPQ_PEERS", peers), ("TPQ_SECRET", SECRET)],
        1,
        replicas,
    );
    assert!(variable("TPQ_SECRET")["valueFrom"]["secretKeyRef"].is_mapping());

    let probe = text(&container["readinessProbe"]["exec"]["command"][2], "the probe");
    assert!(probe.contains("/health"), "{probe}");
    for mount in container["volumeMounts"].as_sequence().unwrap() {
        let volumes = pod["volumes"].as_sequence().unwrap();
        assert!(
            volumes.iter().any(|volume| volume["name"] == mount["name"]),
            "{mount:?}"
        );
    }
}

#[test]
fn the_containers_of_the_compose_file_are_ranks_of_one_group() {
    let mut file: Value = serde_yaml::from_str(&read("compose.yaml")).unwrap();
    file.apply_merge().unwrap();
    let services = file["services"].as_mapping_mut().unwrap();
    let plan = {
        for (_, service) in services.iter_mut() {
            service["environment"].apply_merge().unwrap();
        }
        text(&file["configs"]["tpq"]["content"], "the configuration").to_owned()
    };
    let plan = Plan::parse(&plan, Path::new("tpq.yaml")).unwrap();
    let services = file["services"].as_mapping().unwrap();
    for (rank, (name, service)) in services.iter().enumerate() {
        let variable = |key: &str| text(&service["environment"][key], key);
        let peers = variable("TPQ_PEERS");
        let own = peers.split(',').nth(rank).unwrap();
        assert_eq!(own, format!("{}:7700", text(name, "a service's name")));
        let variables = [
            ("TPQ_RANK", variable("TPQ_RANK")),
            ("TPQ_PEERS", peers),
            ("TPQ_SECRET", SECRET),
        ];
        is_rank(&plan, &variables, rank, services.len());
        assert_eq!(variable("TPQ_SECRET_FILE"), "/run/secrets/tpq");
        // A port without an address would be open to other hosts.
        for port in service["ports"].as_sequence().into_iter().flatten() {
            assert!(text(port, "a port").starts_with("127.0.0.1:"), "{port:?}");
        }
    }
}

#[test]
fn systemd_accepts_the_unit() {
    let unit = read("systemd/mistralrs-tpq.service");
    let rank = read("systemd/rank.env");
    assert!(rank.lines().any(|line| line == "TPQ_RANK=0"), "{rank}");
    // The program must exist where this runs.
    let program = "/usr/local/bin/mistralrs-server";
    assert!(unit.contains(&format!("ExecStart={program} ")), "{unit}");
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join("mistralrs-tpq.service");
    std::fs::write(&path, unit.replace(program, env!("CARGO_BIN_EXE_tpq"))).unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&path).output();
    let Ok(verified) = verified else {
        eprintln!("systemd-analyze is not installed: the unit is not verified");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && said.trim().is_empty(), "{said}");
}
