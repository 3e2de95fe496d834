//! Starts the ranks, waits for them, and decides when they stop.
//!
//! ```text
//! running --- a rank fails, or a signal ---> stopping (SIGTERM, or that signal) --- grace ---> killed (SIGKILL)
//!    \------- rank 0 exits 0 ------------> finishing --- grace ---> stopping
//! ```
//! With restarts left, a rank that fails while all is running is started again after a pause instead.
//!
//! Every rank leads its own process group, and only these groups are signalled. A leader that has exited is reaped only when
//! its group is no longer needed: until then the kernel cannot give its number to a stranger.

use super::orphans::Guard;
use super::output::{forward, note, Format, Stream};
use crate::cli::CliError;
use crate::config;
use nix::sys::signal::{killpg, SigSet, Signal};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

pub(super) struct Launch<'a> {
    pub(super) command: &'a [OsString],
    pub(super) ranks: usize,
    /// `TPQ_PEERS`
    pub(super) peers: String,
    /// That each rank computes with.
    pub(super) threads: Option<usize>,
    pub(super) grace: Duration,
    /// Of each rank.
    pub(super) restarts: u32,
    /// By rank, or empty.
    pub(super) gpus: &'a [String],
    pub(super) quiet_workers: bool,
    pub(super) format: Format,
    /// Rank 0's lines pass unchanged.
    pub(super) bare_rank_0: bool,
}

/// How a rank ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Code(i32),
    Signal(i32),
}

struct Rank {
    process: Child,
    group: Pid,
    outcome: Option<Outcome>,
    restarts: u32,
    /// When to start it again.
    due: Option<Instant>,
    /// Its group's number may be a stranger's by now.
    reaped: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Running,
    /// Rank 0 is done; the others may end by themselves.
    Finishing(Instant),
    Stopping(Instant),
    Killed,
}

struct Supervisor<'a> {
    launch: &'a Launch<'a>,
    tpq: &'a Path,
    ranks: Vec<Rank>,
    guard: Guard,
    phase: Phase,
    /// The exit code of the launch, once something has decided it.
    failure: Option<u8>,
    /// The first signal that was passed on.
    interrupted: Option<Signal>,
    /// Pipes that are read, each of which sends to `output_done` when it ends.
    pipes: usize,
    output_done: (Sender<()>, Receiver<()>),
}

/// Wakes up this often without any signal: SIGCHLD is advice, the ranks' states are the fact.
const TICK: Duration = Duration::from_millis(200);
/// Before the first restart of a rank; each further one waits twice as long, up to 32 times this.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// For lines still in the pipes after the last rank has ended.
const LAST_LINES: Duration = Duration::from_secs(2);

pub(super) fn run(launch: &Launch<'_>) -> Result<u8, CliError> {
    // Before any thread starts, so that all inherit the mask and only the waiting thread gets the signals.
    let signals = watch_signals()?;
    let tpq = std::env::current_exe().map_err(|error| CliError::io("cannot find the tpq executable", error))?;
    let guard = Guard::start(&tpq).map_err(|error| CliError::io("cannot start the guard process", error))?;
    let mut supervisor = Supervisor {
        launch,
        tpq: &tpq,
        ranks: Vec::with_capacity(launch.ranks),
        guard,
        phase: Phase::Running,
        failure: None,
        interrupted: None,
        pipes: 0,
        output_done: mpsc::channel(),
    };
    for rank in 0..launch.ranks {
        match supervisor.start(rank) {
            Ok(started) => supervisor.ranks.push(started),
            Err(error) => {
                supervisor.stop(Signal::SIGTERM);
                supervisor.supervise(&signals);
                return Err(CliError::io(format!("cannot start rank {rank}"), error));
            }
        }
    }
    supervisor.supervise(&signals);
    Ok(supervisor.exit_code())
}

fn watch_signals() -> Result<Receiver<Signal>, CliError> {
    let watched: SigSet = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGCHLD,
    ]
    .into_iter()
    .collect();
    watched
        .thread_block()
        .map_err(|error| CliError::io("cannot block signals", error.into()))?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || while watched.wait().is_ok_and(|signal| sender.send(signal).is_ok()) {});
    Ok(receiver)
}

