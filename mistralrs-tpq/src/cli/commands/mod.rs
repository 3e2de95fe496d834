//! One file for each command.

pub mod bench;
#[cfg(feature = "engine")]
pub mod calibrate;
#[cfg(feature = "engine")]
pub mod eval;
#[cfg(feature = "engine")]
mod group;
pub mod inspect;
pub mod launch;
pub mod make_model;
