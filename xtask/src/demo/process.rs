//! Child processes that never outlive the demo, whatever ends it.
//!
//! Each child leads its own process group. On Linux a child also gets SIGTERM when this process dies, and orphans of the
//! whole tree (ranks whose launcher was killed) become children of this process, which ends them.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use socket2::{Domain, Socket, Type};

const POLL: Duration = Duration::from_millis(50);
/// How long a process may take to end on its own after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// A running child whose output goes to `NAME.out` and `NAME.err`. Dropping it ends its whole tree, and any other child
/// of this process: there is to be one at a time.
pub struct Running {
    name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    pub fn start(name: &str, mut command: Command, logs: &Path) -> Result<Self> {
        let (out, err) = (logs.join(format!("{name}.out")), logs.join(format!("{name}.err")));
        command
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?);
        sys::lead_group_and_die_with_us(&mut command);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        sys::end_on_interrupt(child.id());
        Ok(Self {
            name: name.to_owned(),
            child,
            out,
            err,
        })
    }

    /// Waits for success.
    ///
    /// # Errors
    /// Another exit status, with the end of what the process said, or no end within `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<String> {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.exited()? {
                break status;
            }
            ensure!(
                started.elapsed() < limit,
                "{} did not end within {limit:?}{}",
                self.name,
                self.last_words()
            );
            sleep(POLL);
        };
        ensure!(
            status.success(),
            "{} ended with {status}{}",
            self.name,
            self.last_words()
        );
        self.left_nothing()?;
        fs::read_to_string(&self.out).with_context(|| format!("output of {}", self.name))
    }

    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        ensure!(!sys::interrupted(), "interrupted");
        Ok(self.child.try_wait()?)
    }

    /// Polls `ready` until it holds.
    ///
    /// # Errors
    /// The process ended first, or `limit` passed.
    pub fn wait_until(&mut self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            if let Some(status) = self.exited()? {
                bail!("{} ended with {status} before {what}{}", self.name, self.last_words());
            }
            ensure!(
                started.elapsed() < limit,
                "no {what} within {limit:?}{}",
                self.last_words()
            );
            sleep(2 * POLL);
        }
        Ok(())
    }

    /// Asks the process to end (SIGTERM), as a service manager would.
    ///
    /// # Errors
    /// It had ended before, or does not end in time, or leaves processes of its tree behind.
    pub fn stop(mut self) -> Result<()> {
        if let Some(status) = self.exited()? {
            bail!("{} had ended with {status}{}", self.name, self.last_words());
        }
        self.left_nothing()
    }

    fn left_nothing(&mut self) -> Result<()> {
        let left = self.end();
        ensure!(
            left.is_empty(),
            "{} left processes behind: {}",
            self.name,
            left.join(", ")
        );
        Ok(())
    }

    /// The last lines of its log, for an error message.
    fn last_words(&self) -> String {
        const LINES: usize = 15;
        let read = |path: &Path| fs::read(path).unwrap_or_default();
        let (err, out) = (read(&self.err), read(&self.out));
        let text = String::from_utf8_lossy(if err.is_empty() { &out } else { &err }).into_owned();
        let lines: Vec<_> = text.lines().collect();
        match lines[lines.len().saturating_sub(LINES)..].join("\n  ") {
            words if words.is_empty() => String::new(),
            words => format!(", its last lines:\n  {words}"),
        }
    }

    /// SIGTERM, then SIGKILL after [`GRACE`]; returns what had to be killed.
    fn end(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        let group = self.child.id();
        if matches!(self.child.try_wait(), Ok(None)) {
            sys::signal_group(group, sys::TERM);
            let started = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && started.elapsed() < GRACE {
                sleep(POLL);
            }
            if matches!(self.child.try_wait(), Ok(None)) {
                left.push(format!("{} itself, which did not end within {GRACE:?}", self.name));
                sys::signal_group(group, sys::KILL);
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
        sys::end_on_interrupt(0);
        left.extend(sys::end_orphans(group));
        left
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// A loopback port that stays this process's while it lives, so that `tpq launch` does not choose it for a rank, and that the
/// server can listen on (Linux; elsewhere only a port that was free a moment ago).
pub fn free_port() -> Result<u16> {
    static HELD: Mutex<Vec<Socket>> = Mutex::new(Vec::new());
    let bind = || -> io::Result<(u16, Socket)> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into())?;
        let bound = socket.local_addr()?.as_socket_ipv4();
        Ok((bound.map_or(0, |address| address.port()), socket))
    };
    let (port, socket) = bind().context("no free port on 127.0.0.1")?;
    if cfg!(target_os = "linux") {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
    }
    Ok(port)
}

pub use sys::adopt_orphans;

#[cfg(unix)]
#[allow(unsafe_code)]
mod sys {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

    pub const TERM: i32 = libc::SIGTERM;
    pub const KILL: i32 = libc::SIGKILL;

    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    /// Group that the next SIGINT or SIGTERM ends, 0 for none.
    static GROUP: AtomicI32 = AtomicI32::new(0);

    pub fn interrupted() -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }

    pub fn end_on_interrupt(group: u32) {
        GROUP.store(i32::try_from(group).unwrap_or(0), Ordering::Relaxed);
    }

    extern "C" fn on_signal(_: libc::c_int) {
        let group = GROUP.load(Ordering::Relaxed);
        let again = INTERRUPTED.swap(true, Ordering::Relaxed);
        // SAFETY: kill and _exit are on POSIX's list of functions that are safe in a signal handler.
        unsafe {
            if group > 0 {
                libc::kill(-group, if again { libc::SIGKILL } else { libc::SIGTERM });
            }
            if again || group == 0 {
                libc::_exit(130);
            }
        }
    }

    /// Once, before the first child: catches Ctrl-C, and makes this process the parent of orphans of its tree.
    pub fn adopt_orphans() {
        let handler = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler is async-signal-safe (above), and has the signature that signal expects.
        unsafe {
            libc::signal(libc::SIGINT, handler);
            libc::signal(libc::SIGTERM, handler);
        }
        #[cfg(target_os = "linux")]
        // SAFETY: this prctl reads only its integer arguments.
        unsafe {
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        }
    }

    pub fn lead_group_and_die_with_us(command: &mut Command) {
        command.process_group(0);
        #[cfg(target_os = "linux")]
        {
            let parent = std::process::id();
            let prepare = move || {
                // SAFETY: prctl and getppid are plain system calls, allowed between fork and exec.
                let orphaned = unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                    libc::getppid() != parent as libc::pid_t
                };
                // The parent may have died before the prctl took effect.
                match orphaned {
                    true => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
                    false => Ok(()),
                }
            };
            // SAFETY: the closure allocates nothing and takes no lock.
            unsafe { command.pre_exec(prepare) };
        }
    }

    pub fn signal_group(group: u32, signal: i32) {
        if let Some(group) = libc::pid_t::try_from(group).ok().filter(|group| *group > 1) {
            // SAFETY: kill has no memory effects; a group that is gone gives ESRCH.
            unsafe { libc::kill(-group, signal) };
        }
    }

    /// Ends and reaps every child this process still has, and says what they were. Called when none is expected.
    #[cfg(target_os = "linux")]
    pub fn end_orphans(_group: u32) -> Vec<String> {
        let mut ended = Vec::new();
        // Killing an orphan can hand over its own children: again until there are none.
        loop {
            let orphans = children();
            if orphans.is_empty() {
                return ended;
            }
            for pid in orphans {
                if let Some(name) = command_of(pid) {
                    ended.push(format!("{name} (process {pid})"));
                }
                // SAFETY: pid is a child of this process, so the number cannot have been given to another process
                // before waitpid; both calls touch only their arguments.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                    libc::waitpid(pid, std::ptr::null_mut(), 0);
                }
            }
        }
    }

    /// Only those of the child's own group: other systems do not hand orphans over.
    #[cfg(not(target_os = "linux"))]
    pub fn end_orphans(group: u32) -> Vec<String> {
        signal_group(group, KILL);
        Vec::new()
    }

    /// `None` for a process that has ended and only waits to be reaped.
    #[cfg(target_os = "linux")]
    fn command_of(pid: libc::pid_t) -> Option<String> {
        let line = std::fs::read(format!("/proc/{pid}/cmdline"))
            .ok()
            .filter(|line| !line.is_empty())?;
        Some(String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned())
    }

    #[cfg(target_os = "linux")]
    fn children() -> Vec<libc::pid_t> {
        let me = std::process::id().to_string();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_mine = |pid: &libc::pid_t| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // "pid (name, which may hold anything) state ppid ..."
            stat.rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().nth(1))
                == Some(me.as_str())
        };
        pids.filter(is_mine).collect()
    }
}

#[cfg(not(unix))]
mod sys {
    use std::process::Command;

    pub const TERM: i32 = 0;
    pub const KILL: i32 = 0;

    pub fn interrupted() -> bool {
        false
    }
    pub fn end_on_interrupt(_: u32) {}
    pub fn adopt_orphans() {}
    pub fn lead_group_and_die_with_us(_: &mut Command) {}
    pub fn signal_group(_: u32, _: i32) {}
    pub fn end_orphans(_: u32) -> Vec<String> {
        Vec::new()
    }
}
