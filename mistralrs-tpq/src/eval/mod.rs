//! What the exchange costs in quality, on the real engine: lossless against configured, window by window.

mod score;
#[cfg(feature = "engine")]
mod run;

pub use score::{Comparison, WindowScore};

#[cfg(feature = "engine")]
pub use run::{run, EvalOptions, EvalResult};
