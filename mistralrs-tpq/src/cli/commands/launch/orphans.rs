//! No rank outlives `tpq`, not even when `tpq` is killed with SIGKILL and cannot clean up.
//!
//! Two nets. The guard is a process that holds the reading end of a pipe from `tpq` and knows the ranks' process groups; the
//! pipe closes when `tpq` ends, however it ends, and the guard kills what is left. That works on every Unix and also reaches the
//! children of ranks. On Linux each rank moreover asks the kernel to be killed with its parent (PR_SET_PDEATHSIG), which covers the
//! instant between a rank's start and the guard's hearing of it. The kernel's request belongs to a process and must be
//! made inside it: `tpq __rank` makes it and becomes the command, which needs no code between fork and exec.

use crate::cli::args::RankArgs;
use crate::cli::CliError;
use nix::sys::signal::{killpg, SigSet, Signal};
use nix::unistd::{getppid, Pid};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The running guard, seen from `tpq`.
pub(super) struct Guard {
    process: Child,
}

impl Guard {
    pub(super) fn start(tpq: &Path) -> std::io::Result<Self> {
        let process = Command::new(tpq)
            .arg("__guard")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C goes to the terminal's foreground group, which the guard must survive.
            .process_group(0)
            .spawn()?;
        Ok(Self { process })
    }

    pub(super) fn watch(&mut self, group: Pid) {
        self.tell('+', group);
    }

    /// To be called while the group's leader is not yet reaped, so that its number cannot mean another group.
    pub(super) fn forget(&mut self, group: Pid) {
        self.tell('-', group);
    }

    /// A guard that is gone cannot guard; the ranks are no worse off than without one.
    fn tell(&mut self, change: char, group: Pid) {
        if let Some(pipe) = &mut self.process.stdin {
            let _ = pipe.write_all(format!("{change}{group}\n").as_bytes());
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The guard's side: reads `+group` and `-group` lines, and kills what is left at the end. Returns its exit code.
pub fn guard_ranks() -> u8 {
    // A service manager signals every process of the service; the guard has to be the last.
    let _ = SigSet::all().thread_block();
    let mut groups = BTreeSet::new();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let Some((change, number)) = line.split_at_checked(1) else {
            continue;
        };
        // killpg(0) and killpg(1) would reach this group, or everything.
        let Some(group) = number.parse::<i32>().ok().filter(|group| *group > 1) else {
            continue;
        };
        match change {
            "+" => groups.insert(group),
            _ => groups.remove(&group),
        };
    }
    for group in groups {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    0
}

/// Becomes the rank's command. Returns only when that fails.
pub fn become_rank(args: &RankArgs) -> CliError {
    if let Err(error) = die_with_parent(args.parent) {
        return CliError::io("cannot tie this rank to tpq", error);
    }
    let Some((program, rest)) = args.command.split_first() else {
        return CliError::Usage("no command".to_owned());
    };
    // tpq blocks signals to wait for them, a child inherits that, and a rank that blocks SIGTERM cannot be asked to stop.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        return CliError::io("cannot unblock signals", error.into());
    }
    let error = Command::new(beside_tpq(program)).args(rest).exec();
    eprintln!("tpq: cannot start {}: {error}", program.to_string_lossy());
    // The shell's codes: 127 not found, 126 found but not runnable.
    std::process::exit(if error.kind() == ErrorKind::NotFound { 127 } else { 126 })
}

/// A bare name that lies beside this tpq is meant: `tpq launch -- mistralrs-server` runs the server of the same build, whatever
/// another version on PATH is called. Everything else is looked up as the shell does.
fn beside_tpq(program: &OsStr) -> PathBuf {
    let program = Path::new(program);
    let is_bare = program.components().count() == 1 && program.file_name() == Some(program.as_os_str());
    let beside = std::env::current_exe()
        .ok()
        .and_then(|tpq| Some(tpq.parent()?.join(program)));
    match beside {
        Some(beside) if is_bare && beside.is_file() => beside,
        _ => program.to_owned(),
    }
}

fn die_with_parent(parent: i32) -> std::io::Result<()> {
    // SIGKILL rather than SIGTERM: nobody is left to follow up on a rank that ignores it.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have died before the request was made.
    if getppid() != Pid::from_raw(parent) {
        return Err(std::io::Error::other("tpq is gone"));
    }
    Ok(())
}
