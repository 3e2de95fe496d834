//! `cargo xtask setup` as a user calls it, on a made-up engine of two crates; no network.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

const LIB: &str = "//! core\n\npub fn one() -> u32 {\n    1\n}\n\npub fn two() -> u32 {\n    2\n}\n\npub fn three() -> u32 {\n    3\n}\n";

const FIRST: &str = "\
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
const SECOND: &str = "\
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

struct Project {
    folder: tempfile::TempDir,
}

struct Outcome {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Project {
    fn new() -> Self {
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

    fn engine_at(&self, folder: &str, version: &str) {
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
    fn checkout(&self, version: &str) -> PathBuf {
        self.engine_at("checkout", "version.workspace = true");
        self.write(
            "checkout/Cargo.toml",
            &format!("[workspace.package]\nversion = \"{version}\"\n"),
        );
        self.path("checkout")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// `cargo xtask setup` with the published crates taken from `source/`.
    fn setup(&self, options: &[&str]) -> Outcome {
        let source = self.path("source");
        self.run(&[&["--source", source.to_str().unwrap()], options].concat())
    }

    fn patch_checkout(&self, options: &[&str]) -> Outcome {
        let checkout = self.path("checkout");
        self.run(&[&["--engine-dir", checkout.to_str().unwrap()], options].concat())
    }

    fn run(&self, options: &[&str]) -> Outcome {
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
    fn snapshot(&self, folder: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        files(&self.path(folder))
            .into_iter()
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect()
    }

    /// Sets each file below `folder` to a time long past, so that a file written later shows.
    fn age(&self, folder: &str) -> SystemTime {
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
    fn written_since(&self, folder: &str, past: SystemTime) -> Vec<String> {
        let folder = self.path(folder);
        let written = files(&folder).into_iter().filter(|path| modified(path) != past);
        written
            .map(|path| path.strip_prefix(&folder).unwrap().display().to_string())
            .collect()
    }

    fn nothing_else_in_root(&self) -> bool {
        fs::read_dir(self.path("root")).unwrap().all(|entry| {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            ["Cargo.toml", "mistralrs-tpq", "patches", "engine"].contains(&name.as_str())
        })
    }
}

impl Outcome {
    #[track_caller]
    fn ok(self) -> Self {
        assert!(self.success, "failed\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn fails(self) -> Self {
        assert!(
            !self.success,
            "succeeded\nstdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }

    #[track_caller]
    fn says(self, expected: &str) -> Self {
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

#[test]
fn setup_makes_engine_from_the_crates_and_the_series() {
    let project = Project::new();
    project
        .setup(&[])
        .ok()
        .says("engine/ is ready (engine 0.8.1, 2 patches)");
    assert!(project
        .read("root/engine/mistralrs-core/src/lib.rs")
        .contains("    111\n"));
    assert!(project
        .read("root/engine/mistralrs-core/src/lib.rs")
        .contains("    33\n"));
    assert_eq!(
        project.read("root/engine/mistralrs-quant/src/hook/mod.rs"),
        "//! hook\npub fn hook() {}\n"
    );
    assert_eq!(project.read("root/engine/mistralrs-core/src/other.rs"), "// other\r\n");
    for absent in [
        "mistralrs-quant/src/old.rs",
        "mistralrs-core/.cargo-ok",
        "mistralrs-core/Cargo.lock",
    ] {
        assert!(!project.path("root/engine").join(absent).exists(), "{absent}");
    }
    assert!(project.nothing_else_in_root());
}

#[test]
fn a_second_setup_touches_nothing_and_needs_no_source() {
    let project = Project::new();
    project.setup(&[]).ok();
    let past = project.age("root/engine");
    fs::remove_dir_all(project.path("source")).unwrap();
    project
        .setup(&[])
        .ok()
        .says("engine/ is up to date (engine 0.8.1, 2 patches)");
    assert_eq!(project.written_since("root/engine", past), Vec::<String>::new());
}

#[test]
fn a_changed_patch_replaces_only_the_files_it_changes() {
    let project = Project::new();
    project.setup(&[]).ok();
    let past = project.age("root/engine");
    project.write(
        "root/patches/0.8.1/0002-more.patch",
        &SECOND.replace("+    33", "+    333"),
    );
    project.setup(&[]).ok().says("1 files written");
    assert!(project
        .read("root/engine/mistralrs-core/src/lib.rs")
        .contains("    333\n"));
    assert_eq!(
        project.written_since("root/engine", past),
        [".tpq-setup", "mistralrs-core/src/lib.rs"]
    );
}

#[test]
fn a_patch_taken_out_of_the_series_takes_its_new_files_along() {
    let project = Project::new();
    project.setup(&[]).ok();
    for name in ["0001-eleven.patch", "0002-more.patch"] {
        fs::remove_file(project.path("root/patches/0.8.1").join(name)).unwrap();
    }
    project.setup(&[]).ok().says("0 patches");
    assert_eq!(project.read("root/engine/mistralrs-core/src/lib.rs"), LIB);
    assert!(
        !project.path("root/engine/mistralrs-quant/src/hook").exists(),
        "an empty folder stayed"
    );
    assert_eq!(
        project.read("root/engine/mistralrs-quant/src/old.rs"),
        "pub fn old() {}"
    );
}

#[test]
fn a_file_deleted_from_engine_is_put_back() {
    let project = Project::new();
    project.setup(&[]).ok();
    fs::remove_file(project.path("root/engine/mistralrs-core/src/other.rs")).unwrap();
    project.setup(&[]).ok().says("1 files written");
    assert_eq!(project.read("root/engine/mistralrs-core/src/other.rs"), "// other\r\n");
}

#[test]
fn files_edited_by_hand_are_named_and_kept_unless_forced() {
    let project = Project::new();
    project.setup(&[]).ok();
    project.write("root/engine/mistralrs-core/src/other.rs", "// mine\n");
    project.write("root/engine/mistralrs-core/src/added.rs", "// mine too\n");
    let said = |outcome: Outcome| {
        let outcome = outcome.says("2 files in engine/ were edited by hand");
        outcome
            .says("mistralrs-core/src/other.rs")
            .says("mistralrs-core/src/added.rs")
            .says("--force")
    };
    said(project.setup(&[]).fails());
    // The same when the series changed in the meantime.
    project.write(
        "root/patches/0.8.1/0002-more.patch",
        &SECOND.replace("+    33", "+    333"),
    );
    said(project.setup(&[]).fails());
    assert_eq!(project.read("root/engine/mistralrs-core/src/other.rs"), "// mine\n");
    project.setup(&["--force"]).ok();
    assert_eq!(project.read("root/engine/mistralrs-core/src/other.rs"), "// other\r\n");
    assert!(!project.path("root/engine/mistralrs-core/src/added.rs").exists());
}

#[test]
fn an_engine_of_unknown_origin_is_adopted_when_it_is_right_and_refused_when_not() {
    let project = Project::new();
    project.setup(&[]).ok();
    fs::remove_file(project.path("root/engine/.tpq-setup")).unwrap();
    let past = project.age("root/engine");
    project.setup(&[]).ok().says("0 files written");
    assert_eq!(project.written_since("root/engine", past), [".tpq-setup"]);
    fs::remove_file(project.path("root/engine/.tpq-setup")).unwrap();
    project.write("root/engine/mistralrs-core/src/lib.rs", "// mine\n");
    project.setup(&[]).fails().says("mistralrs-core/src/lib.rs");
}

#[test]
fn a_hunk_that_does_not_apply_names_patch_file_hunk_and_version_and_shows_the_lines() {
    let project = Project::new();
    project.setup(&[]).ok();
    let before = project.snapshot("root/engine");
    project.write("source/mistralrs-core/src/lib.rs", &LIB.replace("three()", "drei()"));
    project.write(
        "root/patches/0.8.1/0003-none.patch",
        &FIRST.replace("mistralrs-quant/src/hook", "mistralrs-quant/src/x"),
    );
    let outcome = project.setup(&[]).fails();
    let outcome =
        outcome.says("0002-more.patch: hunk 2 of 2 does not apply to mistralrs-core/src/lib.rs of engine 0.8.1");
    let outcome = outcome
        .says("@@ -11,3 +11,3 @@ pub fn two() -> u32 {")
        .says("expected:");
    let outcome = outcome.says("> pub fn three() -> u32 {").says("found at line 11:");
    outcome.says("> pub fn drei() -> u32 {");
    assert_eq!(project.snapshot("root/engine"), before);
    assert!(project.nothing_else_in_root());
}

#[test]
fn a_patch_for_a_missing_or_existing_file_says_so() {
    let project = Project::new();
    fs::remove_file(project.path("source/mistralrs-quant/src/old.rs")).unwrap();
    project
        .setup(&[])
        .fails()
        .says("0001-eleven.patch changes mistralrs-quant/src/old.rs, which engine 0.8.1 does not");
    assert!(!project.path("root/engine").exists());
    project.write("source/mistralrs-quant/src/old.rs", "pub fn old() {}");
    project.write("source/mistralrs-quant/src/hook/mod.rs", "");
    project
        .setup(&[])
        .fails()
        .says("0001-eleven.patch creates mistralrs-quant/src/hook/mod.rs, which engine 0.8.1 has");
}

#[test]
fn a_source_of_another_version_is_refused_with_both_versions() {
    let project = Project::new();
    project.engine_at("source", "version = \"0.9.2\"");
    project.setup(&[]).fails().says("is version 0.9.2, expected 0.8.1");
}

#[cfg(unix)]
#[test]
fn a_linked_engine_is_left_alone() {
    let project = Project::new();
    project.write("elsewhere/mistralrs-core/src/lib.rs", LIB);
    std::os::unix::fs::symlink(project.path("elsewhere"), project.path("root/engine")).unwrap();
    project.setup(&["--force"]).fails().says("engine is a symbolic link to");
    assert_eq!(project.read("elsewhere/mistralrs-core/src/lib.rs"), LIB);
}

#[test]
fn a_crate_the_root_manifest_does_not_redirect_is_pointed_out() {
    let project = Project::new();
    project.write(
        "root/Cargo.toml",
        "[patch.crates-io]\nmistralrs-core = { path = \"engine/mistralrs-core\" }\n",
    );
    project.setup(&[]).ok().says("would build mistralrs-quant unpatched");
}

#[test]
fn out_writes_the_crates_elsewhere_and_prints_what_to_paste() {
    let project = Project::new();
    let out = project.path("theirs/vendor");
    let outcome = project.setup(&["--out", out.to_str().unwrap()]).ok();
    let out = fs::canonicalize(out).unwrap();
    let lines = format!(
        "[patch.crates-io]\nmistralrs-core = {{ path = '{0}/mistralrs-core' }}\nmistralrs-quant = {{ path = '{0}/mistralrs-quant' }}\n",
        out.display()
    );
    outcome.says(&lines);
    assert!(project
        .read("theirs/vendor/mistralrs-core/src/lib.rs")
        .contains("    111\n"));
    assert!(!project.path("root/engine").exists());
}

#[test]
fn check_reports_without_writing() {
    let project = Project::new();
    project
        .setup(&["--check"])
        .ok()
        .says("2 apply, 0 already applied, 0 fail")
        .says("engine/ is not there yet");
    assert!(!project.path("root/engine").exists());
}

#[test]
fn a_checkout_is_patched_once_and_put_back_byte_for_byte() {
    let project = Project::new();
    project.checkout("0.8.1");
    let before = project.snapshot("checkout");
    project
        .patch_checkout(&["--check"])
        .ok()
        .says("applies          0001-eleven.patch")
        .says("2 apply");
    assert_eq!(project.snapshot("checkout"), before);
    project.patch_checkout(&[]).ok().says("3 files changed");
    assert!(project.read("checkout/mistralrs-core/src/lib.rs").contains("    111\n"));
    let patched = project.snapshot("checkout");
    project.patch_checkout(&[]).ok().says("has the whole series already");
    project
        .patch_checkout(&["--check"])
        .ok()
        .says("already applied  0002-more.patch")
        .says("0 apply, 2 already applied");
    assert_eq!(project.snapshot("checkout"), patched);
    project.patch_checkout(&["--reverse"]).ok().says("2 patches taken off");
    assert_eq!(project.snapshot("checkout"), before);
    assert!(!project.path("checkout/mistralrs-quant/src/hook").exists());
    project.patch_checkout(&["--reverse"]).ok().says("0 patches taken off");
}

#[test]
fn a_checkout_that_has_only_the_first_patch_gets_the_rest() {
    let project = Project::new();
    project.checkout("0.8.1");
    let second = project.path("root/patches/0.8.1/0002-more.patch");
    fs::remove_file(&second).unwrap();
    project.patch_checkout(&[]).ok();
    fs::write(second, SECOND).unwrap();
    project
        .patch_checkout(&[])
        .ok()
        .says("1 apply, 1 already applied, 0 fail")
        .says("1 file changed");
    assert!(project.read("checkout/mistralrs-core/src/lib.rs").contains("    33\n"));
}

#[test]
fn lines_that_moved_in_a_checkout_are_found_and_survive_the_way_back() {
    let project = Project::new();
    project.checkout("0.8.1");
    project.write(
        "checkout/mistralrs-core/src/lib.rs",
        &format!("{}{LIB}", "// above\n".repeat(40)),
    );
    let before = project.snapshot("checkout");
    project.patch_checkout(&[]).ok();
    project.patch_checkout(&["--reverse"]).ok();
    assert_eq!(project.snapshot("checkout"), before);
}

#[test]
fn a_checkout_where_one_patch_fails_is_not_touched_at_all() {
    let project = Project::new();
    project.checkout("0.8.1");
    project.write(
        "checkout/mistralrs-core/src/lib.rs",
        &LIB.replace("    3\n", "    30\n"),
    );
    let before = project.snapshot("checkout");
    for options in [&["--check"][..], &[]] {
        let outcome = project
            .patch_checkout(options)
            .fails()
            .says("FAILS            0002-more.patch");
        outcome
            .says("applies          0001-eleven.patch")
            .says("hunk 2 of 2 does not apply")
            .says(">     30");
    }
    assert_eq!(project.snapshot("checkout"), before);
}

#[test]
fn reversing_lines_that_were_edited_since_is_refused_and_changes_nothing() {
    let project = Project::new();
    project.checkout("0.8.1");
    project.patch_checkout(&[]).ok();
    let edited = project
        .read("checkout/mistralrs-core/src/lib.rs")
        .replace("    33\n", "    34\n");
    project.write("checkout/mistralrs-core/src/lib.rs", &edited);
    let before = project.snapshot("checkout");
    project
        .patch_checkout(&["--reverse"])
        .fails()
        .says("0002-more.patch: hunk 2 of 2 does not apply");
    assert_eq!(project.snapshot("checkout"), before);
}

#[test]
fn a_checkout_of_another_version_is_refused_with_both_versions() {
    let project = Project::new();
    project.checkout("0.9.2");
    project
        .patch_checkout(&[])
        .fails()
        .says("the checkout is 0.9.2, patches exist for 0.8.1");
    project.patch_checkout(&["--series", "0.8.1"]).ok();
}

#[test]
fn a_folder_that_is_no_checkout_is_named() {
    let project = Project::new();
    fs::create_dir(project.path("checkout")).unwrap();
    project
        .patch_checkout(&[])
        .fails()
        .says("is not a mistral.rs checkout: it has no mistralrs-core/Cargo.toml");
}

#[test]
fn an_unknown_series_names_those_there_are() {
    let project = Project::new();
    project
        .setup(&["--series", "0.7.0"])
        .fails()
        .says("no patch series for engine 0.7.0: patches exist for 0.8.1");
}
