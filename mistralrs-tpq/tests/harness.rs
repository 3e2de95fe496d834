//! The helpers of the process tests: what ends a process, what reads HTTP. No engine needed.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::http::Http;
use common::logits::{relative_difference, Logits};
use common::process::{clean, refuse, run, tpq, Process};
use common::within;
use serde_json::json;

fn shell(script: &str) -> Command {
    let mut command = clean("/bin/sh");
    command.args(["-c", script]);
    command
}

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_finished_process_gives_its_status_and_both_outputs() {
    let finished = run(shell("echo out; echo err >&2; exit 3"), SOON);
    assert_eq!(finished.status.code(), Some(3));
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn a_process_past_its_deadline_fails_the_test_and_takes_its_children_with_it() {
    let start = Instant::now();
    let mut process = Process::start(shell("sleep 100 & echo begun; sleep 100"), Duration::from_millis(500));
    assert!(within(SOON, || process.stdout() == "begun\n"));
    let panic = catch_unwind(AssertUnwindSafe(|| process.finish())).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(
        message.contains("still running at its deadline") && message.contains("begun"),
        "{message}"
    );
    let relatives = process.relatives();
    assert!(!relatives.is_empty());
    drop(process);
    let gone = |pid: &nix::unistd::Pid| nix::sys::signal::kill(*pid, None).is_err();
    assert!(within(SOON, || relatives.iter().all(gone)));
    assert!(start.elapsed() < SOON);
}

#[test]
fn a_process_that_ignores_sigterm_and_has_left_its_group_ends_too() {
    let mut process = Process::start(shell("trap '' TERM; setsid sleep 100 & echo begun; wait; wait"), SOON);
    assert!(within(SOON, || process.stdout() == "begun\n" && process.relatives().len() >= 2));
    assert!(!process.has_ended());
    let relatives = process.relatives();
    drop(process);
    assert!(within(SOON, || relatives
        .iter()
        .all(|pid| nix::sys::signal::kill(*pid, None).is_err())));
}

#[test]
fn the_ranks_of_a_launcher_are_its_relatives_and_end_with_it() {
    let mut command = tpq();
    command.args(["launch", "-n", "2", "--", "/bin/sh", "-c", "echo begun; exec sleep 100"]);
    let process = Process::start(command, SOON);
    assert!(within(SOON, || process.stdout().matches("begun").count() == 2));
    // The launcher, its guard and two ranks.
    assert!(
        within(SOON, || process.relatives().len() == 4),
        "{:?}",
        process.relatives()
    );
    let relatives = process.relatives();
    drop(process);
    assert!(within(SOON, || relatives
        .iter()
        .all(|pid| nix::sys::signal::kill(*pid, None).is_err())));
}

#[test]
fn a_refusal_is_an_error_whose_message_says_what_was_expected() {
    refuse(shell("echo 'no such peer' >&2; exit 2"), SOON, &["no such", "peer"]);
    let without = |script: &str| catch_unwind(|| refuse(shell(script), SOON, &["peer"])).is_err();
    assert!(without("echo 'no such peer' >&2"));
    assert!(without("echo nothing >&2; exit 2"));
    assert!(without("echo \"panicked at 'peer'\" >&2; exit 101"));
}

/// Answers one connection with `pieces`, a pause between them, and returns what came in, until the client hangs up.
fn serve(pieces: &'static [&'static str]) -> (u16, JoinHandle<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let request = read_request(&mut stream);
        for piece in pieces {
            stream.write_all(piece.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(30));
        }
        if pieces.last().is_some_and(|last| last.is_empty()) {
            // Ends when the client hangs up.
            let _ = stream.read(&mut [0; 16]);
        }
        request
    });
    (port, thread)
}

fn read_request(stream: &mut TcpStream) -> String {
    let mut request = String::new();
    let mut buffer = [0; 1024];
    let whole = |request: &str| request.ends_with('}') || (request.starts_with("GET") && request.ends_with("\r\n\r\n"));
    while !whole(&request) {
        let read = stream.read(&mut buffer).unwrap();
        request.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    request
}

fn http(port: u16) -> Http {
    Http {
        port,
        limit: Duration::from_secs(5),
    }
}

#[test]
fn a_json_post_is_answered_by_status_and_body() {
    let (port, server) = serve(&[
        "HTTP/1.1 422 Unpro",
        "cessable\r\ncontent-length: 8\r\n\r\n{\"a\":",
        " 1}",
    ]);
    let response = http(port).post("/v1/completions", &json!({"prompt": "x"})).unwrap();
    assert_eq!(response.status, 422);
    assert_eq!(response.json(), json!({"a": 1}));
    let request = server.join().unwrap();
    assert!(request.starts_with("POST /v1/completions HTTP/1.1\r\n"), "{request}");
    assert!(
        request.contains("\r\nContent-Length: 14\r\n") && request.ends_with("\r\n\r\n{\"prompt\":\"x\"}"),
        "{request}"
    );
}

#[test]
fn events_are_read_across_the_borders_of_chunks() {
    let (port, server) = serve(&[
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "a\r\ndata: {\"a\"\r\n7\r\n: 1}\n\n:\r\n",
        "2\r\n\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n",
    ]);
    let events = http(port).stream("/v1/completions", &json!({})).unwrap();
    assert_eq!(events.status, 200);
    let data: Vec<String> = events.map(Result::unwrap).collect();
    assert_eq!(data, ["{\"a\": 1}", "[DONE]"]);
    server.join().unwrap();
}

#[test]
fn dropping_a_stream_hangs_up() {
    let (port, server) = serve(&["HTTP/1.1 200 OK\r\n\r\n", "data: 1\n\n", ""]);
    let mut events = http(port).stream("/", &json!({})).unwrap();
    assert_eq!(events.next().unwrap().unwrap(), "1");
    assert!(!server.is_finished());
    drop(events);
    server.join().unwrap();
}

#[test]
fn a_body_cut_short_and_a_server_that_says_nothing_are_errors() {
    let (port, server) = serve(&["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"]);
    let error = http(port).get("/health").unwrap_err();
    assert!(error.to_string().contains("ends 4 bytes early"), "{error}");
    server.join().unwrap();

    let (port, server) = serve(&[""]);
    let start = Instant::now();
    let silent = Http {
        port,
        limit: Duration::from_millis(200),
    };
    assert!(silent.get("/health").is_err());
    assert!(start.elapsed() < Duration::from_secs(5));
    server.join().unwrap();
}

#[test]
fn difference_of_logits_is_relative_to_the_largest() {
    let logits = |values: &[f32]| Logits {
        shape: vec![1, values.len()],
        values: values.to_vec(),
    };
    assert_eq!(relative_difference(&logits(&[1.0, -4.0]), &logits(&[1.5, -3.0])), 0.25);
    assert_eq!(relative_difference(&logits(&[0.0]), &logits(&[0.0])), 0.0);
    assert!(catch_unwind(|| relative_difference(&logits(&[1.0]), &logits(&[f32::NAN]))).is_err());
    assert!(catch_unwind(|| relative_difference(&logits(&[1.0]), &logits(&[1.0, 2.0]))).is_err());
}
