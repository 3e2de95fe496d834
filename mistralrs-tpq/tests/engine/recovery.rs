//! Ranks that die, stop or come back while the server serves.

use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::common::process::{tpq, SERVER};
use crate::common::{free_ports, model, turn, within};
use crate::runs::{request, Server, COMPLETIONS};

const GROUP: &str = "{connect_timeout_s: 60, timeout_s: 4, heartbeat_s: 0.5, encrypt: true}";
const TOKENS: usize = 16;
/// To an error: the timeout, and room for a busy host.
const DEADLINE: Duration = Duration::from_secs(15);

fn server(folder: &std::path::Path, ranks: usize) -> Server {
    let config = model::config(folder, "recovery", "{kind: dynamic}", GROUP);
    let port = free_ports(1)[0];
    let mut command = tpq();
    command
        .env("TPQ_SECRET", "s".repeat(40))
        .args(["launch", "--restart=5", "-n", &ranks.to_string(), "--", SERVER])
        .arg("--tpq-config")
        .arg(&config)
        .args(["--port", &port.to_string(), "--cpu", "plain", "-m"])
        .arg(model::demo())
        .args(["-d", "f32"]);
    Server::start(command, port)
}

/// The process that serves as `rank` now.
fn process_of(server: &Server, rank: usize) -> Pid {
    let has = |pid: &Pid, what: &str, file: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.split(|&byte| byte == 0).any(|part| part == what.as_bytes())
    };
    let mut found = None;
    let wanted = format!("TPQ_RANK={rank}");
    within(Duration::from_secs(20), || {
        let relatives = server.process.relatives();
        found = relatives
            .into_iter()
            .find(|pid| has(pid, &wanted, "environ") && has(pid, SERVER, "cmdline") && !has(pid, "__rank", "cmdline"));
        found.is_some()
    });
    found.unwrap_or_else(|| server.process.fail(&format!("no process is rank {rank}")))
}

/// Starts a long request, `disturb`s the group in the middle of it, and returns the error that the client gets and after how long.
fn error_during(server: &Server, disturb: impl FnOnce()) -> (String, Duration) {
    let mut body = request("//! This crate", 2000);
    body["stream"] = true.into();
    let mut events = server.http.stream(COMPLETIONS, &body).unwrap();
    assert_eq!(events.status, 200);
    events.next().expect("the stream goes on").unwrap();
    let start = Instant::now();
    disturb();
    let last = events.filter_map(Result::ok).last().unwrap_or_default();
    (last, start.elapsed())
}

fn wait_for_health(server: &Server) {
    let healthy = within(Duration::from_secs(60), || {
        server.http.get("/health").is_ok_and(|response| response.status == 200)
    });
    if !healthy {
        server.process.fail("did not become healthy again");
    }
}

#[test]
fn a_killed_rank_fails_the_request_comes_back_and_the_same_text_is_served() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path(), 3);
    let before = server.complete("fn main() {", TOKENS);
    let rank_2 = process_of(&server, 2);
    let (error, waited) = error_during(&server, || {
        kill(process_of(&server, 1), Signal::SIGKILL).unwrap();
    });
    assert!(error.contains("rank 1"), "{error}");
    assert!(waited < DEADLINE, "{waited:?}");
    wait_for_health(&server);
    assert_eq!(server.complete("fn main() {", TOKENS), before);
    assert_eq!(
        process_of(&server, 2),
        rank_2,
        "rank 2 was restarted although it had not failed"
    );
    let page = server.http.get("/metrics").unwrap().body;
    assert!(page.contains("tpq_group_reformed_total 1\n"), "{page}");
    assert!(
        !server.process.stderr().contains("panicked at"),
        "{}",
        server.process.stderr()
    );
}

#[test]
fn a_killed_rank_0_comes_back_and_the_others_join_it_again() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path(), 2);
    let before = server.complete("fn main() {", TOKENS);
    let rank_1 = process_of(&server, 1);
    kill(process_of(&server, 0), Signal::SIGKILL).unwrap();
    within(Duration::from_secs(5), || server.http.get("/health").is_err());
    wait_for_health(&server);
    assert_eq!(server.complete("fn main() {", TOKENS), before);
    assert_eq!(process_of(&server, 1), rank_1);
}

#[test]
fn a_stopped_rank_is_an_error_within_the_deadline_and_503_until_it_goes_on() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path(), 2);
    let before = server.complete("fn main() {", TOKENS);
    let rank_1 = process_of(&server, 1);
    let (error, waited) = error_during(&server, || kill(rank_1, Signal::SIGSTOP).unwrap());
    assert!(error.contains("rank 1"), "{error}");
    assert!(waited < DEADLINE, "{waited:?}");
    let health = server.http.get("/health").unwrap();
    assert!(
        health.status == 503 && health.body.contains("rank 1"),
        "{} {}",
        health.status,
        health.body
    );
    let start = Instant::now();
    let refused = server.http.post(COMPLETIONS, &request("fn", 4)).unwrap();
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    kill(rank_1, Signal::SIGCONT).unwrap();
    wait_for_health(&server);
    assert_eq!(server.complete("fn main() {", TOKENS), before);
}
