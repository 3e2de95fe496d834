//! Nothing the demo starts may outlive it.
#![cfg(unix)]

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use xtask::demo::process::{adopt_orphans, Running};

/// `Running` ends every child of its process, so only one test at a time may have any.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    adopt_orphans();
    turn
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn alive(pid: &str) -> bool {
    Command::new("kill")
        .args(["-0", pid.trim()])
        .output()
        .unwrap()
        .status
        .success()
}

fn wait_for(path: &Path) -> String {
    let started = Instant::now();
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => assert!(
                started.elapsed() < Duration::from_secs(10),
                "{} never came",
                path.display()
            ),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_command_that_succeeds_gives_its_output() {
    let _turn = alone();
    let logs = tempfile::tempdir().unwrap();
    let output = Running::start("x", shell("echo noise >&2; echo result"), logs.path()).unwrap();
    assert_eq!(output.finish(Duration::from_secs(10)).unwrap(), "result\n");
}

#[test]
fn a_command_that_fails_is_quoted_with_its_status() {
    let _turn = alone();
    let logs = tempfile::tempdir().unwrap();
    let running = Running::start("calibrate", shell("echo no such layer >&2; exit 3"), logs.path()).unwrap();
    let error = running.finish(Duration::from_secs(10)).unwrap_err().to_string();
    assert!(
        error.contains("calibrate ended with exit status: 3") && error.contains("no such layer"),
        "{error}"
    );
}

#[test]
fn a_command_that_does_not_end_in_time_is_ended_with_its_children() {
    let _turn = alone();
    let logs = tempfile::tempdir().unwrap();
    let running = Running::start("x", shell("sleep 300 & echo $!; wait"), logs.path()).unwrap();
    let child = wait_for(&logs.path().join("x.out"));
    assert!(alive(&child));
    let error = running.finish(Duration::from_millis(300)).unwrap_err().to_string();
    assert!(error.contains("did not end within 300ms"), "{error}");
    assert!(!alive(&child));
}

#[test]
fn waiting_for_a_server_that_dies_ends_at_once_with_its_last_words() {
    let _turn = alone();
    let logs = tempfile::tempdir().unwrap();
    let mut running = Running::start("server", shell("echo port taken >&2; exit 1"), logs.path()).unwrap();
    let started = Instant::now();
    let error = running
        .wait_until("answer", Duration::from_secs(60), || false)
        .unwrap_err()
        .to_string();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(
        error.contains("before answer") && error.contains("port taken"),
        "{error}"
    );
}

#[test]
fn stopping_a_server_that_ends_cleanly_succeeds() {
    let _turn = alone();
    let logs = tempfile::tempdir().unwrap();
    let script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let running = Running::start("server", shell(script), logs.path()).unwrap();
    wait_for(&logs.path().join("server.out"));
    running.stop().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_left_in_a_group_of_its_own_is_ended_and_named() {
    let _turn = alone();
    let logs = tempfile::tempdir().unwrap();
    // setsid: neither the group nor the death of its parent reaches it.
    let script = "setsid sleep 301 & echo $!; trap 'exit 0' TERM; while :; do sleep 0.05; done";
    let running = Running::start("server", shell(script), logs.path()).unwrap();
    let left = wait_for(&logs.path().join("server.out"));
    std::thread::sleep(Duration::from_millis(200));
    let error = running.stop().unwrap_err().to_string();
    assert!(error.contains("server left processes behind: sleep 301"), "{error}");
    assert!(!alive(&left));
}
