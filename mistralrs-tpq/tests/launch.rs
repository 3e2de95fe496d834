//! `tpq launch` with /bin/sh ranks: exit codes, prefixes, and that nothing is left behind.

use nix::sys::signal::{kill, killpg, Signal};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// `tpq launch ARGS -- sh -c SCRIPT`
fn command(args: &[&str], script: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tpq"));
    command
        .arg("launch")
        .args(args)
        .args(["--", "/bin/sh", "-c", script])
        .env("RING_CONFIG", "stale.json");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn launch(args: &[&str], script: &str) -> (Output, Duration) {
    let start = Instant::now();
    let output = command(args, script).output().unwrap();
    (output, start.elapsed())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn sorted(bytes: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> = text(bytes).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Waits until no process of the group runs. Zombies do not count: they are those of a killed `tpq`, and when they are reaped is
/// up to init.
fn gone(group: i32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while running(group) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

fn running(group: i32) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return killpg(Pid::from_raw(group), None).is_ok();
    };
    let stats = processes
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    // pid (name) state parent group ...
    stats.into_iter().any(|stat| {
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        fields.first() != Some(&"Z") && fields.get(2) == Some(&group.to_string().as_str())
    })
}

/// Reads `[rank i] PID` lines of as many ranks; each rank leads its group.
fn groups(child: &mut Child, ranks: usize) -> Vec<i32> {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    (0..ranks)
        .map(|_| {
            lines
                .next()
                .unwrap()
                .unwrap()
                .rsplit(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect()
}

#[test]
fn a_bare_name_is_looked_for_beside_tpq_before_path() {
    let mut launch = Command::new(env!("CARGO_BIN_EXE_tpq"));
    // Nothing else is called so, and PATH is empty.
    let output = launch
        .args(["launch", "-n", "1", "--", "tpq", "--version"])
        .env("PATH", "")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).starts_with("[rank 0] tpq "),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn every_rank_gets_its_place_and_every_line_its_prefix() {
    let (output, _) = launch(
        &["-n", "3", "--base-port", "17931"],
        "echo $TPQ_RANK/$TPQ_WORLD_SIZE $TPQ_PEERS ${RING_CONFIG-unset}; echo error $TPQ_RANK >&2",
    );
    assert_eq!(output.status.code(), Some(0));
    let peers = "127.0.0.1:17931,127.0.0.1:17932,127.0.0.1:17933 unset";
    let expected: Vec<String> = (0..3).map(|rank| format!("[rank {rank}] {rank}/3 {peers}")).collect();
    assert_eq!(sorted(&output.stdout), expected);
    assert_eq!(
        sorted(&output.stderr),
        ["[rank 0] error 0", "[rank 1] error 1", "[rank 2] error 2"]
    );
}

#[test]
fn every_rank_sees_the_gpu_that_it_is_given() {
    let script = "echo ${CUDA_VISIBLE_DEVICES-all}";
    let (output, _) = launch(&["-n", "3", "--gpus", "1,GPU-5ebe9f43,1"], script);
    let expected = ["[rank 0] 1", "[rank 1] GPU-5ebe9f43", "[rank 2] 1"];
    assert_eq!(sorted(&output.stdout), expected);
    let mut without = command(&["-n", "1"], script);
    let output = without.env_remove("CUDA_VISIBLE_DEVICES").output().unwrap();
    assert_eq!(sorted(&output.stdout), ["[rank 0] all"]);
}

#[test]
fn gpus_that_are_none_or_not_one_for_each_rank_are_refused() {
    for (gpus, what) in [
        ("0", "names 1 for 2 ranks"),
        ("0,cuda:1", "\"cuda:1\" is no GPU"),
        ("0,", "\"\" is no GPU"),
    ] {
        let (output, _) = launch(&["-n", "2", "--gpus", gpus], "echo started");
        assert_eq!(output.status.code(), Some(2), "{gpus}");
        assert!(text(&output.stderr).contains(what), "{gpus}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{gpus}");
    }
}

#[test]
fn ranks_share_the_cores_unless_the_user_has_said_how_many_threads() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads = |ranks: usize, of_user: Option<&str>| {
        let mut command = command(&["-n", &ranks.to_string()], "echo $RAYON_NUM_THREADS");
        match of_user {
            Some(threads) => command.env("RAYON_NUM_THREADS", threads),
            None => command.env_remove("RAYON_NUM_THREADS"),
        };
        sorted(&command.output().unwrap().stdout)
    };
    assert_eq!(threads(1, None), [format!("[rank 0] {cores}")]);
    let half = (cores / 2).max(1);
    assert_eq!(threads(2, None), [0, 1].map(|rank| format!("[rank {rank}] {half}")));
    assert_eq!(threads(cores + 1, None)[0], "[rank 0] 1");
    assert_eq!(threads(1, Some("7")), ["[rank 0] 7"]);
}

#[test]
fn lines_of_different_ranks_never_mix() {
    let script = "i=0; while [ $i -lt 300 ]; do printf '%s' aaaaaaaaaa; printf '%s\\n' $TPQ_RANK; i=$((i+1)); done";
    let (output, _) = launch(&["-n", "4"], script);
    let lines = sorted(&output.stdout);
    assert_eq!(lines.len(), 1200);
    for (index, line) in lines.iter().enumerate() {
        let rank = index / 300;
        assert_eq!(*line, format!("[rank {rank}] aaaaaaaaaa{rank}"));
    }
}

#[test]
fn a_last_line_without_newline_is_not_lost() {
    let (output, _) = launch(&["-n", "1"], "printf unfinished");
    assert_eq!(text(&output.stdout), "[rank 0] unfinished\n");
}

#[test]
fn quiet_workers_keep_their_errors() {
    let (output, _) = launch(&["-n", "2", "--quiet-workers"], "echo out; echo err >&2");
    assert_eq!(text(&output.stdout), "[rank 0] out\n");
    assert_eq!(sorted(&output.stderr), ["[rank 0] err", "[rank 1] err"]);
}

#[test]
fn a_rank_that_fails_is_started_again_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {}; if [ $TPQ_RANK = 1 ]; then echo x >> tries; [ $(wc -l < tries) -lt 3 ] && exit 7; touch ok; exit 0; fi; \
         echo start; while [ ! -e ok ]; do sleep 0.05; done; echo rejoin $TPQ_REJOIN",
        folder.path().display()
    );
    let (output, _) = launch(&["-n", "2", "--restart=2"], &script);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "[rank 0] start\n[rank 0] rejoin 1\n");
    let notes = text(&output.stderr);
    assert!(
        notes.contains("rank 1 exited with code 7; starting it again (2 of 2)"),
        "{notes}"
    );
}

#[test]
fn a_rank_that_has_used_up_its_restarts_stops_the_others() {
    let script = "[ $TPQ_RANK = 1 ] && exit 3; exec sleep 60";
    let (output, _) = launch(&["-n", "2", "--restart=1"], script);
    assert_eq!(output.status.code(), Some(3));
    let notes = text(&output.stderr);
    assert!(
        notes.contains("starting it again (1 of 1)") && notes.contains("stopping the others"),
        "{notes}"
    );
}

#[test]
fn json_output_is_one_object_a_line() {
    let (output, _) = launch(
        &["-n", "2", "--json"],
        "echo $TPQ_RANK; [ $TPQ_RANK = 1 ] && exit 1; exec sleep 60",
    );
    assert_eq!(output.status.code(), Some(1));
    for line in text(&output.stdout).lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["line"], line["rank"].to_string());
    }
    let event: serde_json::Value = serde_json::from_str(text(&output.stderr).lines().next().unwrap()).unwrap();
    assert_eq!(
        (event["event"].as_str(), event["rank"].as_i64()),
        (Some("rank_failed"), Some(1))
    );
}

