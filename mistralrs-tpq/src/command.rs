//! What rank 0 asks of the other ranks outside the engine's own steps, and what they answer. Without the engine, so that it can be
//! fuzzed.

use std::collections::BTreeMap;

use anyhow::{bail, ensure, Result};
use serde::{Deserialize, Serialize};

use crate::calibrate::RangeObserver;
use crate::monitor::{DriftCommand, DriftReply};

/// Sent by rank 0 on the step channel, so that it takes effect between two steps on every rank.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Use this entry of the node's codec choices from the next exchange on.
    Select(usize),
    /// Exchange all other layers without a codec; `None`: no longer.
    Only(Option<String>),
    /// Feed partial sums to the observers (calibration).
    Observe(bool),
    /// Keep partial sums from now on; `false`: write them to the file that this rank was started with.
    Record(bool),
    /// A calibration sequence ended: fold its ranges into the moving averages.
    EndSequence,
    /// Compare each encoded partial sum with its dequantized copy, and add up the error.
    Verify(bool),
    /// Meet before each exchange on the processor, so that its times have no wait for a late rank in them.
    Meet(bool),
    /// Answer with the state of one layer's observer. One at a time, because all of a large model do not fit into a message.
    GatherLayer(String),
    /// Answer with the counters of one codec choice, and with the digest of the logits once `logits` raw-logit
    /// responses have been seen.
    GatherReport { choice: usize, logits: usize },
    /// Replace these observers' state: sent to each rank with its own, to resume a calibration.
    RestoreLayers(LayerState),
    /// Set the counters of the report to zero.
    ResetReport,
    /// What the ranks do about drift.
    Drift(DriftCommand),
    /// The group ends in good order.
    Shutdown,
}

impl Command {
    /// From a peer's bytes, whose length the transport has limited.
    ///
    /// # Errors
    /// Anything but the JSON of a command.
    pub fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// Whether a step may exchange otherwise after it than before.
    #[cfg(all(feature = "engine", feature = "cuda"))]
    pub(crate) fn changes_exchanges(&self) -> bool {
        match self {
            Self::Select(_)
            | Self::Only(_)
            | Self::Observe(_)
            | Self::Record(_)
            | Self::Verify(_)
            | Self::Meet(_)
            | Self::Drift(_)
            | Self::Shutdown => true,
            Self::EndSequence
            | Self::GatherLayer(_)
            | Self::GatherReport { .. }
            | Self::RestoreLayers(_)
            | Self::ResetReport => false,
        }
    }
}

/// One rank's calibration state, by layer name.
pub type LayerState = BTreeMap<String, RangeObserver>;

/// An answer to rank 0.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Layers(LayerState),
    Report(Box<RankReport>),
    Drift(DriftReply),
}

/// What one rank counted since the last reset, under one codec choice.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RankReport {
    pub rank: usize,
    /// SHA-256 over all raw logits of all choices, in request order.
    pub logits_digest: String,
    pub exchanges: u64,
    /// Values (tokens times features) that this rank put into exchanges.
    pub values: u64,
    /// Payload bits over values: the codec's bits, without frame headers.
    pub payload_bits: u64,
    /// Bytes that this rank wrote to its data links, headers included.
    pub bytes_sent: u64,
    /// Bytes that the same exchanges would have sent as an unquantized two-shot all-reduce in BF16.
    pub bytes_sent_bf16: u64,
    pub clipped: u64,
    pub nonfinite: u64,
    pub encode_ns: u64,
    pub wire_ns: u64,
    pub decode_ns: u64,
    /// Only while verifying, per layer.
    pub layers: BTreeMap<String, LayerError>,
}

/// Error of one rank's own partial sums at one layer.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct LayerError {
    pub values: u64,
    pub signal_energy: f64,
    pub error_energy: f64,
    /// Values farther from their dequantized copy than the codec's analytic bound.
    pub out_of_bound: u64,
}

impl LayerError {
    /// Signal-to-quantization-noise ratio in dB; infinite when there is no error.
    pub fn sqnr_db(&self) -> f64 {
        10.0 * (self.signal_energy / self.error_energy).log10()
    }
}

/// Reports of each rank.
///
/// # Errors
/// A rank that answered with something else.
pub fn gathered_reports(replies: Vec<Reply>) -> Result<Vec<RankReport>> {
    let report = |reply| match reply {
        Reply::Report(report) => Ok(*report),
        _ => bail!("a rank answered with something else than its report"),
    };
    replies.into_iter().map(report).collect()
}

/// Layers of each rank, checked to be the same set: `[rank][layer]`.
///
/// # Errors
/// A rank whose layers differ from rank 0's.
pub fn gathered_layers(replies: Vec<Reply>) -> Result<Vec<BTreeMap<String, crate::calibrate::RangeObserver>>> {
    let mut ranks: Vec<LayerState> = Vec::with_capacity(replies.len());
    for (rank, reply) in replies.into_iter().enumerate() {
        let Reply::Layers(layers) = reply else {
            bail!("rank {rank} answered something else than its layers")
        };
        if let Some(first) = ranks.first() {
            ensure!(
                first.keys().eq(layers.keys()),
                "rank {rank} observed other layers than rank 0"
            );
        }
        ranks.push(layers);
    }
    Ok(ranks)
}
