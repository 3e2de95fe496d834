//! The four ways in which people run mistral.rs: the command, the server, its configuration file, and a program of one's own.
//!
//! `cargo xtask test` builds the two programs of other packages beside ours and runs these tests; cargo alone leaves them out.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::common::process::{clean, refuse, succeed, tpq, Process, SERVER};
use crate::common::{model, ports::free_ports, turn};
use crate::runs::{launch_command, Server, LIMIT};

const PROMPT: &str = "//! This crate provides";
/// As in examples/embed.
const TOKENS: usize = 32;

/// A program that another package built beside ours.
fn program(name: &str) -> PathBuf {
    let path = Path::new(SERVER).with_file_name(name);
    assert!(
        path.is_file(),
        "no {name} beside {SERVER}: cargo build --release -p mistralrs-cli -p embed"
    );
    path
}

fn two_ranks(program: &Path) -> Command {
    let mut command = tpq();
    command.args(["launch", "-n", "2", "--"]).arg(program);
    command
}

/// `mistralrs` with two ranks, serving on `port`.
fn serve_command(port: u16) -> Command {
    let mut command = two_ranks(&program("mistralrs"));
    command.args([
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--cpu",
        "-m",
    ]);
    command.arg(model::demo()).args(["--dtype", "f32"]);
    command
}

/// A configuration file of the `mistralrs` command, with `tpq` as its table.
fn toml(folder: &Path, port: u16, tpq: &str) -> PathBuf {
    let path = folder.join("mistralrs.toml");
    let text = format!(
        "command = \"serve\"\n{tpq}\n[server]\nhost = \"127.0.0.1\"\nport = {port}\n\n[[models]]\nkind = \"text\"\n\
         model_id = {:?}\ndtype = \"f32\"\n\n[models.device]\ncpu = true\n",
        model::demo()
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn from_config(file: &Path) -> Command {
    let mut command = two_ranks(&program("mistralrs"));
    command.args(["from-config", "--file"]).arg(file);
    command
}

/// The greedy answer to [`PROMPT`] as a message.
fn answer(server: &Server) -> String {
    let request = json!({
        "model": "default",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": TOKENS,
        "temperature": 0.0,
    });
    let response = server.http.post("/v1/chat/completions", &request);
    let response = response.unwrap_or_else(|error| server.process.fail(&format!("no answer: {error}")));
    if response.status != 200 {
        server
            .process
            .fail(&format!("status {}: {}", response.status, response.body));
    }
    let answer = &response.json()["choices"][0]["message"]["content"];
    answer.as_str().expect("an answer has a text").to_owned()
}

/// What ranks said in their log, so that no test passes on two processes that never met.
fn exchanged(process: &Process) -> bool {
    (process.stdout() + &process.stderr()).contains("exchange chosen")
}

#[test]
#[ignore = "needs programs of other packages: cargo xtask test"]
fn command_server_file_and_own_program_give_the_same_greedy_text_on_two_ranks() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let config = model::config(folder.path(), "tpq", "{kind: dynamic}", model::GROUP);
    let table = "tpq = {version = 1, codec = {kind = \"dynamic\"}, group = {connect_timeout_s = 60, timeout_s = 20}}";
    let ports = free_ports(4);

    let mut with_flag = serve_command(ports[1]);
    with_flag.arg("--tpq-config").arg(&config);
    let mut with_variable = serve_command(ports[3]);
    with_variable.env("MISTRALRS_TPQ_CONFIG", &config);
    let ways = [
        (
            "server",
            launch_command(2, ports[0], &config, &model::demo(), "f32"),
            ports[0],
        ),
        ("command", with_flag, ports[1]),
        ("file", from_config(&toml(folder.path(), ports[2], table)), ports[2]),
        ("variable", with_variable, ports[3]),
    ];
    let mut answers = Vec::new();
    for (way, command, port) in ways {
        let server = Server::start(command, port);
        answers.push((way, answer(&server)));
        assert!(exchanged(&server.process), "{way}: one process served alone");
    }
    let mut own = two_ranks(&program("embed"));
    own.arg(model::demo())
        .arg(PROMPT)
        .arg(&config)
        .env("EMBED_MAX_TOKENS", TOKENS.to_string());
    let said = succeed(own, LIMIT).stdout;

    let (_, first) = &answers[0];
    assert!(first.len() > TOKENS, "{first:?}");
    for (way, answer) in &answers {
        assert_eq!(answer, first, "{way}");
    }
    let own: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("[rank 0] ")).collect();
    assert!(own.join("\n").contains(first.trim()), "{first:?} is not in {own:?}");
}

