//! What a server does not start with: the message names the file, key or peer, the exit code is not zero, and it comes soon.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::process::refuse;
use crate::common::{model, ports::free_ports, turn};
use crate::runs::{calibrate, launch_command, paper, server_command};

const LIMIT: Duration = Duration::from_secs(90);

fn launch(ranks: usize, config: &Path, model: &Path, dtype: &str) -> Command {
    launch_command(ranks, free_ports(1)[0], config, model, dtype)
}

#[test]
fn a_rank_that_does_not_come_is_named_with_its_address() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let group = "{connect_timeout_s: 2, timeout_s: 4}";
    let config = model::config(folder.path(), "serve", "{kind: dynamic}", group);
    let ports = free_ports(3);
    let mut command = server_command(ports[2], Some(&config), &model::demo(), "f32");
    let absent = format!("127.0.0.1:{}", ports[1]);
    command.env("TPQ_RANK", "0").env("TPQ_WORLD_SIZE", "2");
    command.env("TPQ_PEERS", format!("127.0.0.1:{},{absent}", ports[0]));
    refuse(command, LIMIT, &["rank 1", &absent]);
}

#[test]
fn heads_that_do_not_divide_are_named_with_their_number() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model::checkpoint(folder.path(), "tiny-6-heads", 0, 0);
    let config = model::config(folder.path(), "serve", "{kind: dynamic}", model::GROUP);
    refuse(
        launch(4, &config, &model, "f32"),
        LIMIT,
        &["num_attention_heads is 6", "4 ranks"],
    );
}

#[test]
fn a_manifest_that_is_not_there_is_named() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let config = paper(folder.path(), &folder.path().join("nowhere.yaml"));
    refuse(
        launch(2, &config, &model::demo(), "f32"),
        LIMIT,
        &["nowhere.yaml", "tpq calibrate"],
    );
}

#[test]
fn a_manifest_of_another_model_dtype_or_world_size_is_refused_by_name() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (calibrated, _) = model::checkpoint(folder.path(), "tiny-llama", 0, 0);
    let (other, _) = model::checkpoint(folder.path(), "tiny-llama", 1, 0);
    let config = paper(folder.path(), &calibrate(folder.path(), &calibrated, 2));
    refuse(
        launch(2, &config, &other, "f32"),
        LIMIT,
        &["for another model", "tpq calibrate"],
    );
    refuse(
        launch(2, &config, &calibrated, "bf16"),
        LIMIT,
        &["for another dtype", "f32", "bf16"],
    );
    refuse(
        launch(4, &config, &calibrated, "f32"),
        LIMIT,
        &["for another world size", "has 2", "has 4"],
    );
}

#[test]
fn ranks_with_different_models_or_codecs_refuse_each_other() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = model::checkpoint(folder.path(), "tiny-llama", 0, 0);
    let (other, _) = model::checkpoint(folder.path(), "tiny-llama", 1, 0);
    let group = "{connect_timeout_s: 30, timeout_s: 4}";
    let config = model::config(folder.path(), "dynamic", "{kind: dynamic}", group);
    let lossless = model::config(folder.path(), "none", "{kind: none}", group);
    for (second_config, second_model, field) in [(&config, &other, "model"), (&lossless, &model, "codec")] {
        let ports = free_ports(3);
        let start = |rank: usize, config: &Path, model: &Path| {
            let mut command = server_command(ports[2], Some(config), model, "f32");
            command.env("TPQ_RANK", rank.to_string()).env("TPQ_WORLD_SIZE", "2");
            command.env("TPQ_PEERS", format!("127.0.0.1:{},127.0.0.1:{}", ports[0], ports[1]));
            command
        };
        let (first, second) = (start(0, &config, &model), start(1, second_config, second_model));
        // Both sides say why; neither waits for the other.
        std::thread::scope(|scope| {
            let second = scope.spawn(|| refuse(second, LIMIT, &["rank 0", field]));
            refuse(first, LIMIT, &["rank 1", field]);
            second.join().unwrap();
        });
    }
}

#[test]
fn a_port_that_is_taken_is_named_before_the_model_is_loaded() {
    let _turn = turn();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    refuse(
        server_command(port, None, &model::demo(), "f32"),
        LIMIT,
        &["--port", &port.to_string()],
    );
}
