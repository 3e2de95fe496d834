//! What commands print: aligned tables for people and SVG plots. JSON needs no module: every report type serializes.

pub mod html;
pub mod plot;
pub mod prometheus;
mod table;

pub use table::{Align, Table};