#[test]
#[ignore = "needs programs of other packages: cargo xtask test"]
fn an_error_in_a_configuration_names_file_key_and_nearest_key_in_each_way() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("typo.yaml");
    std::fs::write(&config, "version: 1\ncodec: {knd: dynamic}\n").unwrap();
    let expected = ["typo.yaml", "unknown key `codec.knd`, did you mean `codec.kind`?"];

    let mut flag = clean(program("mistralrs"));
    flag.arg("serve")
        .arg("--tpq-config")
        .arg(&config)
        .args(["-m", "nowhere"]);
    refuse(flag, LIMIT, &expected);
    let mut variable = clean(program("mistralrs"));
    variable
        .args(["run", "-m", "nowhere"])
        .env("MISTRALRS_TPQ_CONFIG", &config);
    refuse(variable, LIMIT, &expected);
    let mut server = clean(SERVER);
    server
        .arg("--tpq-config")
        .arg(&config)
        .args(["--port", "1234", "plain", "-m", "nowhere"]);
    refuse(server, LIMIT, &expected);
    let mut own = clean(program("embed"));
    own.args(["nowhere", PROMPT]).arg(&config);
    refuse(own, LIMIT, &expected);

    let refused = |table: &str, expected: &[&str]| {
        let mut file = clean(program("mistralrs"));
        file.args(["from-config", "--file"])
            .arg(toml(folder.path(), 1234, table));
        refuse(file, LIMIT, expected);
    };
    let inline = "tpq = {version = 1, codec = {knd = \"dynamic\"}}";
    let nearest = [
        "mistralrs.toml",
        "unknown key `tpq.codec.knd`, did you mean `tpq.codec.kind`?",
    ];
    refused(inline, &nearest);
    refused(
        "tpq = {version = 1, codec = {kind = \"dynamic\"}, grup = {}}",
        &["mistralrs.toml", "unknown key `tpq.grup`, did you mean `tpq.group`?"],
    );
    refused("tpq = \"typo.yaml\"", &expected);
    refused("tpq = 7", &["mistralrs.toml", "`tpq` is 7, expected the path"]);

    let serve = toml(folder.path(), 1234, inline);
    let run = std::fs::read_to_string(&serve).unwrap().replace("\"serve\"", "\"run\"");
    std::fs::write(&serve, run).unwrap();
    let mut file = clean(program("mistralrs"));
    file.args(["from-config", "--file"]).arg(serve);
    refuse(file, LIMIT, &nearest);
}

#[test]
#[ignore = "needs programs of other packages: cargo xtask test"]
fn doctor_says_which_rank_a_configuration_makes_and_what_is_wrong_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let group = "{peers: [\"127.0.0.1:7700\", \"127.0.0.1:7701\"]}";
    let config = model::config(folder.path(), "tpq", "{kind: dynamic}", group);
    let doctor = |rank: &str, config: Option<&Path>| {
        let mut command = clean(program("mistralrs"));
        command.args(["doctor", "--json"]).env("TPQ_RANK", rank);
        if let Some(config) = config {
            command.arg("--tpq-config").arg(config);
        }
        let said = succeed(command, LIMIT).stdout;
        let object = said.find('{').map_or("", |at| &said[at..]);
        serde_json::from_str::<serde_json::Value>(object).unwrap_or_else(|error| panic!("{error}: {said}"))["tpq"]
            .clone()
    };
    let state = doctor("1", Some(&config));
    assert_eq!(
        (&state["group"]["rank"], &state["group"]["world_size"]),
        (&json!(1), &json!(2)),
        "{state}"
    );
    assert_eq!(state["group"]["codec"], "dynamic");
    let error = doctor("2", Some(&config))["error"].to_string();
    assert!(error.contains("rank 2") && error.contains("tpq.yaml"), "{error}");
    assert_eq!(doctor("", None), json!({"version": env!("CARGO_PKG_VERSION")}));
}
