//! `tpq`: everything around serving. The server itself is `mistralrs-server`.

fn main() -> std::process::ExitCode {
    mistralrs_tpq::cli::main()
}
