//! The `tpq` command: the only module that prints and that chooses exit codes.
//!
//! Exit codes: 0 done, 2 wrong usage, configuration or manifest (change something and try again), 1 anything else.
//! `tpq launch` passes on the exit code of the rank that failed first.

pub mod args;
pub mod commands;
mod error;
mod progress;

pub use error::CliError;

use args::{Cli, Command, Global};
use clap::Parser;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Runs the command in `std::env::args`.
pub fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    start_log(global.verbose);
    match dispatch(command, &global) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report(&error, &global);
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(command: Command, global: &Global) -> Result<u8, CliError> {
    match command {
        Command::Bench(args) => commands::bench::run(&args, global),
        #[cfg(feature = "engine")]
        Command::Calibrate(args) => commands::calibrate::run(&args, global),
        Command::Doctor(args) => commands::doctor::run(&args, global),
        #[cfg(feature = "engine")]
        Command::Eval(args) => commands::eval::run(&args, global),
        Command::Inspect(args) => commands::inspect::run(&args, global).map(|()| 0),
        Command::Launch(args) => commands::launch::run(&args, global),
        Command::MakeModel(args) => commands::make_model::run(&args, global).map(|()| 0),
        Command::Simulate(args) => commands::simulate::run(&args, global),
        Command::Rank(args) => Err(commands::launch::become_rank(&args)),
        Command::Guard => Ok(commands::launch::guard_ranks()),
    }
}

fn start_log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // An embedder's subscriber, set first, stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}

fn report(error: &CliError, global: &Global) {
    let line = if global.json {
        serde_json::json!({ "error": error.to_string(), "exit_code": error.exit_code() }).to_string()
    } else {
        format!("tpq: {error}")
    };
    // Nobody left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes a command's result to stdout. A reader that left early, as in `tpq inspect m.yaml | head`, is not an error.
pub(crate) fn emit(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::io("cannot write to stdout", error)),
        _ => Ok(()),
    }
}

/// As [`emit`], as indented JSON with a final newline.
pub(crate) fn emit_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| CliError::Failed(error.into()))?;
    emit(&(text + "\n"))
}
