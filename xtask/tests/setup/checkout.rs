//! `--engine-dir`: a checkout of one's own, patched in place and put back.

use std::fs;

use crate::project::{Project, LIB, SECOND};

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
