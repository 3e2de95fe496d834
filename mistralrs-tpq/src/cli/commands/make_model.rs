//! `tpq make-model`: a checkpoint with random weights.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};

use crate::checkpoint::{Architecture, CheckpointError, CheckpointSpec, Experts, Written};
use crate::cli::args::Global;
use crate::cli::{emit, emit_json, CliError};
use crate::codec::Dtype;

/// Write a loadable checkpoint with random weights, of a known or a given shape
///
/// For measuring exchanges at a real model's shapes, and for trying out a deployment, without a download. The model writes noise.
/// The same arguments give the same bytes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq make-model --preset llama-2-7b-4l --out /tmp/llama
  tpq make-model --preset tiny-gemma2 --seed 1 --outliers 2 --out /tmp/gemma
  tpq make-model --architecture llama --hidden 512 --intermediate 1536 --layers 4 --heads 8 --out /tmp/small

Presets; append -<N>l for N layers:
  tiny-llama tiny-gemma2 tiny-nemo tiny-qwen3 tiny-mixtral tiny-6-heads (F32, about a megabyte)
  llama-2-7b llama-2-13b llama-2-70b llama-3-8b gemma-2-2b gemma-2-9b gemma-2-27b mistral-7b mistral-nemo-12b
  qwen3-0.6b qwen3-8b mixtral-8x7b (BF16, as large as the originals)")]
pub struct MakeModelArgs {
    /// Folder to write; must not exist, or be empty
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,
    /// Start from a known shape; the options below change it
    #[arg(short, long, value_name = "NAME")]
    pub preset: Option<String>,
    /// llama, gemma2, mistral, qwen3 or mixtral
    #[arg(long, value_name = "NAME", value_parser = architecture, required_unless_present = "preset", conflicts_with = "preset")]
    pub architecture: Option<Architecture>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", required_unless_present = "preset")]
    pub hidden: Option<usize>,
    /// Width of the MLP, of one expert in mixtral
    #[arg(long, value_name = "N", required_unless_present = "preset")]
    pub intermediate: Option<usize>,
    /// Number of layers
    #[arg(long, value_name = "N", required_unless_present = "preset")]
    pub layers: Option<usize>,
    /// Attention heads
    #[arg(long, value_name = "N", required_unless_present = "preset")]
    pub heads: Option<usize>,
    /// Key and value heads [default: as many as --heads]
    #[arg(long, value_name = "N")]
    pub kv_heads: Option<usize>,
    /// Width of a head; not for llama and mixtral [default: hidden / heads]
    #[arg(long, value_name = "N")]
    pub head_dim: Option<usize>,
    /// Vocabulary size, at least 258 without --tokenizer [default: 512]
    #[arg(long, value_name = "N")]
    pub vocab: Option<usize>,
    /// Experts of a mixtral [default: 8]
    #[arg(long, value_name = "N")]
    pub experts: Option<usize>,
    /// Experts that a token visits [default: 2]
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Longest sequence, in tokens [default: 4096]
    #[arg(long, value_name = "TOKENS")]
    pub max_position: Option<usize>,
    /// Use the embedding as output matrix: true or false [default: false; gemma2: true]
    #[arg(long, value_name = "BOOL")]
    pub tie_embeddings: Option<bool>,
    /// Type of the weights: f32, bf16 or f16 [default: the preset's; else bf16]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub dtype: Option<Dtype>,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Residual features to make 20 times larger, so that a codec has outliers to find
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub outliers: usize,
    /// tokenizer.json to copy, with the tokenizer_config.json beside it [default: a byte-level one is made]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
}

/// Without a preset, before the options.
const DEFAULT_VOCAB: usize = 512;
const DEFAULT_MAX_POSITION: usize = 4096;
const DEFAULT_EXPERTS: Experts = Experts { count: 8, top_k: 2 };

