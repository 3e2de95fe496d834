//! Zero-shot multiple choice, with the definitions of EleutherAI's lm-evaluation-harness (v0.4): the same prompts, the same
//! tokens of context and continuation, and the same measures, so that figures compare with published ones.
//!
//! A model chooses the answer to which it gives the highest log-likelihood after the context: `acc`; or the highest by character of the answer:
//! `acc_norm`. Where the context differs and the continuation is the same (WinoGrande), it chooses the context.

mod measure;
mod parquet;
mod read;
#[cfg(feature = "engine")]
mod run;
mod task;

pub use measure::{Choice, Measured, Paired};
pub use read::read;
#[cfg(feature = "engine")]
pub use run::TaskResult;
pub use task::{Item, Task, TaskError};
