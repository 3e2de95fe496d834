use std::process::ExitCode;

use clap::Parser;
use xtask::args::{Args, Command};
use xtask::workspace::Workspace;
use xtask::{build, checks, cuda_check, demo, engine_check, install, manifest_check, setup};

fn main() -> ExitCode {
    let args = Args::parse();
    let workspace = match args.project {
        Some(root) => Workspace::at(root),
        None => Workspace::of_this_project(),
    };
    let result = match &args.command {
        Command::Setup(options) => setup::run(&workspace, options),
        Command::Build => build::run(&workspace),
        Command::Install(options) => install::run(&workspace, options),
        Command::Demo(options) => demo::run(&workspace, options),
        Command::Test(options) => checks::test(&workspace, options),
        Command::EngineCheck(options) => engine_check::run(&workspace, options),
        Command::CudaCheck => cuda_check::run(&workspace),
        Command::ManifestCheck => manifest_check::run(&workspace),
        Command::Ci => checks::ci(&workspace),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
