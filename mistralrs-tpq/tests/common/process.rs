//! A process under test, with a deadline, that never outlives its test.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, killpg, Signal};
use nix::unistd::Pid;

use super::within;

/// Ends with its whole process group, and with every process that inherited its environment, when dropped.
pub struct Process {
    what: String,
    child: Child,
    status: Option<ExitStatus>,
    deadline: Instant,
    mark: String,
    /// stdout and stderr go to files here: no pipe can fill up, and a grandchild that keeps one open blocks nobody.
    folder: tempfile::TempDir,
}

#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Set on every process under test, to find what it started.
const MARK: &str = "TPQ_TEST_MARK";
/// Settings of the host that would change what is tested.
const FOREIGN: [&str; 12] = [
    "MISTRALRS_TPQ_CONFIG",
    "MISTRALRS_TPQ_RANK",
    "TPQ_RANK",
    "TPQ_WORLD_SIZE",
    "TPQ_PEERS",
    "TPQ_REJOIN",
    "TPQ_SECRET",
    "TPQ_SECRET_FILE",
    "RING_CONFIG",
    "RUST_LOG",
    "MCP_CONFIG_PATH",
    "KEEP_ALIVE_INTERVAL",
];
const GRACE: Duration = Duration::from_secs(3);

/// `tpq`, as cargo built it for this test.
pub fn tpq() -> Command {
    clean(env!("CARGO_BIN_EXE_tpq"))
}

/// Path of `mistralrs-server`, as cargo built it for this test.
#[cfg(feature = "engine")]
pub const SERVER: &str = env!("CARGO_BIN_EXE_mistralrs-server");

pub fn clean(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    for name in FOREIGN {
        command.env_remove(name);
    }
    // Each rank would otherwise start a thread for each core, and they would wait for each other.
    command.env("RAYON_NUM_THREADS", "1");
    command
}

impl Process {
    /// `limit` is for the whole life of the process.
    pub fn start(mut command: Command, limit: Duration) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        let what = format!("{command:?}");
        let child = command
            .env(MARK, &mark)
            .stdin(Stdio::null())
            .stdout(File::create(folder.path().join("stdout")).unwrap())
            .stderr(File::create(folder.path().join("stderr")).unwrap())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        Self {
            what,
            child,
            status: None,
            deadline: Instant::now() + limit,
            mark,
            folder,
        }
    }

    pub fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// To the process alone, as a service manager or a terminal's user would.
    pub fn signal(&self, signal: Signal) {
        kill(self.id(), signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.what));
    }

    /// Time until the deadline.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    pub fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status.is_some()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// At the deadline, with what the process has said.
    pub fn finish(&mut self) -> Finished {
        let left = self.left();
        if !within(left, || self.has_ended()) {
            self.fail("is still running at its deadline");
        }
        Finished {
            status: self.status.unwrap(),
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join(name)).unwrap()).into_owned()
    }

    /// # Panics
    /// Always, with what the process has said.
    pub fn fail(&self, why: &str) -> ! {
        panic!(
            "{}\n{why}\n--- stdout\n{}\n--- stderr\n{}",
            self.what,
            self.stdout(),
            self.stderr()
        );
    }

    /// Running processes that this one started, directly or not, itself included. Zombies have no environment left and do not
    /// count.
    #[cfg(target_os = "linux")]
    pub fn relatives(&self) -> Vec<Pid> {
        let wanted = format!("{MARK}={}", self.mark);
        let has_mark = |pid: &Pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|&byte| byte == 0)
                .any(|entry| entry == wanted.as_bytes())
        };
        let numbers = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.map(Pid::from_raw).filter(has_mark).collect()
    }

    /// Without /proc: the process group, which a launcher's ranks leave. Their launcher's guard ends them.
    #[cfg(not(target_os = "linux"))]
    pub fn relatives(&self) -> Vec<Pid> {
        killpg(self.id(), None).map_or(Vec::new(), |()| vec![self.id()])
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = killpg(self.id(), Signal::SIGTERM);
            within(GRACE, || self.has_ended());
        }
        // The child is not reaped before its group is signalled, unless it has ended by itself; then only relatives are left.
        if !self.has_ended() {
            let _ = killpg(self.id(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
        for relative in self.relatives() {
            let _ = kill(relative, Signal::SIGKILL);
        }
    }
}

/// Runs to the end.
pub fn run(command: Command, limit: Duration) -> Finished {
    Process::start(command, limit).finish()
}

/// Runs to the end, which must be a good one.
pub fn succeed(command: Command, limit: Duration) -> Finished {
    let mut process = Process::start(command, limit);
    let finished = process.finish();
    if !finished.status.success() {
        process.fail(&format!("failed: {}", finished.status));
    }
    finished
}

/// Runs to the end, which must be an error whose message contains all of `expected`, and returns the message.
pub fn refuse(command: Command, limit: Duration, expected: &[&str]) -> String {
    let mut process = Process::start(command, limit);
    let finished = process.finish();
    if finished.status.success() {
        process.fail("did not refuse");
    }
    let message = finished.stderr;
    if let Some(missing) = expected.iter().find(|part| !message.contains(**part)) {
        process.fail(&format!("the message does not contain {missing:?}"));
    }
    assert!(!message.contains("panicked at"), "{message}");
    message
}
