//! Command line of `cargo xtask`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Project commands of mistralrs-tpq"
)]
pub struct Args {
    /// Project folder to work on instead of the one xtask was built in
    #[arg(long, global = true, hide = true, value_name = "DIR")]
    pub project: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make engine/ from the published mistral.rs crates and this project's patches, or patch a checkout
    Setup(SetupArgs),
    /// Set up the engine and build target/release/{tpq,mistralrs-server}
    Build,
    /// Set up the engine and install tpq, mistralrs-server and mistralrs with `cargo install`
    Install(InstallArgs),
    /// Build, then calibrate, evaluate and serve the demo model on local ranks; ends by itself
    Demo(DemoArgs),
    /// Run the tests: the fast ones without the engine first, then everything
    Test(TestArgs),
    /// Show what a patch series does on a checkout of an engine that is not published: apply, take off, compile, test
    EngineCheck(EngineCheckArgs),
    /// Compile the CUDA kernels for sm_80, sm_86, sm_89 and sm_90 without a GPU; report registers and spills
    CudaCheck,
    /// Validate the Kubernetes manifests and the compose file of examples/multi-host against their schemas
    ManifestCheck,
    /// Format, lints, docs, tests and the demo: what must pass before a change lands
    Ci,
}

#[derive(Debug, Default, clap::Args)]
pub struct SetupArgs {
    /// Patch this mistral.rs checkout in place instead of making engine/
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "source"])]
    pub engine_dir: Option<PathBuf>,

    /// Change nothing; say for each patch whether it applies, is already applied, or fails (exit code 1)
    #[arg(long)]
    pub check: bool,

    /// Take the series off the checkout again; the files become byte for byte what they were
    #[arg(long, requires = "engine_dir", conflicts_with = "check")]
    pub reverse: bool,

    /// Write the patched crates here for another project, and print its [patch.crates-io] lines
    #[arg(long, value_name = "DIR", conflicts_with = "check")]
    pub out: Option<PathBuf>,

    /// Engine version whose series is used [default: the version mistralrs-tpq depends on; with --engine-dir the
    /// checkout's own]
    #[arg(long, value_name = "VERSION")]
    pub series: Option<String>,

    /// Folder with the unpatched crates (DIR/mistralrs-core or DIR/mistralrs-core-0.8.1), for instance from
    /// `cargo vendor --versioned-dirs`; without it cargo fetches them
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,

    /// Overwrite files in engine/ that were edited by hand
    #[arg(long, conflicts_with = "engine_dir")]
    pub force: bool,
}

#[derive(Debug, Default, clap::Args)]
pub struct InstallArgs {
    /// Install into DIR/bin instead of cargo's own folder; example: --root /usr/local
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// Features of mistralrs-tpq, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub features: Vec<String>,

    /// Replace programs of the same name that another `cargo install` put there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, clap::Args)]
pub struct EngineCheckArgs {
    /// Unpatched mistral.rs checkout, such as one of the git tag v0.9.2; it is only read
    #[arg(value_name = "CHECKOUT")]
    pub checkout: PathBuf,

    /// Compile nothing (seconds instead of half an hour)
    #[arg(long)]
    pub series_only: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Number of local ranks (processes) the demo model is split over
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=8))]
    pub ranks: u32,

    /// Print one JSON object as the last line of stdout instead of the table
    #[arg(long)]
    pub json: bool,

    /// Codec to calibrate and show
    #[arg(long, value_name = "NAME", default_value = "paper")]
    pub codec: String,

    /// Keep configuration, manifest, corpus and logs in this folder
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

#[derive(Debug, Default, clap::Args)]
pub struct TestArgs {
    /// Only the tests that build without the engine (about a minute instead of several)
    #[arg(long)]
    pub quick: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{error::ErrorKind, CommandFactory};

    fn parse(words: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("xtask").chain(words.split_whitespace()))
    }

    #[test]
    fn the_command_line_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn demo_runs_two_ranks_with_the_papers_codec_unless_told_otherwise() {
        let Command::Demo(demo) = parse("demo").unwrap().command else {
            panic!("not demo")
        };
        assert_eq!(
            (demo.ranks, demo.codec.as_str(), demo.json, demo.keep),
            (2, "paper", false, None)
        );
    }

    #[test]
    fn demo_refuses_a_single_rank_since_nothing_would_be_exchanged() {
        assert_eq!(parse("demo --ranks 1").unwrap_err().kind(), ErrorKind::ValueValidation);
    }

    #[test]
    fn reverse_needs_a_checkout() {
        assert_eq!(
            parse("setup --reverse").unwrap_err().kind(),
            ErrorKind::MissingRequiredArgument
        );
        assert!(parse("setup --reverse --engine-dir x").is_ok());
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        for line in [
            "setup --engine-dir x --reverse --check",
            "setup --engine-dir x --out y",
            "setup --engine-dir x --force",
            "setup --out y --check",
        ] {
            assert_eq!(parse(line).unwrap_err().kind(), ErrorKind::ArgumentConflict, "{line}");
        }
    }
}