pub fn run(args: &MakeModelArgs, global: &Global) -> Result<(), CliError> {
    let spec = spec(args).map_err(failed)?;
    let parameters = spec.parameters().map_err(failed)?;
    // Hidden by indicatif where stderr is not a terminal.
    let bar = ProgressBar::new(parameters).with_style(style());
    let started = Instant::now();
    let interrupted = watch_signals()?;
    let outcome = spec.write_with_progress(&args.out, |done, _| {
        bar.set_position(done);
        match interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    bar.finish_and_clear();
    let written = outcome.map_err(failed)?;
    if global.json {
        return emit_json(&written);
    }
    emit(&summary(&spec, &written, started.elapsed().as_secs_f64()))
}

/// Ctrl-C must not leave gigabytes in a hidden folder.
fn watch_signals() -> Result<Arc<AtomicBool>, CliError> {
    let watched: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // Blocked here, before the thread starts, so that the thread alone gets them.
    watched
        .thread_block()
        .map_err(|error| CliError::io("cannot block signals", error.into()))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    std::thread::spawn(move || {
        if watched.wait().is_ok() {
            flag.store(true, Ordering::Relaxed);
        }
    });
    Ok(interrupted)
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:40} {percent}% of {human_len} parameters, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn failed(error: CheckpointError) -> CliError {
    match error.is_usage() {
        true => CliError::Usage(error.to_string()),
        false => CliError::Failed(error.into()),
    }
}

fn spec(args: &MakeModelArgs) -> Result<CheckpointSpec, CheckpointError> {
    let base = match &args.preset {
        Some(name) => CheckpointSpec::preset(name)?,
        None => blank(
            args.architecture.unwrap_or(Architecture::Llama),
            args.heads.unwrap_or(0),
        ),
    };
    let experts = match (base.experts, args.experts, args.top_k) {
        (None, None, None) => None,
        (base, count, top_k) => {
            let base = base.unwrap_or(DEFAULT_EXPERTS);
            Some(Experts {
                count: count.unwrap_or(base.count),
                top_k: top_k.unwrap_or(base.top_k),
            })
        }
    };
    Ok(CheckpointSpec {
        hidden: args.hidden.unwrap_or(base.hidden),
        intermediate: args.intermediate.unwrap_or(base.intermediate),
        layers: args.layers.unwrap_or(base.layers),
        heads: args.heads.unwrap_or(base.heads),
        kv_heads: args.kv_heads.unwrap_or(base.kv_heads),
        head_dim: args.head_dim.or(base.head_dim),
        vocab: args.vocab.unwrap_or(base.vocab),
        experts,
        dtype: args.dtype.unwrap_or(base.dtype),
        seed: args.seed,
        tie_embeddings: args.tie_embeddings.unwrap_or(base.tie_embeddings),
        max_position: args.max_position.unwrap_or(base.max_position),
        outliers: args.outliers,
        tokenizer: args.tokenizer.clone(),
        ..base
    })
}

/// What clap has made sure to be overridden is zero here, which no shape may be.
fn blank(architecture: Architecture, heads: usize) -> CheckpointSpec {
    CheckpointSpec {
        architecture,
        hidden: 0,
        intermediate: 0,
        layers: 0,
        heads,
        kv_heads: heads,
        head_dim: None,
        vocab: DEFAULT_VOCAB,
        experts: (architecture == Architecture::Mixtral).then_some(DEFAULT_EXPERTS),
        dtype: Dtype::Bf16,
        seed: 0,
        tie_embeddings: architecture == Architecture::Gemma2,
        max_position: DEFAULT_MAX_POSITION,
        rope_theta: architecture.rope_theta(),
        outliers: 0,
        tokenizer: None,
    }
}

fn summary(spec: &CheckpointSpec, written: &Written, seconds: f64) -> String {
    let mut text = format!(
        "{}: {} with random weights, {} parameters in {}, {} of {}, {seconds:.1} s\n",
        written.dir.display(),
        spec.architecture.name(),
        count(written.parameters),
        spec.dtype.name(),
        match written.weight_files.len() {
            1 => "1 file".to_owned(),
            files => format!("{files} files"),
        },
        megabytes(written.weight_bytes),
    );
    if spec.outliers > 0 {
        let features: Vec<String> = spec.outlier_features().iter().map(ToString::to_string).collect();
        text.push_str(&format!("outlier features: {}\n", features.join(", ")));
    }
    text
}

/// `6.74 G`, `5.3 M`, `412 k`.
fn count(parameters: u64) -> String {
    let parameters = parameters as f64;
    match parameters {
        1e9.. => format!("{:.2} G", parameters / 1e9),
        1e6.. => format!("{:.1} M", parameters / 1e6),
        _ => format!("{:.0} k", parameters / 1e3),
    }
}

fn megabytes(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.2} GB", bytes as f64 / 1e9),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

fn architecture(text: &str) -> Result<Architecture, String> {
    Architecture::from_name(text).ok_or_else(|| {
        format!(
            "expected one of {}",
            Architecture::ALL.map(Architecture::name).join(", ")
        )
    })
}

fn dtype(text: &str) -> Result<Dtype, String> {
    [Dtype::F32, Dtype::Bf16, Dtype::F16]
        .into_iter()
        .find(|dtype| dtype.name() == text)
        .ok_or_else(|| "expected f32, bf16 or f16".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::PRESETS;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: MakeModelArgs,
    }

    fn parse(line: &str) -> Result<CheckpointSpec, String> {
        let words = ["make-model", "--out", "x"].into_iter().chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        spec(&cli.args)
            .and_then(|spec| spec.validate().map(|()| spec))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_help_lists_every_preset() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        for preset in PRESETS {
            assert!(help.contains(preset.name), "{}", preset.name);
        }
    }

    #[test]
    fn options_change_a_preset() {
        let spec = parse("--preset llama-2-7b --layers 3 --dtype f16 --seed 5 --outliers 4").unwrap();
        let base = CheckpointSpec::preset("llama-2-7b").unwrap();
        assert_eq!(
            spec,
            CheckpointSpec {
                layers: 3,
                dtype: Dtype::F16,
                seed: 5,
                outliers: 4,
                ..base
            }
        );
        let spec = parse("--preset tiny-mixtral --experts 6").unwrap();
        assert_eq!(spec.experts, Some(Experts { count: 6, top_k: 2 }));
    }

    #[test]
    fn a_shape_without_a_preset_needs_its_sizes_and_defaults_the_rest() {
        let spec = parse("--architecture gemma2 --hidden 64 --intermediate 128 --layers 2 --heads 4").unwrap();
        assert_eq!(
            (spec.kv_heads, spec.vocab, spec.tie_embeddings, spec.dtype),
            (4, 512, true, Dtype::Bf16)
        );
        assert!(parse("--architecture llama --hidden 64 --layers 2 --heads 4")
            .unwrap_err()
            .contains("--intermediate"));
        assert!(parse("").unwrap_err().contains("--architecture"));
    }

    #[test]
    fn misuse_is_refused_by_the_key() {
        assert!(parse("--preset llama-7b").unwrap_err().contains("llama-2-7b"));
        assert!(parse("--preset tiny-llama --experts 2")
            .unwrap_err()
            .contains("num_local_experts"));
        assert!(parse("--preset tiny-llama --dtype int8")
            .unwrap_err()
            .contains("expected f32, bf16 or f16"));
        assert!(parse("--preset tiny-llama --architecture qwen3")
            .unwrap_err()
            .contains("cannot be used with"));
    }

    #[test]
    fn the_summary_says_what_was_written() {
        let spec = CheckpointSpec {
            outliers: 2,
            ..CheckpointSpec::preset("tiny-llama").unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let written = spec.write(&folder.path().join("m")).unwrap();
        let text = summary(&spec, &written, 0.25);
        assert!(
            text.contains("llama with random weights") && text.contains("1 file of 1.4 MB, 0.2 s"),
            "{text}"
        );
        assert!(text.contains("outlier features: "), "{text}");
        assert_eq!(
            (count(6_738_415_616), count(5_300_000), count(412_000)),
            ("6.74 G".into(), "5.3 M".into(), "412 k".into())
        );
    }
}
