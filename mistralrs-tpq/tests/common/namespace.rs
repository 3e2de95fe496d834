//! A test that runs once more by itself in namespaces of its own: network and mounts that it may cut and fill. User namespaces
//! need no privileges, but a host can forbid them.

use std::process::{Command, Stdio};

/// This test binary, to run the ignored test `name` alone, under `unshare` with `flags`.
pub fn inside(flags: &[&str], name: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(flags).arg(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]);
    command
}

/// Runs it to a good end; its output, or `None` where this host forbids namespaces: then nothing was checked.
pub fn run_inside(flags: &[&str], name: &str) -> Option<String> {
    let permitted = Command::new("unshare").args(flags).arg("true").output();
    if !permitted.is_ok_and(|output| output.status.success()) {
        println!("not checked: this host does not permit `unshare {}`", flags.join(" "));
        return None;
    }
    let output = inside(flags, name).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ran = text.contains("1 passed");
    assert!(
        output.status.success() && ran,
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(text)
}

/// Whether a shell command succeeds.
pub fn sh(command: &str) -> bool {
    let status = Command::new("sh").args(["-c", command]).stderr(Stdio::null()).status();
    status.unwrap().success()
}
