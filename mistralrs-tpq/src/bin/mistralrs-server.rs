//! The server binary: see `mistralrs-server --help`.

use clap::Parser;

fn main() -> std::process::ExitCode {
    let args = mistralrs_tpq::serve::ServerArgs::parse();
    mistralrs_core::initialize_logging();
    let outcome = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(mistralrs_tpq::serve::run(args));
        // The engine's own threads do not end; nothing of theirs needs to be waited for.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
