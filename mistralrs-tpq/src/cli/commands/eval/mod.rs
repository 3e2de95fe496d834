//! `tpq eval`: what the exchange costs in quality, on the real engine.

mod show;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use clap::Args;

use super::group::{self, GroupArgs};
use crate::cli::args::Global;
use crate::cli::progress::Progress;
use crate::cli::{emit, CliError};
use crate::config::{CodecPlan, Control, Plan};
use crate::engine::{ModelOptions, Node};
use crate::eval::choice::{read, Task, TaskResult};
use crate::eval::{EvalResult, Journal, Session, TextOptions};
use crate::manifest::Digest;

/// Compare the configured exchange with the lossless one: perplexity, KL and agreement on texts, multiple choice, greedy text
///
/// Each window of a text, and each choice of a question, runs through the engine under tensor parallelism once lossless and once with each configuration.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpq eval --config tpq.yaml -n 2 -m examples/demo-model --text held-out.md
  tpq eval --config paper.yaml --also balanced.yaml -n 4 -m examples/demo-model --text held-out.md held-out.rs --matrix
  tpq eval --config balanced.yaml -n 8 -m MODEL --task arc_easy=test.parquet --task hellaswag=validation.parquet
  tpq eval -m examples/demo-model --text held-out.md     (one process: perplexity only)

With --json there is one object a line. For each configuration and text: config, codec, text, ranks, tokens, bits_per_value, ppl, ppl_lossless,
ppl_quantized, kl (nats a token), kl_stderr, kl_by_window, kl_by_position (sixteenths of the window), top1_agreement, sqnr_db, sqnr_db_by_layer,
bytes_per_rank, bytes_per_rank_bf16, out_of_bound, clipped, ranks_bit_identical, greedy (continuations, tokens, same_tokens,
same_to_the_end), seconds. For each configuration and task: config, codec, task, file, ranks, items, bits_per_value, acc, acc_stderr,
acc_norm, acc_norm_stderr, lossless (the same four), agreement, acc_retained and acc_norm_retained (percent of lossless),
difference_stderr, ranks_bit_identical.")]
pub struct EvalArgs {
    #[command(flatten)]
    group: GroupArgs,
    #[command(flatten)]
    model: ModelOptions,
    /// Compare this configuration's codec too, in the same run. Repeatable; only its `codec` section counts.
    ///
    /// Example: --config paper.yaml --also balanced.yaml dynamic.yaml
    #[arg(long, num_args = 1.., value_name = "FILE")]
    also: Vec<PathBuf>,
    /// Compare `paper`'s negative controls too: no outliers, random ones, those with the smallest range. With the manifest of
    /// --config. Where they do as well as `paper`, its choice of outliers is worth nothing on this model.
    #[arg(long)]
    controls: bool,
    /// Texts to evaluate on; held out from calibration, or the figures flatter.
    #[arg(long, num_args = 1.., value_name = "FILE", required_unless_present = "task")]
    text: Vec<PathBuf>,
    /// End with a table of KL by configuration and text. With one configuration for each domain calibrated on: what calibrating on another domain costs.
    #[arg(long, requires = "text")]
    matrix: bool,
    /// Tokens of a window; each window is scored on its own.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// Tokens to use of each text, in windows spread evenly over it.
    #[arg(long, value_name = "N", default_value_t = 16384, value_parser = clap::value_parser!(u32).range(2..))]
    max_tokens: u32,
    /// How long greedy text stays the same: continue the first 64 tokens of this many windows by up to 128.
    #[arg(long, value_name = "N", default_value_t = 0)]
    greedy: u32,
    /// Zero-shot multiple choice, as the lm-evaluation-harness defines it: arc_easy, arc_challenge, winogrande, hellaswag or boolq, and a
    /// file of its rows as Hugging Face publishes them (parquet or JSON lines). Repeatable. Example: --task boolq=validation.parquet
    #[arg(long, value_name = "TASK=FILE", value_parser = task)]
    task: Vec<(Task, PathBuf)>,
    /// Items of each task, from its start [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Questions start with the tokenizer's own beginning of text, as the harness has it for Gemma.
    #[arg(long)]
    special_tokens: bool,
    /// Keep the rows of each finished text and task in this file, and take those that are already there: an interrupted run with the same arguments goes on where it was.
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Also write a page with the results and plots: one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Also write all logits of the text, as safetensors: lossless.0000, configured.0000, ... of [tokens, vocabulary] f32.
    #[arg(long, value_name = "FILE")]
    dump_logits: Option<PathBuf>,
}

