//! Tensor-parallel all-reduce at about 4.2 bits a value, as a plugin for mistral.rs.
#![deny(unsafe_code)]
pub mod codec;
pub mod wire;
pub mod transport;
pub mod exchange;
pub mod config;
pub mod manifest;
pub mod checkpoint;