#[test]
fn the_first_failing_rank_stops_all_and_its_exit_code_is_kept() {
    let (output, took) = launch(&["-n", "3"], "if [ $TPQ_RANK = 1 ]; then exit 42; fi; exec sleep 60");
    assert_eq!(output.status.code(), Some(42));
    assert!(text(&output.stderr).contains("tpq: rank 1 exited with code 42; stopping the others"));
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn a_killed_rank_counts_as_128_plus_its_signal() {
    let (output, _) = launch(&["-n", "2"], "if [ $TPQ_RANK = 1 ]; then kill -9 $$; fi; exec sleep 60");
    assert_eq!(output.status.code(), Some(137));
    assert!(text(&output.stderr).contains("rank 1 was killed by SIGKILL"));
}

#[test]
fn a_rank_that_ignores_sigterm_is_killed_after_the_grace_period() {
    let script = "if [ $TPQ_RANK = 1 ]; then sleep 0.3; exit 7; fi; trap '' TERM; while :; do sleep 0.1; done";
    let (output, took) = launch(&["-n", "2", "--grace-s", "0.5"], script);
    assert_eq!(output.status.code(), Some(7));
    assert!(
        text(&output.stderr).contains("rank 0 (pid "),
        "{}",
        text(&output.stderr)
    );
    assert!(
        took > Duration::from_millis(700) && took < Duration::from_secs(5),
        "{took:?}"
    );
}

#[test]
fn a_command_that_does_not_exist_exits_127() {
    let output = Command::new(env!("CARGO_BIN_EXE_tpq"))
        .args(["launch", "-n", "2", "--", "/no/such/command"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).contains("] tpq: cannot start /no/such/command: "));
}

#[test]
fn when_rank_0_ends_well_the_others_may_finish() {
    let (output, took) = launch(
        &["-n", "2"],
        "[ $TPQ_RANK = 0 ] && exit 0; sleep 0.4; echo late; exit 5",
    );
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "[rank 1] late\n");
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn when_rank_0_ends_well_a_lingering_rank_is_stopped_after_the_grace_period() {
    let (output, took) = launch(
        &["-n", "2", "--grace-s", "0.4"],
        "[ $TPQ_RANK = 0 ] && exit 0; exec sleep 60",
    );
    assert_eq!(output.status.code(), Some(0));
    assert!(
        took > Duration::from_millis(350) && took < Duration::from_secs(5),
        "{took:?}"
    );
}

#[test]
fn a_worker_that_ends_well_before_rank_0_does_not_end_the_launch() {
    let (output, _) = launch(&["-n", "2"], "[ $TPQ_RANK = 1 ] && exit 0; sleep 0.4; echo served");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "[rank 0] served\n");
}

