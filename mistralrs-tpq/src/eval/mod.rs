//! What the exchange costs in quality, on the real engine: lossless against configured, window by window and question by question.

pub mod choice;
#[cfg(feature = "engine")]
mod greedy;
mod journal;
#[cfg(feature = "engine")]
mod page;
#[cfg(feature = "engine")]
mod run;
mod score;
#[cfg(feature = "engine")]
mod session;
mod windows;

pub use journal::Journal;
pub use score::{paired_difference, Comparison, WindowScore};
pub use windows::windows;

#[cfg(feature = "engine")]
pub use greedy::Greedy;
#[cfg(feature = "engine")]
pub use page::page;
#[cfg(feature = "engine")]
pub use run::{EvalResult, TextOptions};
#[cfg(feature = "engine")]
pub use session::Session;
#[cfg(feature = "engine")]
pub(crate) use session::{read_text, windows_of};
