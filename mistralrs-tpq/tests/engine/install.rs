//! Embedding, and the smallest group.

use crate::common::{model, ports::free_ports, turn};
use crate::runs::{server_command, Server};

#[test]
fn a_second_install_in_one_process_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let config = model::config(
        folder.path(),
        "tpq",
        "{kind: dynamic}",
        "{rank: 0, peers: [\"127.0.0.1:7700\", \"127.0.0.1:7701\"]}",
    );
    let node = mistralrs_tpq::install(&config).unwrap().expect("a group of two");
    assert_eq!((node.rank(), node.world_size()), (0, 2));
    let error = format!("{:#}", mistralrs_tpq::install(&config).unwrap_err());
    assert!(
        error.contains("tpq cannot be installed") && error.contains("already set"),
        "{error}"
    );
}

#[test]
fn a_configuration_without_a_group_serves_as_one_process_and_says_so() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let config = model::config(folder.path(), "tpq", "{kind: dynamic}", "{}");
    let port = free_ports(1)[0];
    let server = Server::start(server_command(port, Some(&config), &model::demo(), "f32"), port);
    assert!(!server.complete("//! This crate", 8).is_empty());
    let said = server.process.stderr() + &server.process.stdout();
    assert!(
        said.contains("the world size is 1") && said.contains("tpq.yaml"),
        "{said}"
    );
}
