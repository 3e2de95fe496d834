//! `engine/` from the published crates.

use std::fs;

use crate::project::{Outcome, Project, FIRST, LIB, SECOND};

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
fn an_unknown_series_names_those_there_are() {
    let project = Project::new();
    project
        .setup(&["--series", "0.7.0"])
        .fails()
        .says("no patch series for engine 0.7.0: patches exist for 0.8.1");
}
