//! What the exchange costs in quality, on the real engine: lossless against configured, window by window.

#[cfg(feature = "engine")]
mod run;
mod score;
mod windows;

pub use score::{Comparison, WindowScore};
pub use windows::windows;

#[cfg(feature = "engine")]
pub use run::{run, EvalOptions, EvalResult};
