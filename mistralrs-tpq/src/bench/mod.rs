//! Measurements in the style of nccl-tests: what an exchange takes for each size, algorithm and codec, with every result
//! checked, and what that says about the link.
//!
//! Every rank of a group runs [`exchange::run`] with the same cases; rank 0 gets the rows.

pub mod codec;
#[cfg(feature = "cuda")]
pub mod device_exchange;
#[cfg(feature = "engine")]
pub mod engine;
pub mod exchange;
pub mod inputs;
pub mod table;

pub use exchange::{Case, Row};

/// The value at `share` of sorted `values`; zero when there are none.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len().saturating_sub(1) as f64 * share).round() as usize;
    values.get(at).copied().unwrap_or(0.0)
}