#[test]
fn a_signal_is_passed_on_and_no_rank_is_left() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        // sh ignores SIGINT in `sleep`'s parent until the child is done, hence exec.
        let mut child = command(&["-n", "2"], "echo $$; exec sleep 60").spawn().unwrap();
        let groups = groups(&mut child, 2);
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(groups.into_iter().all(gone));
    }
}

#[test]
fn ranks_that_handle_the_signal_decide_the_exit_code() {
    let script = "trap 'echo bye; exit 0' TERM; echo $$; while :; do sleep 0.05; done";
    let mut child = command(&["-n", "2"], script).spawn().unwrap();
    groups(&mut child, 2);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_kills_at_once() {
    let mut child = command(
        &["-n", "2", "--grace-s", "60"],
        "trap '' INT; echo $$; while :; do sleep 0.1; done",
    )
    .spawn()
    .unwrap();
    let groups = groups(&mut child, 2);
    let start = Instant::now();
    let tpq = Pid::from_raw(child.id() as i32);
    kill(tpq, Signal::SIGINT).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    kill(tpq, Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(5) && groups.into_iter().all(gone));
}

#[test]
fn no_rank_survives_a_killed_tpq() {
    let mut child = command(&["-n", "3"], "echo $$; exec sleep 60").spawn().unwrap();
    let groups = groups(&mut child, 3);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(groups.into_iter().all(gone));
}

#[test]
fn no_child_of_a_rank_survives_a_killed_tpq() {
    // The shell stays and has a child that ignores the polite signals.
    let script = "(trap '' TERM HUP INT; while :; do sleep 0.1; done) & echo $$; wait";
    let mut child = command(&["-n", "2"], script).spawn().unwrap();
    let groups = groups(&mut child, 2);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(groups.into_iter().all(gone));
}

#[test]
fn what_a_rank_leaves_in_the_background_ends_with_the_launch() {
    let mut child = command(
        &["-n", "1", "--grace-s", "0.3"],
        "(trap '' TERM; sleep 60) & echo $$; exit 0",
    )
    .spawn()
    .unwrap();
    let groups = groups(&mut child, 1);
    let start = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5) && groups.into_iter().all(gone));
}

#[test]
fn rank_0_reads_a_piped_stdin_and_the_others_read_nothing() {
    let mut child = command(&["-n", "2"], "cat; echo end")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        sorted(&output.stdout),
        ["[rank 0] end", "[rank 0] hello", "[rank 1] end"]
    );
}

#[test]
fn ranks_go_on_when_nobody_reads_their_output() {
    let mut child = command(
        &["-n", "2"],
        "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; exit 9",
    )
    .spawn()
    .unwrap();
    let mut first = [0; 16];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}
