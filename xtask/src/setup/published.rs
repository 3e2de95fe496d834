//! Where the unpatched crates come from: the registry, through cargo, or a folder of the user's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, ensure, Context, Result};

use super::overlay::Base;
use crate::workspace::{read_toml, Workspace};

/// Lets cargo fetch the crates and verify their checksums, and says where it unpacked them. All their dependencies come
/// along, which the build needs anyway: the project's Cargo.lock keeps the versions the same.
pub fn fetch(workspace: &Workspace, version: &str, crates: &BTreeSet<String>) -> Result<Base> {
    // Inside the project, so that a registry mirror in its .cargo/config.toml holds here too.
    let scratch = tempfile::Builder::new()
        .prefix(".tpq-fetch-")
        .suffix(".tmp")
        .tempdir_in(workspace.root())?;
    let folder = scratch.path();
    fs::create_dir(folder.join("src"))?;
    fs::write(folder.join("src/lib.rs"), "")?;
    fs::write(folder.join("Cargo.toml"), scratch_manifest(version, crates))?;
    let lock = workspace.root().join("Cargo.lock");
    if lock.is_file() {
        fs::copy(&lock, folder.join("Cargo.lock"))?;
    }
    let mut command = workspace.cargo();
    command
        .current_dir(folder)
        .args(["metadata", "--format-version", "1"])
        .stderr(Stdio::inherit());
    if let Some(host) = host_target() {
        command.args(["--filter-platform", &host]);
    }
    let output = command.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "cargo could not fetch {} {version}, see above",
        join(crates)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata output")?;
    let (mut base, programs) = locate(&metadata, version, crates)?;
    if !programs.is_empty() {
        let mut command = workspace.cargo();
        command.current_dir(folder).arg("fetch");
        if let Some(host) = host_target() {
            command.args(["--target", &host]);
        }
        let status = command.status();
        ensure!(
            status.context("cannot run cargo")?.success(),
            "cargo could not fetch {} {version}, see above",
            join(&programs)
        );
        let found = in_folder(&beside(&base)?, version, &programs)?;
        base.crates.extend(found.crates);
    }
    Ok(base)
}

/// The folder that cargo unpacked the crates into.
fn beside(base: &Base) -> Result<PathBuf> {
    let folder = base.crates.values().next().and_then(|folder| folder.parent());
    Ok(folder.context("no crate was fetched")?.to_owned())
}

/// `folder/NAME-VERSION` or `folder/NAME` for each crate.
pub fn in_folder(folder: &Path, version: &str, crates: &BTreeSet<String>) -> Result<Base> {
    let mut found = BTreeMap::new();
    for name in crates {
        let candidates = [folder.join(format!("{name}-{version}")), folder.join(name)];
        let Some(path) = candidates.iter().find(|path| path.join("Cargo.toml").is_file()) else {
            bail!(
                "{} holds neither {name}-{version}/Cargo.toml nor {name}/Cargo.toml",
                folder.display()
            );
        };
        let manifest = read_toml(&path.join("Cargo.toml"))?;
        let got = manifest
            .get("package")
            .and_then(|package| package.get("version")?.as_str());
        ensure!(
            got == Some(version),
            "{} is version {}, expected {version}",
            path.display(),
            got.unwrap_or("unknown")
        );
        found.insert(name.clone(), path.clone());
    }
    Ok(Base {
        version: version.to_owned(),
        crates: found,
    })
}

fn scratch_manifest(version: &str, crates: &BTreeSet<String>) -> String {
    let mut text = String::from("[package]\nname = \"tpq-fetch\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n");
    text.push_str("[workspace]\n\n[dependencies]\n");
    for name in crates {
        text.push_str(&format!(
            "{name} = {{ version = \"={version}\", default-features = false }}\n"
        ));
    }
    text
}

/// The libraries, and the names of the others: `cargo metadata` leaves a crate without a library out, though cargo
/// fetches it and verifies its checksum as any other.
fn locate(metadata: &serde_json::Value, version: &str, crates: &BTreeSet<String>) -> Result<(Base, BTreeSet<String>)> {
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let mut found = BTreeMap::new();
    let mut programs = BTreeSet::new();
    for name in crates {
        let package = packages
            .iter()
            .find(|package| package["name"] == **name && package["version"] == *version);
        let manifest = package.and_then(|package| package["manifest_path"].as_str());
        let Some(manifest) = manifest.map(PathBuf::from) else {
            programs.insert(name.clone());
            continue;
        };
        let folder = manifest.parent().context("a manifest without a folder")?;
        found.insert(name.clone(), folder.to_owned());
    }
    let base = Base {
        version: version.to_owned(),
        crates: found,
    };
    Ok((base, programs))
}

/// Restricts the download to this platform's dependencies; without rustc's answer all are fetched.
fn host_target() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
}

pub fn join(crates: &BTreeSet<String>) -> String {
    crates.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_library_is_found_by_name_and_version_and_a_program_is_told_apart() {
        let metadata = json!({"packages": [
            {"name": "a", "version": "0.9.0", "manifest_path": "/registry/a-0.9.0/Cargo.toml"},
            {"name": "a", "version": "0.8.1", "manifest_path": "/registry/a-0.8.1/Cargo.toml"},
        ]});
        let crates = BTreeSet::from(["a".to_owned(), "program".to_owned()]);
        let (base, programs) = locate(&metadata, "0.8.1", &crates).unwrap();
        assert_eq!(base.crates["a"], Path::new("/registry/a-0.8.1"));
        assert_eq!(programs, BTreeSet::from(["program".to_owned()]));
        assert_eq!(beside(&base).unwrap(), Path::new("/registry"));
        assert!(locate(&metadata, "0.7.0", &crates).unwrap().0.crates.is_empty());
    }
}
