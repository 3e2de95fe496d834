//! Tensor-parallel all-reduce at about 4.2 bits a value, as a plugin for mistral.rs.
#![deny(unsafe_code)]
pub mod calibrate;
pub mod cli;
pub mod codec;
pub mod config;
pub mod exchange;
pub mod manifest;
pub mod report;
pub mod transport;
pub mod wire;
