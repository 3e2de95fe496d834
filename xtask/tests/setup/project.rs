//! A made-up engine of two crates, its two patches, and a project around them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

pub const LIB: &str = "//! core\n\npub fn one() -> u32 {\n    1\n}\n\npub fn two() -> u32 {\n    2\n}\n\npub fn three() -> u32 {\n    3\n}\n";

pub const FIRST: &str = "\
Why `one` is eleven.

diff --git a/mistralrs-core/src/lib.rs b/mistralrs-core/src/lib.rs
--- a/mistralrs-core/src/lib.rs
+++ b/mistralrs-core/src/lib.rs
@@ -1,5 +1,5 @@
 //! core
 
 pub fn one() -> u32 {
-    1
+    11
 }
diff --git a/mistralrs-quant/src/hook/mod.rs b/mistralrs-quant/src/hook/mod.rs
new file mode 100644
--- /dev/null
+++ b/mistralrs-quant/src/hook/mod.rs
@@ -0,0 +1,2 @@
+//! hook
+pub fn hook() {}
diff --git a/mistralrs-quant/src/old.rs b/mistralrs-quant/src/old.rs
deleted file mode 100644
--- a/mistralrs-quant/src/old.rs
+++ /dev/null
@@ -1 +0,0 @@
-pub fn old() {}
\\ No newline at end of file
-- 
2.43.0
";

/// Builds on the first patch: it changes the line that the first one wrote.
pub const SECOND: &str = "\
diff --git a/mistralrs-core/src/lib.rs b/mistralrs-core/src/lib.rs
--- a/mistralrs-core/src/lib.rs
+++ b/mistralrs-core/src/lib.rs
@@ -1,5 +1,5 @@
 //! core
 
 pub fn one() -> u32 {
-    11
+    111
 }
@@ -11,3 +11,3 @@ pub fn two() -> u32 {
 pub fn three() -> u32 {
-    3
+    33
 }
";

pub struct Project {
    folder: tempfile::TempDir,
}

pub struct Outcome {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Project {
    pub fn new() -> Self {
        let project = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        project.write(
            "root/Cargo.toml",
            "[patch.crates-io]\nmistralrs-core = { path = \"engine/mistralrs-core\" }\n\
             mistralrs-quant = { path = \"engine/mistralrs-quant\" }\n",
        );
        project.write(
            "root/mistralrs-tpq/Cargo.toml",
            "[dependencies]\nmistralrs-core = { version = \"=0.8.1\", optional = true }\n",
        );
        project.write("root/patches/0.8.1/0001-eleven.patch", FIRST);
        project.write("root/patches/0.8.1/0002-more.patch", SECOND);
        project.write("root/patches/README.md", "not a patch\n");
        project.engine_at("source", "version = \"0.8.1\"");
        project.write("source/mistralrs-core/.cargo-ok", "ok");
        project.write("source/mistralrs-core/Cargo.lock", "# lock\n");
        project
    }

    pub fn engine_at(&self, folder: &str, version: &str) {
        for name in ["mistralrs-core", "mistralrs-quant"] {
            let manifest = format!("[package]\nname = \"{name}\"\n{version}\n");
            self.write(&format!("{folder}/{name}/Cargo.toml"), &manifest);
        }
        self.write(&format!("{folder}/mistralrs-core/src/lib.rs"), LIB);
        self.write(&format!("{folder}/mistralrs-core/src/other.rs"), "// other\r\n");
        self.write(&format!("{folder}/mistralrs-quant/src/old.rs"), "pub fn old() {}");
        self.write(&format!("{folder}/mistralrs-quant/src/lib.rs"), "// quant\n");
    }

    /// A git checkout: the version stands in the workspace.
    pub fn checkout(&self, version: &str) -> PathBuf {
        self.engine_at("checkout", "version.workspace = true");
        self.write(
            "checkout/Cargo.toml",
            &format!("[workspace.package]\nversion = \"{version}\"\n"),
        );
        self.path("checkout")
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// `cargo xtask setup` with the published crates taken from `source/`.
    pub fn setup(&self, options: &[&str]) -> Outcome {
        let source = self.path("source");
        self.run(&[&["--source", source.to_str().unwrap()], options].concat())
    }

    pub fn patch_checkout(&self, options: &[&str]) -> Outcome {
        let checkout = self.path("checkout");
        self.run(&[&["--engine-dir", checkout.to_str().unwrap()], options].concat())
    }

    pub fn run(&self, options: &[&str]) -> Outcome {
        let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let output = xtask
            .arg("--project")
            .arg(self.path("root"))
            .arg("setup")
            .args(options)
            .output()
            .unwrap();
        Outcome {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Content of each file below `folder`.
    pub fn snapshot(&self, folder: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        files(&self.path(folder))
            .into_iter()
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    }

    /// Sets each file below `folder` to a time long past, so that a file written later shows.
    pub fn age(&self, folder: &str) -> SystemTime {
        let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for path in files(&self.path(folder)) {
            fs::File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_modified(past)
                .unwrap();
        }
        past
    }

    /// Files below `folder` written since `age`, relative to it.
    pub fn written_since(&self, folder: &str, past: SystemTime) -> Vec<String> {
        let folder = self.path(folder);
        let written = files(&folder).into_iter().filter(|path| modified(path) != past);
        written
            .map(|path| path.strip_prefix(&folder).unwrap().display().to_string())
            .collect()
    }

    pub fn nothing_else_in_root(&self) -> bool {
        fs::read_dir(self.path("root")).unwrap().all(|entry| {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            ["Cargo.toml", "mistralrs-tpq", "patches", "engine"].contains(&name.as_str())
        })
    }
}

impl Outcome {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.success, "failed\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn fails(self) -> Self {
        assert!(
            !self.success,
            "succeeded\nstdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }

    #[track_caller]
    pub fn says(self, expected: &str) -> Self {
        let found = self.stdout.contains(expected) || self.stderr.contains(expected);
        assert!(
            found,
            "{expected:?} missing\nstdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap);
    entries
        .filter(|entry| entry.file_type().is_file())
        .map(walkdir::DirEntry::into_path)
        .collect()
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}
