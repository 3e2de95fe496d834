//! `tpq bench`: how fast the exchange, the codecs and a model are here.

mod codec;
#[cfg(feature = "engine")]
mod engine;
mod exchange;
#[cfg(feature = "cuda")]
mod kernels;

use clap::{Args, Subcommand};

use crate::cli::args::Global;
use crate::cli::CliError;
use crate::codec::Dtype;

/// Measure codecs, exchanges and models on this machine and its links
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Debug, Subcommand)]
pub enum What {
    Exchange(exchange::ExchangeArgs),
    Codec(codec::CodecArgs),
    #[cfg(feature = "engine")]
    Engine(Box<engine::EngineArgs>),
}

pub fn run(args: &BenchArgs, global: &Global) -> Result<u8, CliError> {
    match &args.what {
        What::Exchange(args) => exchange::run(args, global),
        What::Codec(args) => codec::run(args, global),
        #[cfg(feature = "engine")]
        What::Engine(args) => engine::run(args, global),
    }
}

fn dtype(name: &str) -> Result<Dtype, CliError> {
    let dtypes = [Dtype::F32, Dtype::Bf16, Dtype::F16];
    let found = dtypes.into_iter().find(|dtype| dtype.name() == name);
    found.ok_or_else(|| CliError::Usage(format!("there is no dtype `{name}`: f32, bf16 or f16")))
}

/// Of a build without the feature.
#[cfg(not(feature = "cuda"))]
fn without_cuda() -> CliError {
    CliError::Usage("this build has no CUDA: build with `--features cuda`, or `cuda,nccl`".to_owned())
}
