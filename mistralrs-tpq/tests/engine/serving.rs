//! `mistralrs-server` on one and two ranks: concurrent requests, clients that leave, signals, lost ranks.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::process::Process;
use crate::common::{model, ports::free_ports, turn, within};
use crate::runs::{request, server_command, text_of, Server, COMPLETIONS, LIMIT};

const PROMPTS: [&str; 2] = ["//! This crate provides", "fn main() {\n    let "];
const TOKENS: usize = 40;
const LOSSLESS: &str = "{kind: none}";

#[test]
fn one_process_and_two_lossless_ranks_write_the_same_text() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let port = free_ports(1)[0];
    let alone = Server::start(server_command(port, None, &model::demo(), "f32"), port);
    let texts = PROMPTS.map(|prompt| alone.complete(prompt, TOKENS));
    drop(alone);
    assert!(
        texts.iter().all(|text| text.len() > 20) && texts[0] != texts[1],
        "{texts:?}"
    );
    let group = Server::two_ranks(folder.path(), LOSSLESS);
    assert_eq!(PROMPTS.map(|prompt| group.complete(prompt, TOKENS)), texts);
}

#[test]
fn two_requests_at_once_both_get_the_text_that_each_gets_alone() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::two_ranks(folder.path(), LOSSLESS);
    let alone = PROMPTS.map(|prompt| server.complete(prompt, TOKENS));
    for _ in 0..3 {
        let together = std::thread::scope(|scope| {
            let threads = PROMPTS.map(|prompt| scope.spawn(|| server.complete(prompt, TOKENS)));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(together, alone);
    }
}

#[test]
fn a_client_that_hangs_up_in_the_middle_does_not_stop_the_next() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::two_ranks(folder.path(), "{kind: dynamic}");
    let before = server.complete(PROMPTS[0], TOKENS);
    for _ in 0..2 {
        let mut long = request(PROMPTS[1], 1500);
        long["stream"] = true.into();
        let mut events = server.http.stream(COMPLETIONS, &long).unwrap();
        assert_eq!(events.status, 200);
        for _ in 0..3 {
            let event = events.next().expect("the stream goes on").unwrap();
            assert!(event.contains("choices"), "{event}");
        }
        drop(events);
        assert_eq!(server.complete(PROMPTS[0], TOKENS), before);
    }
}

#[test]
fn a_stream_carries_the_text_of_the_whole_answer() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::two_ranks(folder.path(), "{kind: dynamic}");
    let whole = server.complete(PROMPTS[0], TOKENS);
    let mut streamed = request(PROMPTS[0], TOKENS);
    streamed["stream"] = true.into();
    let data: Vec<String> = server
        .http
        .stream(COMPLETIONS, &streamed)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let (done, chunks) = data.split_last().expect("events");
    assert_eq!(done, "[DONE]");
    let text: String = chunks.iter().map(|chunk| text_of(chunk)).collect();
    assert_eq!(text, whole);
}

#[test]
fn sigterm_on_the_launcher_lets_the_open_stream_end_and_then_every_process() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::two_ranks(folder.path(), "{kind: dynamic}");
    let whole = server.complete(PROMPTS[0], TOKENS);
    // Launcher, guard, two ranks.
    assert!(
        server.process.relatives().len() >= 3,
        "{:?}",
        server.process.relatives()
    );
    let mut streamed = request(PROMPTS[0], TOKENS);
    streamed["stream"] = true.into();
    let mut events = server.http.stream(COMPLETIONS, &streamed).unwrap();
    let first = events.next().expect("the stream goes on").unwrap();
    let start = Instant::now();
    server.process.signal(Signal::SIGTERM);
    let rest: Vec<String> = events.map(Result::unwrap).collect();
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"));
    let text: String = std::iter::once(&first)
        .chain(&rest[..rest.len() - 1])
        .map(|data| text_of(data))
        .collect();
    assert_eq!(text, whole);

    let finished = server.process.finish();
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    for bad in ["panicked at", "WARN", "ERROR"] {
        assert!(!finished.stderr.contains(bad), "{bad}: {}", finished.stderr);
    }
    let gone = within(Duration::from_secs(5), || server.process.relatives().is_empty());
    assert!(gone, "left behind: {:?}", server.process.relatives());
}

#[test]
fn sigterm_ends_a_single_process_with_success() {
    let _turn = turn();
    let port = free_ports(1)[0];
    let mut server = Server::start(server_command(port, None, &model::demo(), "f32"), port);
    server.process.signal(Signal::SIGTERM);
    let finished = server.process.finish();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
}

#[test]
fn a_rank_lost_while_serving_is_named_to_the_client_and_by_health() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let group = "{connect_timeout_s: 60, timeout_s: 4, heartbeat_s: 0.5}";
    let config = model::config(folder.path(), "serve", "{kind: dynamic}", group);
    let ports = free_ports(3);
    let peers = format!("127.0.0.1:{},127.0.0.1:{}", ports[0], ports[1]);
    // Without a launcher, which would stop rank 0 at once.
    let start = |rank: &str| {
        let mut command = server_command(ports[2], Some(&config), &model::demo(), "f32");
        command
            .env("TPQ_RANK", rank)
            .env("TPQ_WORLD_SIZE", "2")
            .env("TPQ_PEERS", &peers);
        Process::start(command, LIMIT)
    };
    let (rank_0, rank_1) = (start("0"), start("1"));
    let server = Server::ready(rank_0, ports[2]);
    server.complete(PROMPTS[0], 4);

    rank_1.signal(Signal::SIGKILL);
    let lost = Instant::now();
    let response = server.http.post(COMPLETIONS, &request(PROMPTS[0], TOKENS)).unwrap();
    assert!(
        (500..600).contains(&response.status),
        "{}: {}",
        response.status,
        response.body
    );
    assert!(response.body.contains("rank 1"), "{}", response.body);
    assert!(lost.elapsed() < Duration::from_secs(30), "{:?}", lost.elapsed());
    let health = server.http.get("/health").unwrap();
    assert_eq!(health.status, 503, "{}", health.body);
    assert!(health.body.contains("rank 1"), "{}", health.body);
}
