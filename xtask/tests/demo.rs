//! `cargo xtask demo` from start to end against stand-ins for the two binaries; no engine, no network.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        let project = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let manifest = "[package]\nname = \"mistralrs-tpq\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
            [[bin]]\nname = \"tpq\"\npath = \"src/bin/tpq.rs\"\n\
            [[bin]]\nname = \"mistralrs-server\"\npath = \"src/bin/server.rs\"\n\
            [dependencies]\nmistralrs-core = { path = \"../core\", version = \"=0.8.1\" }\n";
        project.write("mistralrs-tpq/Cargo.toml", manifest);
        project.write(
            "core/Cargo.toml",
            "[package]\nname = \"mistralrs-core\"\nversion = \"0.8.1\"\nedition = \"2021\"\n",
        );
        project.write("core/src/lib.rs", "");
        project.write(
            "Cargo.toml",
            "[workspace]\nresolver = \"2\"\nmembers = [\"mistralrs-tpq\"]\nexclude = [\"core\"]\n",
        );
        project.write("mistralrs-tpq/src/bin/tpq.rs", include_str!("stand_in/tpq.rs"));
        project.write("mistralrs-tpq/src/bin/server.rs", include_str!("stand_in/server.rs"));
        project.write("mistralrs-tpq/src/text.rs", &"// what it says\n".repeat(3000));
        project.write("docs/text.md", &"Held out.\n".repeat(1000));
        project.write("examples/demo-model/config.json", "{}");
        fs::create_dir_all(project.path("patches/0.8.1")).unwrap();
        fs::create_dir(project.path("linked")).unwrap();
        std::os::unix::fs::symlink(project.path("linked"), project.path("engine")).unwrap();
        project
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn demo(&self, options: &[&str], variable: Option<&str>) -> Output {
        self.command(options, variable).output().unwrap()
    }

    fn command(&self, options: &[&str], variable: Option<&str>) -> Command {
        let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
        xtask.arg("--project").arg(self.folder.path()).arg("demo").args(options);
        // Nothing is downloaded, and the build of the stand-ins shares no lock with the one that runs this test.
        xtask
            .env("CARGO_NET_OFFLINE", "true")
            .env("CARGO_TARGET_DIR", self.path("target"));
        xtask.envs(variable.map(|name| (name, "1")));
        xtask
    }

    fn scratch_folders(&self) -> usize {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        entries
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with(".tpq-demo")
            })
            .count()
    }

    /// Command lines of running processes that were started from this project.
    fn running(&self) -> Vec<String> {
        let target = self.path("target").display().to_string();
        let lines = fs::read_dir("/proc").into_iter().flatten().flatten();
        let lines = lines.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
        lines.filter(|line| line.starts_with(&target)).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_demo_ends_by_itself_with_one_json_object_and_leaves_nothing() {
    let project = Project::new();
    let output = project.demo(&["--json", "--ranks", "4"], None);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["ranks"], &report["codec"]), (&4.into(), &"paper".into()));
    assert_eq!(report["reply"], " elements in it.");
    assert_eq!(project.running(), Vec::<String>::new());
    assert_eq!(project.scratch_folders(), 0);
}

#[test]
fn what_is_off_fails_the_demo_and_a_kept_folder_holds_everything() {
    let project = Project::new();
    let kept = project.path("kept");
    let output = project.demo(&["--keep", kept.to_str().unwrap()], Some("STAND_IN_RANKS_DIFFER"));
    assert!(!output.status.success());
    assert!(
        text(&output.stdout).contains("ranks bit-identical  NO"),
        "{}",
        text(&output.stdout)
    );
    assert!(text(&output.stderr).contains("the ranks did not end with the same bits"));
    for name in [
        "tpq.yaml",
        "calibration.txt",
        "held-out.txt",
        "manifest/manifest.yaml",
        "eval.out",
        "server.err",
    ] {
        assert!(Path::new(&kept).join(name).exists(), "{name}");
    }
}

#[test]
fn a_server_that_does_not_start_is_quoted_and_its_logs_are_kept() {
    let project = Project::new();
    let output = project.demo(&[], Some("STAND_IN_SERVER_FAILS"));
    assert!(!output.status.success());
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("server ended with exit status: 4 before answer from /health"),
        "{stderr}"
    );
    assert!(stderr.contains("rank 1 did not answer the hello"), "{stderr}");
    assert!(stderr.contains("configuration and logs of the failed demo"), "{stderr}");
    assert_eq!(project.scratch_folders(), 1);
}

#[test]
fn an_interrupted_or_killed_demo_takes_its_server_along() {
    let project = Project::new();
    for signal in ["INT", "KILL"] {
        let mut demo = project
            .command(&[], Some("STAND_IN_SERVER_HANGS"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait("the server starts", || {
            project.running().iter().any(|line| line.contains("--serve-ip"))
        });
        let kill = Command::new("kill")
            .args(["-s", signal, &demo.id().to_string()])
            .status()
            .unwrap();
        assert!(kill.success());
        assert!(!demo.wait().unwrap().success(), "{signal}");
        wait("the server ends", || project.running().is_empty());
    }
}

fn wait(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(60), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
