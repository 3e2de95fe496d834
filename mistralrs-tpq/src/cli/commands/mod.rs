//! One file for each command.

pub mod inspect;
pub mod launch;
