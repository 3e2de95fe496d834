//! `cargo xtask install`: the programs into a folder on the path, by `cargo install`, which can also remove them again.

use std::process::{Command, ExitCode};

use anyhow::{ensure, Context, Result};

use crate::args::InstallArgs;
use crate::setup;
use crate::steps::Steps;
use crate::workspace::Workspace;

/// Folder of a package and its programs.
const PACKAGES: [(&str, &str); 2] = [
    ("mistralrs-tpq", "tpq, mistralrs-server"),
    ("mistralrs-cli", "mistralrs"),
];

/// # Errors
/// An engine that cannot be set up, or what `cargo install` says.
pub fn run(workspace: &Workspace, options: &InstallArgs) -> Result<ExitCode> {
    let mut steps = Steps::new(1 + PACKAGES.len());
    steps.loud("engine", || Ok(((), setup::ensure(workspace)?)))?;
    for (package, programs) in PACKAGES {
        steps.loud(&format!("install {package}"), || {
            let mut cargo = command(workspace, package, options);
            let status = cargo.status().context("cannot run cargo install")?;
            ensure!(status.success(), "cargo install failed, see above");
            Ok(((), programs.to_owned()))
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn command(workspace: &Workspace, package: &str, options: &InstallArgs) -> Command {
    let mut cargo = workspace.cargo();
    // Without --locked, cargo install would choose the newest versions of all dependencies and compile the engine anew.
    cargo.args(["install", "--locked", "--path", package]);
    if let Some(root) = &options.root {
        cargo.arg("--root").arg(root);
    }
    if options.force {
        cargo.arg("--force");
    }
    let features = features(package, &options.features);
    if !features.is_empty() {
        cargo.args(["--features", &features.join(",")]);
    }
    cargo
}

/// Features are those of mistralrs-tpq: the other package passes them on to it.
fn features(package: &str, wanted: &[String]) -> Vec<String> {
    let named = |feature: &String| match package {
        "mistralrs-tpq" => feature.clone(),
        _ if feature.contains('/') => feature.clone(),
        _ => format!("mistralrs-tpq/{feature}"),
    };
    wanted.iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn each_package_is_installed_locked_into_the_wanted_folder_with_the_wanted_features() {
        let options = InstallArgs {
            root: Some(PathBuf::from("/opt/tpq")),
            features: vec!["engine".into(), "mistralrs-core/mkl".into()],
            force: false,
        };
        let words = |package| -> Vec<String> {
            let command = command(&Workspace::at("/project"), package, &options);
            command
                .get_args()
                .map(|word| word.to_string_lossy().into_owned())
                .collect()
        };
        let expected = |package: &str, features: &str| {
            let line = format!("install --locked --path {package} --root /opt/tpq --features {features}");
            line.split(' ').map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            words("mistralrs-tpq"),
            expected("mistralrs-tpq", "engine,mistralrs-core/mkl")
        );
        assert_eq!(
            words("mistralrs-cli"),
            expected("mistralrs-cli", "mistralrs-tpq/engine,mistralrs-core/mkl")
        );
    }
}
