//! Sweeps over sizes, algorithms and codecs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::inputs::{self, Tensor, PERIOD};
use super::quantile;
use crate::codec::{Codec, CodecKind, Dtype, Dynamic};
use crate::exchange::{Algorithm, Communicator, ExchangeConfig, GatherBits, Site};
use crate::transport::{Patience, Transport};

/// One measurement: `tokens` rows of `features` elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub tokens: usize,
    pub features: usize,
    pub dtype: Dtype,
    pub codec: CodecKind,
    pub algorithm: Algorithm,
    pub gather_bits: GatherBits,
}

/// What rank 0 knows of a case once all ranks have run it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub ranks: usize,
    pub tokens: usize,
    pub features: usize,
    pub dtype: String,
    pub codec: String,
    pub algorithm: String,
    /// Of the rank that sends most, headers included.
    pub bytes_sent_per_rank: u64,
    /// The same in bits, by element of the message.
    pub bits_per_value: f64,
    /// Of the slowest rank.
    pub us_median: f64,
    pub us_p99: f64,
    /// Bytes of the raw message by the median time, in Gbit/s.
    pub algbw_gbps: f64,
    /// `algbw * 2 (N-1) / N`: what a link would carry if nothing were compressed, as nccl-tests counts it.
    pub busbw_gbps: f64,
    /// Elements outside the codec's bound or, for raw values, other than the exact sum; and all elements of a rank whose
    /// bits differ from rank 0's.
    pub wrong: u64,
}

/// How long and how often each case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    pub per_case: Duration,
    pub least: u32,
    pub most: u32,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            per_case: Duration::from_millis(300),
            least: 5,
            most: 2000,
        }
    }
}

/// What one rank reports to rank 0.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) us_median: f64,
    pub(super) us_p99: f64,
    pub(super) bytes_sent: u64,
    pub(super) wrong: u64,
    pub(super) digest: [u8; 32],
}

const PATIENCE: Duration = Duration::from_secs(120);

/// Runs `case` on this rank; every rank of the group must call it alike. The row on rank 0, `None` elsewhere.
///
/// # Errors
/// A failed exchange, or a codec that cannot be made without a model.
pub fn run(transport: &Arc<dyn Transport>, case: Case, base: ExchangeConfig, effort: Effort) -> Result<Option<Row>> {
    let (rank, ranks) = (transport.rank(), transport.world_size());
    let codec = codec(case, ranks)?;
    let communicator = Communicator::new(Arc::clone(transport), config(case, base));
    let site = site();
    let input = input(case, rank);
    let mut output = input.clone();
    let mut bytes_sent = 0;
    let mut once = || -> Result<f64> {
        let start = Instant::now();
        let stats = communicator.all_reduce(&site, &*codec, input.values(), output.values_mut())?;
        bytes_sent = stats.bytes_sent;
        Ok(start.elapsed().as_secs_f64())
    };
    let (us_median, us_p99) = time(transport, effort, &mut once)?;
    let report = Report {
        us_median,
        us_p99,
        bytes_sent,
        wrong: count_wrong(case, ranks, &*codec, &output),
        digest: Sha256::digest(output.bytes()).into(),
    };
    gather(transport, case, report)
}

pub(super) fn codec(case: Case, ranks: usize) -> Result<Box<dyn Codec>> {
    inputs::codec(case.codec, ranks, case.features)
        .with_context(|| format!("codec {} needs a calibrated model", case.codec.name()))
}

pub(super) fn config(case: Case, base: ExchangeConfig) -> ExchangeConfig {
    ExchangeConfig {
        algorithm: case.algorithm,
        gather_bits: case.gather_bits,
        ..base
    }
}

pub(super) fn site() -> Site {
    Site {
        id: 0,
        name: "bench".into(),
    }
}

/// This rank's partial sum.
pub(super) fn input(case: Case, rank: usize) -> Tensor {
    let own = inputs::rows(rank, case.tokens, case.features, case.dtype);
    Tensor::repeat(case.dtype, &own, case.tokens * case.features)
}

/// Median and 99th percentile of `once`, which says how many seconds it took, in microseconds.
pub(super) fn time(
    transport: &Arc<dyn Transport>,
    effort: Effort,
    once: &mut dyn FnMut() -> Result<f64>,
) -> Result<(f64, f64)> {
    once()?;
    let estimate = once()?.min(once()?);
    let times = repetitions(transport, estimate, effort)?;
    let mut seconds = (0..times).map(|_| once()).collect::<Result<Vec<f64>>>()?;
    Ok((quantile(&mut seconds, 0.5) * 1e6, quantile(&mut seconds, 0.99) * 1e6))
}

/// Rank 0 decides how often a case runs, as the others cannot know how long it took there.
fn repetitions(transport: &Arc<dyn Transport>, estimate: f64, effort: Effort) -> Result<u32> {
    if transport.rank() == 0 {
        let wanted = effort.per_case.as_secs_f64() / estimate.max(1e-9);
        let times = (wanted as u32).clamp(effort.least, effort.most);
        for peer in 1..transport.world_size() {
            transport.send_message(peer, &times.to_le_bytes())?;
        }
        return Ok(times);
    }
    let message = transport.recv_message(0, Patience::Total(PATIENCE))?;
    match message.try_into() {
        Ok(bytes) => Ok(u32::from_le_bytes(bytes)),
        Err(message) => bail!("rank 0 sent {} bytes for a count", message.len()),
    }
}

