//! `cargo xtask engine-check CHECKOUT`: what can be shown of a series for an engine that is no published crate.
//!
//! The series applies and comes off again byte for byte; what it makes is compiled, with candle from crates.io in place of the
//! git revision that the engine names; the patches' own tests run, and those of this crate about serving. The checkout is
//! only read. What is compiled lies in `target/engine-check/`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{ensure, Context, Result};

use crate::args::EngineCheckArgs;
use crate::cuda_check::types;
use crate::setup::checkout;
use crate::setup::overlay::{Base, Changes};
use crate::setup::plan;
use crate::setup::series::Series;
use crate::setup::tree::{self, Digests, Record, Tree};
use crate::steps::Steps;
use crate::workspace::Workspace;

/// Needs Python to build.
const LEFT_OUT: &str = "mistralrs-pyo3";
/// Published candle that has what engine 0.9.2 uses of it.
const CANDLE: &str = "0.11.1";
/// File, what stands there, what has to: candle 0.11.1 has another lock and another cudarc than the git revision.
const FOR_CANDLE: [(&str, &str, &str); 2] = [
    (
        "mistralrs-quant/src/rotary/mod.rs",
        "(std::sync::RwLockReadGuard<'a, Storage>, &'a Layout)",
        "(impl std::ops::Deref<Target = Storage>, &'a Layout)",
    ),
    (
        "mistralrs-core/src/pipeline/cuda_graph.rs",
        "FLAG_AUTO_FREE_ON_LAUNCH as u64",
        "FLAG_AUTO_FREE_ON_LAUNCH.0 as u64",
    ),
];

/// What is run in the patched engine, cheapest first. The `ring` feature is for the tests of the ring's own patches.
const IN_ENGINE: [&[&str]; 4] = [
    &[
        "test",
        "-p",
        "mistralrs-quant",
        "--features",
        "ring",
        "--test",
        "ring",
        "--test",
        "all_reduce_provider",
        "--test",
        "cpu_product",
    ],
    &[
        "test",
        "-p",
        "mistralrs-core",
        "--lib",
        "--test",
        "all_reduce_provider",
        "--",
        "scheduler::",
        "prefix_cacher::",
        "a_provider",
    ],
    &[
        "test",
        "-p",
        "mistralrs-tpq",
        "--test",
        "engine",
        "--",
        "--test-threads",
        "1",
        "serving::",
        "recovery::",
    ],
    &["build", "-p", "mistralrs-cli"],
];
/// What is there for GPUs only: types, with a stand-in for nvcc.
const FOR_CUDA: [&str; 7] = [
    "check",
    "-p",
    "mistralrs-tpq",
    "--features",
    "cuda,nccl",
    "--lib",
    "--bins",
];
/// What the tests of mistralrs-tpq read beside its folder, and those of mistralrs-core in its checkout.
const BESIDE: [&str; 3] = ["configs", "docs", "examples"];
const BESIDE_CORE: &str = "toml-selectors";