pub(crate) fn run(args: &EvalArgs, global: &Global) -> Result<u8, CliError> {
    if args.dump_logits.is_some() && args.text.len() != 1 {
        return Err(CliError::Usage("--dump-logits writes those of one --text".to_owned()));
    }
    if let Some(code) = args.group.launch(global)? {
        return Ok(code);
    }
    // One process compares nothing, so a configuration is not needed.
    let node = if args.group.alone() {
        None
    } else {
        let mut plan = args.group.plan()?;
        plan.alternatives = alternatives(args, &plan)?;
        crate::engine::install_plan(plan)?
    };
    let outcome = evaluate(args, node.as_ref()).and_then(check);
    let (texts, tasks) = match &node {
        Some(node) => group::end(node, outcome)?,
        None => outcome?,
    };
    if let Some(path) = &args.html {
        let page = crate::eval::page(&texts, &tasks)?;
        std::fs::write(path, page).map_err(|error| CliError::io("cannot write the page of --html", error))?;
    }
    if global.json {
        texts.iter().try_for_each(json_line)?;
        return tasks.iter().try_for_each(json_line).map(|()| 0);
    }
    texts.iter().try_for_each(|result| emit(&show::text(result)))?;
    if args.controls {
        emit(&show::controls(&texts))?;
    }
    if args.matrix {
        emit(&show::matrix(&texts))?;
    }
    if !tasks.is_empty() {
        emit(&show::tasks(&tasks))?;
    }
    Ok(0)
}

/// Rows of texts and of tasks.
type Rows = (Vec<EvalResult>, Vec<TaskResult>);

fn evaluate(args: &EvalArgs, node: Option<&Arc<Node>>) -> Result<Rows> {
    // Before minutes of loading: a file of another data set is an error at once.
    let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
    let read = |(task, path): &(Task, PathBuf)| read(*task, path, limit);
    let items = args.task.iter().map(read).collect::<Result<Vec<_>>>()?;
    let mut session = Session::load(&args.model, node)?;
    let options = TextOptions {
        window: args.window as usize,
        max_tokens: args.max_tokens as usize,
        dump_logits: args.dump_logits.clone(),
        greedy: args.greedy as usize,
    };
    let mut journal = match &args.resume {
        Some(path) => Journal::open(path)?,
        None => Journal::default(),
    };
    let mut texts = Vec::new();
    for path in &args.text {
        let mut progress = Progress::new("windows");
        let key = session.key(&args.key(path, &format!("text {options:?}"))?);
        let set = |done, total| progress.set(done, total);
        texts.extend(journal.rows(&key, || session.text(path, &options, set))?);
    }
    let mut tasks = Vec::new();
    for ((task, path), items) in args.task.iter().zip(&items) {
        let mut progress = Progress::new(task.name());
        let key = session.key(&args.key(path, &format!("{} {limit} {}", task.name(), args.special_tokens))?);
        let set = |done, total| progress.set(done, total);
        tasks.extend(journal.rows(&key, || session.task(*task, path, items, args.special_tokens, set))?);
    }
    Ok((texts, tasks))
}

impl EvalArgs {
    /// What the rows of `path` follow from, besides what the ranks compare.
    fn key(&self, path: &Path, what: &str) -> Result<String> {
        let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config = self.group.config.as_deref().unwrap_or(Path::new(""));
        let model = &self.model;
        Ok(format!(
            "{what} {} {} {model:?} {}",
            path.display(),
            Digest::of(&content),
            config.display()
        ))
    }
}

fn json_line(row: &impl serde::Serialize) -> Result<(), CliError> {
    emit(&(serde_json::to_string(row).map_err(anyhow::Error::from)? + "\n"))
}

fn task(text: &str) -> Result<(Task, PathBuf), String> {
    let names = Task::ALL.map(Task::name).join(", ");
    let (name, path) = text
        .split_once('=')
        .ok_or_else(|| format!("expected TASK=FILE, with a task of {names}"))?;
    let task = Task::from_name(name).ok_or_else(|| format!("there is no task `{name}`: {names}"))?;
    Ok((task, path.into()))
}

fn alternatives(args: &EvalArgs, plan: &Plan) -> Result<Vec<(String, CodecPlan)>, CliError> {
    let mut alternatives = Vec::new();
    for path in &args.also {
        alternatives.push((path.display().to_string(), Plan::load(path)?.codec));
    }
    if args.controls {
        let manifest = plan
            .codec
            .manifest()
            .context("--controls needs a manifest: name a configuration of kind paper or rd with --config")?;
        alternatives.extend(Control::ALL.map(|control| {
            let manifest = manifest.to_owned();
            (control.label(), CodecPlan::Control { manifest, control })
        }));
    }
    Ok(alternatives)
}

/// Figures of ranks that disagree, or of a codec outside its own bound, mean nothing.
fn check(rows: Rows) -> Result<Rows> {
    let (texts, tasks) = &rows;
    let identical = texts.iter().map(|row| row.ranks_bit_identical);
    ensure!(
        identical
            .chain(tasks.iter().map(|row| row.ranks_bit_identical))
            .all(|identical| identical),
        "the ranks computed different logits: this is a defect, please report it"
    );
    let outside: u64 = texts.iter().map(|row| row.out_of_bound).sum();
    ensure!(
        outside == 0,
        "{outside} values are farther from their dequantized copy than the codec allows: this is a defect, please report it"
    );
    Ok(rows)
}