pub(super) fn gather(transport: &Arc<dyn Transport>, case: Case, own: Report) -> Result<Option<Row>> {
    let ranks = transport.world_size();
    if transport.rank() > 0 {
        transport.send_message(0, &serde_json::to_vec(&own)?)?;
        return Ok(None);
    }
    let len = (case.tokens * case.features) as u64;
    let mut total = own;
    for peer in 1..ranks {
        let message = transport.recv_message(peer, Patience::Total(PATIENCE))?;
        let report: Report = serde_json::from_slice(&message)?;
        total.us_median = total.us_median.max(report.us_median);
        total.us_p99 = total.us_p99.max(report.us_p99);
        total.bytes_sent = total.bytes_sent.max(report.bytes_sent);
        total.wrong += if report.digest == total.digest {
            report.wrong
        } else {
            len
        };
    }
    let algbw = len as f64 * case.dtype.size() as f64 * 8.0 / (total.us_median * 1e3);
    Ok(Some(Row {
        ranks,
        tokens: case.tokens,
        features: case.features,
        dtype: case.dtype.name().to_owned(),
        codec: case.codec.name().to_owned(),
        algorithm: case.algorithm.name().to_owned(),
        bytes_sent_per_rank: total.bytes_sent,
        bits_per_value: total.bytes_sent as f64 * 8.0 / len.max(1) as f64,
        us_median: total.us_median,
        us_p99: total.us_p99,
        algbw_gbps: algbw,
        busbw_gbps: algbw * 2.0 * (ranks as f64 - 1.0) / ranks as f64,
        wrong: total.wrong,
    }))
}

/// Elements of `output` that no correct exchange of the known inputs gives.
fn count_wrong(case: Case, ranks: usize, codec: &dyn Codec, output: &Tensor) -> u64 {
    let rows = case.tokens.min(PERIOD);
    let raw = case.codec == CodecKind::None || case.algorithm == Algorithm::Lossless;
    let len = rows * case.features;
    let [mut sum, mut magnitude, mut bound] = [const { Vec::new() }; 3].map(|mut v: Vec<f32>| {
        v.resize(len, 0.0);
        v
    });
    let mut of_row = vec![0.0; case.features];
    for rank in 0..ranks {
        let own = inputs::rows(rank, case.tokens, case.features, case.dtype);
        sum.iter_mut().zip(&own).for_each(|(sum, x)| *sum += x);
        magnitude.iter_mut().zip(&own).for_each(|(all, x)| *all += x.abs());
        for (row, bound) in own.chunks(case.features).zip(bound.chunks_mut(case.features)) {
            codec.error_bound(rank, row, &mut of_row);
            bound.iter_mut().zip(&of_row).for_each(|(all, one)| *all += one);
        }
    }
    if !raw {
        add_second_stage(case, ranks, &magnitude, &mut bound);
    }
    let exact = Tensor::repeat(case.dtype, &sum, len);
    let wrong = |i: usize| {
        let (got, at) = (output.at(i), i % len);
        let error = (got - sum[at]).abs();
        // Half a unit in the last place of the output's dtype, and f32 sums in another order.
        let rounding = sum[at].abs() / 128.0 + bound[at] / 128.0;
        if raw {
            got != exact.at(at)
        } else {
            error > bound[at] + rounding
        }
    };
    (0..case.tokens * case.features).filter(|i| wrong(*i)).count() as u64
}

/// Widens `bound` by one more quantization for each one that the algorithm may have. `magnitude` is the sum of the
/// magnitudes, which no sum of some of the ranks exceeds.
fn add_second_stage(case: Case, ranks: usize, magnitude: &[f32], bound: &mut [f32]) {
    let quantizations = match case.algorithm {
        Algorithm::OneShot => 1,
        Algorithm::TwoShot => 2,
        _ => ranks,
    };
    let mut of_row = vec![0.0; case.features];
    for (magnitude, bound) in magnitude.chunks(case.features).zip(bound.chunks_mut(case.features)) {
        for _ in 1..quantizations {
            let largest: Vec<f32> = magnitude.iter().zip(&*bound).map(|(x, bound)| x + bound).collect();
            match case.gather_bits {
                // A ring encodes sums on their way in four bits whatever the second stage has.
                GatherBits::Eight if case.algorithm != Algorithm::Ring => {
                    Dynamic::wide(case.features).error_bound(0, &largest, &mut of_row);
                }
                _ => Dynamic::new(case.features).error_bound(0, &largest, &mut of_row),
            }
            // A value close to the extreme with the opposite sign is a whole step off, not half of one.
            bound.iter_mut().zip(&of_row).for_each(|(all, one)| *all += 2.0 * one);
        }
    }
}