/// # Errors
/// A patch that does not apply or does not come off whole, and what does not compile.
pub fn run(workspace: &Workspace, options: &EngineCheckArgs) -> Result<ExitCode> {
    let version = checkout::version(&options.checkout)?;
    let series = checkout::series(&workspace.patches(), &version, None)?;
    let base = Base::in_folder(&version, &options.checkout, &crates(&options.checkout)?);
    let mut steps = Steps::new(if options.series_only { 2 } else { 3 + IN_ENGINE.len() });
    let scratch = tempfile::tempdir()?;
    let patched = scratch.path().join(&version);
    let mut changes = steps.quiet("apply", || {
        let changes = plan::apply_all(&base, &series)?;
        let detail = format!("{} patches change {} files", series.patches.len(), changes.len());
        write(&base, &series, changes.clone(), &patched)?;
        Ok((changes, detail))
    })?;
    steps.quiet("take off again", || Ok(((), reversed(&base, &series, &patched)?)))?;
    if options.series_only {
        return Ok(ExitCode::SUCCESS);
    }

    let target = workspace.root().join("target/engine-check");
    let engine = target.join(&version);
    for (path, from, to) in FOR_CANDLE {
        let text = match changes.get(path) {
            Some(text) => text.clone().context("the series removes it")?,
            None => fs::read_to_string(options.checkout.join(path)).with_context(|| format!("cannot read {path}"))?,
        };
        changes.insert(path.to_owned(), Some(text.replace(from, to)));
    }
    write(&base, &series, changes, &engine)?;
    let manifest = fs::read_to_string(options.checkout.join("Cargo.toml"))?;
    put(&engine.join("Cargo.toml"), &manifest_for_check(&manifest))?;
    let lock = engine.join("Cargo.lock");
    if !lock.exists() {
        fs::copy(options.checkout.join("Cargo.lock"), &lock).context("cannot copy the checkout's Cargo.lock")?;
    }
    add_plugin(workspace, &version, &engine)?;
    let checkout = fs::canonicalize(&options.checkout)?;
    link_to(&checkout.join(BESIDE_CORE), &engine.join(BESIDE_CORE))?;
    for words in IN_ENGINE {
        cargo(&mut steps, words, command(workspace, &engine, words, "build"))?;
    }
    // What the stand-in made must not be taken for kernels by a build.
    let mut check = command(workspace, &engine, &FOR_CUDA, "cuda-types");
    types::use_stand_in(&mut check, scratch.path())?;
    cargo(&mut steps, &FOR_CUDA, check)?;
    Ok(ExitCode::SUCCESS)
}

/// The engine's crates in a checkout.
fn crates(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_crate = |name: &String| {
        name.starts_with("mistralrs") && name != LEFT_OUT && folder.join(name).join("Cargo.toml").is_file()
    };
    Ok(names.filter(is_crate).collect())
}

/// Replaces only what differs, so that a second check compiles only what changed.
fn write(base: &Base, series: &Series, changes: Changes, folder: &Path) -> Result<()> {
    let tree = Tree::read(base, changes)?;
    let crates: BTreeSet<String> = base.crates.keys().cloned().collect();
    let on_disk = match folder.exists() {
        true => tree::digests_on_disk(folder, &crates)?,
        false => Digests::new(),
    };
    let record = Record::new(&base.version, series.digest(), crates, tree.digests());
    tree.sync(folder, &on_disk, &record)?;
    Ok(())
}

fn reversed(base: &Base, series: &Series, engine: &Path) -> Result<String> {
    let patched = Base::in_folder(&base.version, engine, &base.crates.keys().cloned().collect());
    let (taken_off, changes) = plan::reverse(&patched, series)?;
    ensure!(
        taken_off.len() == series.patches.len(),
        "only {} of {} patches come off",
        taken_off.len(),
        series.patches.len()
    );
    let (before, after) = (
        Tree::read(base, Changes::new())?.digests(),
        Tree::read(&patched, changes)?.digests(),
    );
    let differ: Vec<_> = before
        .iter()
        .filter(|(path, digest)| after.get(*path) != Some(digest))
        .collect();
    ensure!(
        differ.is_empty() && before.len() == after.len(),
        "not the same bytes as before: {} files differ, {} files instead of {}; first {:?}",
        differ.len(),
        after.len(),
        before.len(),
        differ.first()
    );
    Ok(format!("{} files byte for byte as before", before.len()))
}

/// The engine's workspace manifest without candle's git revision and the member that needs Python, and with this crate.
fn manifest_for_check(manifest: &str) -> String {
    let lines = manifest
        .lines()
        .filter(|line| !line.contains(&format!("\"{LEFT_OUT}\"")));
    let published = |line: &str| match line.split_once(" = { git = ") {
        Some((name, rest)) if name.starts_with("candle-") && rest.contains("candle.git") => {
            format!("{name} = \"{CANDLE}\"")
        }
        _ if line == "members = [" => format!("{line}\n    \"mistralrs-tpq\","),
        _ => line.to_owned(),
    };
    let mut text: String = lines.map(|line| published(line) + "\n").collect();
    text.push_str("\n[patch.crates-io]\n");
    for name in ["mistralrs-core", "mistralrs-quant", "mistralrs-server-core"] {
        text.push_str(&format!("{name} = {{ path = \"{name}\" }}\n"));
    }
    text
}

