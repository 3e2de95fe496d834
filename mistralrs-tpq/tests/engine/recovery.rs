//! Ranks that die, stop or come back while the server serves.

use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::common::process::{tpq, Process, SERVER};
use crate::common::{model, ports::free_ports, turn, within};
use crate::runs::{request, Server, COMPLETIONS, LIMIT};

const GROUP: &str = "{connect_timeout_s: 60, timeout_s: 4, heartbeat_s: 0.5, encrypt: true}";
const TOKENS: usize = 16;
/// To an error: the timeout, and room for a busy host.
const DEADLINE: Duration = Duration::from_secs(15);

fn server(life: Duration, folder: &std::path::Path, ranks: usize) -> Server {
    let config = model::config(folder, "recovery", "{kind: dynamic}", GROUP);
    let port = free_ports(1)[0];
    let mut command = tpq();
    command
        .env("TPQ_SECRET", "s".repeat(40))
        .args(["launch", "--restart=20", "-n", &ranks.to_string(), "--", SERVER])
        .arg("--tpq-config")
        .arg(&config)
        .args(["--port", &port.to_string(), "--cpu", "plain", "-m"])
        .arg(model::demo())
        .args(["-d", "f32"]);
    Server::ready(Process::start(command, life), port)
}

/// The process that serves as `rank` now.
pub fn process_of(server: &Server, rank: usize) -> Pid {
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

/// Where a request is when something happens to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The prompt's step, of a prompt that takes longer than the disturbance.
    Prefill,
    /// After the first token.
    Decode,
}

/// Starts a long request, `disturb`s the group in the middle of `phase`, and returns the last that the client gets, an error or
/// nothing, and after how long.
fn error_during(server: &Server, phase: Phase, disturb: impl FnOnce()) -> (String, Duration) {
    let mut body = match phase {
        Phase::Prefill => request(&model::TEXT.repeat(3), 8),
        Phase::Decode => request("//! This crate", 2000),
    };
    body["stream"] = true.into();
    let mut events = server.http.stream(COMPLETIONS, &body).unwrap();
    assert_eq!(events.status, 200);
    match phase {
        Phase::Prefill => std::thread::sleep(Duration::from_millis(30)),
        Phase::Decode => drop(events.next().expect("the stream goes on").unwrap()),
    }
    let start = Instant::now();
    disturb();
    let rest: Vec<String> = events.map_while(Result::ok).filter(|data| data != "[DONE]").collect();
    let waited = start.elapsed();
    if phase == Phase::Prefill {
        assert!(
            rest.len() <= 1,
            "the prompt's step was over before the disturbance: {rest:?}"
        );
    }
    (rest.last().cloned().unwrap_or_default(), waited)
}

/// Kills `rank`, and waits for the error that names it and for the group to serve the same text again. Time to the error.
fn kill_and_recover(server: &Server, rank: usize, phase: Phase, text: &str) -> Duration {
    let bystander = process_of(server, 1 + rank % (RANKS - 1));
    let victim = process_of(server, rank);
    let (error, waited) = error_during(server, phase, || kill(victim, Signal::SIGKILL).unwrap());
    // Rank 0 takes its clients' connections with it.
    assert!(
        rank == 0 || error.contains(&format!("rank {rank}")),
        "{phase:?}: {error}"
    );
    assert!(waited < DEADLINE, "{phase:?} of rank {rank}: {waited:?}");
    let other = |pid: Pid| pid != victim;
    assert!(within(Duration::from_secs(20), || other(process_of(server, rank))));
    wait_for_health(server);
    assert_eq!(server.complete("fn main() {", TOKENS), text, "{phase:?} of rank {rank}");
    assert_eq!(
        process_of(server, 1 + rank % (RANKS - 1)),
        bystander,
        "a rank was restarted although it had not failed"
    );
    waited
}

const RANKS: usize = 4;

fn kill_in_turn(victims: &[(usize, Phase)]) {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let server = server(LIMIT * victims.len().div_ceil(2) as u32, folder.path(), RANKS);
    let text = server.complete("fn main() {", TOKENS);
    for (rank, phase) in victims {
        let waited = kill_and_recover(&server, *rank, *phase, &text);
        println!(
            "kill -9 of rank {rank} of {RANKS} in {phase:?}: error after {:.2} s",
            waited.as_secs_f64()
        );
    }
    if victims.iter().all(|(rank, _)| *rank > 0) {
        let page = server.http.get("/metrics").unwrap().body;
        let expected = format!("tpq_group_reformed_total {}\n", victims.len());
        assert!(page.contains(&expected), "{page}");
    }
    assert!(
        !server.process.stderr().contains("panicked at"),
        "{}",
        server.process.stderr()
    );
}

#[test]
fn a_rank_killed_in_prefill_or_decode_fails_the_request_comes_back_and_the_same_text_is_served() {
    kill_in_turn(&[(1, Phase::Prefill), (3, Phase::Decode)]);
}

#[test]
#[ignore = "minutes: every rank of four in both phases; the test above is its short form"]
fn every_rank_killed_in_prefill_and_in_decode_comes_back() {
    let ranks = 0..RANKS;
    let victims: Vec<_> = ranks
        .flat_map(|rank| [(rank, Phase::Prefill), (rank, Phase::Decode)])
        .collect();
    kill_in_turn(&victims);
}

pub fn wait_for_health(server: &Server) {
    let healthy = within(Duration::from_secs(60), || {
        server.http.get("/health").is_ok_and(|response| response.status == 200)
    });
    if !healthy {
        server.process.fail("did not become healthy again");
    }
}

#[test]
fn a_killed_rank_0_comes_back_and_the_others_join_it_again() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let server = server(LIMIT, folder.path(), 2);
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
    let server = server(LIMIT, folder.path(), 2);
    let before = server.complete("fn main() {", TOKENS);
    let rank_1 = process_of(&server, 1);
    let (error, waited) = error_during(&server, Phase::Decode, || kill(rank_1, Signal::SIGSTOP).unwrap());
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
