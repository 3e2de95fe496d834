//! One file for each command.

pub mod bench;
#[cfg(feature = "engine")]
pub mod calibrate;
pub mod doctor;
#[cfg(feature = "engine")]
pub mod eval;
mod group;
pub mod inspect;
pub mod launch;
pub mod make_model;
pub mod simulate;