impl Supervisor<'_> {
    fn start(&mut self, rank: usize) -> std::io::Result<Rank> {
        let launch = self.launch;
        // A terminal would stop a rank that reads it, because the ranks are not its foreground group.
        let stdin = if rank == 0 && !std::io::stdin().is_terminal() {
            Stdio::inherit()
        } else {
            Stdio::null()
        };
        let quiet = launch.quiet_workers && rank > 0;
        let mut command = Command::new(self.tpq);
        if launch.restarts > 0 {
            command.env(config::REJOIN_VARIABLE, "1");
        }
        if let Some(threads) = launch.threads {
            command.env(super::THREADS_VARIABLE, threads.to_string());
        }
        if let Some(gpu) = launch.gpus.get(rank) {
            command.env(super::gpus::VARIABLE, gpu);
        }
        let mut process = command
            .args(["__rank", "--parent", &std::process::id().to_string(), "--"])
            .args(launch.command)
            .env(config::RANK_VARIABLE, rank.to_string())
            .env(config::WORLD_SIZE_VARIABLE, launch.ranks.to_string())
            .env(config::PEERS_VARIABLE, &launch.peers)
            // A ring of another deployment, exported in this shell, is not the ring of these ranks.
            .env_remove("RING_CONFIG")
            .stdin(stdin)
            .stdout(if quiet { Stdio::null() } else { Stdio::piped() })
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let group = Pid::from_raw(process.id().cast_signed());
        self.guard.watch(group);
        let format = if launch.bare_rank_0 && rank == 0 {
            Format::Bare
        } else {
            launch.format
        };
        if let Some(pipe) = process.stdout.take() {
            self.pipes += 1;
            forward(rank, pipe, Stream::Stdout, format, self.output_done.0.clone());
        }
        if let Some(pipe) = process.stderr.take() {
            self.pipes += 1;
            forward(rank, pipe, Stream::Stderr, format, self.output_done.0.clone());
        }
        tracing::info!(rank, pid = process.id(), "started");
        Ok(Rank {
            process,
            group,
            outcome: None,
            restarts: 0,
            due: None,
            reaped: false,
        })
    }

    /// Returns when every rank has ended and nothing of it is left.
    fn supervise(&mut self, signals: &Receiver<Signal>) {
        loop {
            self.collect();
            self.restart_due();
            if self
                .ranks
                .iter()
                .all(|rank| rank.outcome.is_some() && rank.due.is_none())
            {
                break;
            }
            self.check_deadline();
            match signals.recv_timeout(self.patience()) {
                Ok(Signal::SIGCHLD) => {}
                Ok(signal) => self.pass_on(signal),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                // Without the signal thread the ticks go on.
                Err(mpsc::RecvTimeoutError::Disconnected) => thread::sleep(TICK.min(self.patience())),
            }
        }
        self.bury();
        self.drain_output();
    }

    fn patience(&self) -> Duration {
        match self.phase {
            Phase::Finishing(deadline) | Phase::Stopping(deadline) => {
                deadline.saturating_duration_since(Instant::now()).min(TICK)
            }
            Phase::Running | Phase::Killed => TICK,
        }
    }

    /// Notes which ranks have ended since the last look.
    fn collect(&mut self) {
        for index in 0..self.ranks.len() {
            if self.ranks[index].outcome.is_none() {
                self.ranks[index].outcome = outcome(&mut self.ranks[index].process);
                if let Some(outcome) = self.ranks[index].outcome {
                    self.ended(index, outcome);
                }
            }
        }
    }

    fn ended(&mut self, rank: usize, outcome: Outcome) {
        let how = match outcome {
            Outcome::Code(code) => format!("exited with code {code}"),
            Outcome::Signal(number) => match Signal::try_from(number) {
                Ok(signal) => format!("was killed by {signal}"),
                Err(_) => format!("was killed by signal {number}"),
            },
        };
        let others = self.ranks.iter().any(|rank| rank.outcome.is_none());
        match (self.phase, outcome) {
            (Phase::Running, Outcome::Code(0)) => {
                tracing::info!(rank, "finished");
                if rank == 0 && others {
                    self.phase = Phase::Finishing(Instant::now() + self.launch.grace);
                }
            }
            (Phase::Running, _) if self.ranks[rank].restarts < self.launch.restarts => {
                let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.ranks[rank].restarts.min(5));
                self.ranks[rank].restarts += 1;
                self.ranks[rank].due = Some(Instant::now() + pause);
                let text = format!(
                    "rank {rank} {how}; starting it again ({} of {})",
                    self.ranks[rank].restarts, self.launch.restarts
                );
                note(self.launch.format, "rank_restarted", Some(rank), &text);
            }
            (Phase::Running, _) => {
                let rest = if others { "; stopping the others" } else { "" };
                note(
                    self.launch.format,
                    "rank_failed",
                    Some(rank),
                    &format!("rank {rank} {how}{rest}"),
                );
                self.failure = Some(outcome.exit_code());
                self.stop(Signal::SIGTERM);
            }
            // A rank whose peers are being stopped may well end in an error; the cause has been told.
            _ => tracing::info!(rank, how, "ended"),
        }
    }

    /// Starts ranks anew whose pause is over. What the failed one left running in its group ends first.
    fn restart_due(&mut self) {
        for index in 0..self.ranks.len() {
            if !matches!(self.phase, Phase::Running) {
                self.ranks[index].due = None;
            }
            if self.ranks[index].due.is_none_or(|due| Instant::now() < due) {
                continue;
            }
            let old = &mut self.ranks[index];
            old.due = None;
            let _ = killpg(old.group, Signal::SIGKILL);
            let _ = old.process.wait();
            old.reaped = true;
            let (group, restarts) = (old.group, old.restarts);
            self.guard.forget(group);
            match self.start(index) {
                Ok(started) => self.ranks[index] = Rank { restarts, ..started },
                Err(error) => {
                    let text = format!("rank {index} cannot be started again: {error}; stopping the others");
                    note(self.launch.format, "rank_failed", Some(index), &text);
                    self.failure = Some(1);
                    self.stop(Signal::SIGTERM);
                }
            }
        }
    }

    fn check_deadline(&mut self) {
        let late = |deadline| Instant::now() >= deadline;
        match self.phase {
            Phase::Finishing(deadline) if late(deadline) => self.stop(Signal::SIGTERM),
            Phase::Stopping(deadline) if late(deadline) => {
                for (rank, one) in self.ranks.iter().enumerate().filter(|(_, one)| one.outcome.is_none()) {
                    let text = format!(
                        "rank {rank} (pid {}) did not stop in time; killing it",
                        one.process.id()
                    );
                    note(self.launch.format, "rank_killed", Some(rank), &text);
                }
                self.kill();
            }
            _ => {}
        }
    }

    fn pass_on(&mut self, signal: Signal) {
        if self.interrupted.is_some() {
            note(
                self.launch.format,
                "interrupted",
                None,
                &format!("{signal} again; killing all ranks"),
            );
            return self.kill();
        }
        self.interrupted = Some(signal);
        note(
            self.launch.format,
            "interrupted",
            None,
            &format!("{signal}; passing it on to all ranks"),
        );
        self.stop(signal);
    }

    fn stop(&mut self, signal: Signal) {
        self.signal(signal);
        self.phase = Phase::Stopping(Instant::now() + self.launch.grace);
    }

    fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.phase = Phase::Killed;
    }

    fn signal(&self, signal: Signal) {
        for rank in self.ranks.iter().filter(|rank| !rank.reaped) {
            // An empty group is what we want.
            let _ = killpg(rank.group, signal);
        }
    }

    /// Ends what ranks have left running in their groups, then reaps the ranks.
    fn bury(&mut self) {
        self.signal(Signal::SIGTERM);
        for rank in &mut self.ranks {
            let _ = rank.process.wait();
        }
        // From here on a group's number is held by its remaining members, if there are any.
        let deadline = Instant::now() + self.launch.grace;
        let alive = |rank: &Rank| !rank.reaped && killpg(rank.group, None).is_ok();
        while self.ranks.iter().any(alive) {
            if Instant::now() >= deadline {
                self.ranks.iter().filter(|rank| alive(rank)).for_each(|rank| {
                    let _ = killpg(rank.group, Signal::SIGKILL);
                });
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        for index in 0..self.ranks.len() {
            self.guard.forget(self.ranks[index].group);
        }
    }

    /// Waits for the last lines, but not for a process that left its group and keeps the pipe open.
    fn drain_output(&mut self) {
        let deadline = Instant::now() + LAST_LINES;
        for _ in 0..self.pipes {
            if self
                .output_done
                .1
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                .is_err()
            {
                break;
            }
        }
    }

    fn exit_code(&self) -> u8 {
        if let Some(code) = self.failure {
            return code;
        }
        let clean = self.ranks.iter().all(|rank| rank.outcome == Some(Outcome::Code(0)));
        match self.interrupted {
            Some(signal) if !clean => Outcome::Signal(signal as i32).exit_code(),
            _ => 0,
        }
    }
}

impl Outcome {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }

    /// As a shell reports it. A failure never becomes 0.
    fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => u8::try_from(code).unwrap_or(1),
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(255),
        }
    }
}

/// How the process ended, if it has. Where the system can tell without reaping, the process stays a zombie.
fn outcome(process: &mut Child) -> Option<Outcome> {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(Pid::from_raw(process.id().cast_signed())), flags) {
            Ok(WaitStatus::Exited(_, code)) => return Some(Outcome::Code(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Some(Outcome::Signal(signal as i32)),
            Ok(_) => return None,
            // A real-time signal has no name in nix; the standard library knows its number.
            Err(_) => {}
        }
    }
    process.try_wait().ok().flatten().map(Outcome::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(Outcome::Code(3).exit_code(), 3);
        assert_eq!(Outcome::Signal(9).exit_code(), 137);
        assert_eq!(Outcome::Signal(200).exit_code(), 255);
        assert_eq!(Outcome::Code(-1).exit_code(), 1);
    }
}