/// mistralrs-tpq as one more member of the engine's workspace: the sources are links, the manifest names the other version.
fn add_plugin(workspace: &Workspace, version: &str, engine: &Path) -> Result<()> {
    let (own, folder) = (workspace.root().join("mistralrs-tpq"), engine.join("mistralrs-tpq"));
    let wanted = workspace.engine_version()?;
    let manifest = fs::read_to_string(own.join("Cargo.toml"))?;
    let manifest = manifest.lines().map(|line| match line.starts_with("candle-core = ") {
        true => format!("candle-core = {{ version = \"{CANDLE}\", optional = true }}\n"),
        false => line.replace(&format!("\"={wanted}\""), &format!("\"={version}\"")) + "\n",
    });
    put(&folder.join("Cargo.toml"), &manifest.collect::<String>())?;
    for entry in fs::read_dir(&own)? {
        let entry = entry?;
        if entry.file_name() != "Cargo.toml" {
            link_to(&entry.path(), &folder.join(entry.file_name()))?;
        }
    }
    BESIDE
        .iter()
        .try_for_each(|name| link_to(&workspace.root().join(name), &engine.join(name)))
}

#[cfg(unix)]
fn link_to(original: &Path, link: &Path) -> Result<()> {
    if link.exists() {
        return Ok(());
    }
    std::os::unix::fs::symlink(original, link).with_context(|| format!("cannot make {}", link.display()))
}

#[cfg(not(unix))]
fn link_to(_: &Path, link: &Path) -> Result<()> {
    anyhow::bail!(
        "cannot make {}: the plugin is checked where there are symbolic links",
        link.display()
    )
}

/// Leaves a file alone that is right already: cargo goes by modification times.
fn put(path: &Path, text: &str) -> Result<()> {
    match fs::read_to_string(path) {
        Ok(before) if before == text => Ok(()),
        _ => tree::replace(path, text.as_bytes()),
    }
}

/// `cargo WORDS` in the patched engine; what it makes lies in `folder` of the check's.
fn command(workspace: &Workspace, engine: &Path, words: &[&str], folder: &str) -> Command {
    let mut cargo = workspace.cargo();
    cargo.current_dir(engine).args(words);
    // The engine's own development profile is as slow to build as a release.
    cargo.envs([
        ("CARGO_PROFILE_DEV_OPT_LEVEL", "1"),
        ("CARGO_PROFILE_DEV_DEBUG", "false"),
    ]);
    let target = workspace.root().join("target/engine-check").join(folder);
    cargo.env("CARGO_TARGET_DIR", target);
    cargo
}

fn cargo(steps: &mut Steps, words: &[&str], mut command: Command) -> Result<()> {
    steps.loud(&format!("cargo {}", words.join(" ")), || {
        let status = command.status().context("cannot run cargo")?;
        ensure!(status.success(), "cargo failed, see above");
        Ok(((), "ok"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candle_comes_from_the_registry_this_crate_is_added_and_python_left_out() {
        let manifest = "members = [\n    \"mistralrs-core\",\n    \"mistralrs-pyo3\",\n]\n\
            # candle-core = { version = \"0.11.0\" }\n\
            candle-core = { git = \"https://github.com/huggingface/candle.git\", version = \"0.11.0\", rev = \"35d7\" }\n\
            half = \"2.7\"\n";
        let expected = "members = [\n    \"mistralrs-tpq\",\n    \"mistralrs-core\",\n]\n\
            # candle-core = { version = \"0.11.0\" }\n\
            candle-core = \"0.11.1\"\nhalf = \"2.7\"\n\n\
            [patch.crates-io]\nmistralrs-core = { path = \"mistralrs-core\" }\n";
        let made = manifest_for_check(manifest);
        assert!(made.starts_with(expected), "{made}");
        let table: toml::Table = made.replace("members", "[workspace]\nmembers").parse().unwrap();
        assert!(table["patch"]["crates-io"]["mistralrs-server-core"].is_table());
    }
}
