//! The GPU's kernels: time against a copy of as many bytes, time of one token under a graph, and every bit against the
//! processor.

#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use bytemuck::Zeroable;
use cudarc::driver::sys::CUevent_flags;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::args::{Call, Header, Status, HEADER_LEN};
use super::memory::Buffer;
use super::{CudaError, Device, Launch, SiteTables};
use crate::bench::inputs::{self, Tensor};
use crate::bench::quantile;
use crate::codec::{Codec, CodecKind, Dtype};

/// One kernel of one codec on one shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelRow {
    pub gpu: String,
    pub kernel: String,
    pub tokens: usize,
    pub features: usize,
    /// Payloads that are added up.
    pub ranks: usize,
    /// Read and written.
    pub bytes: u64,
    /// Of one launch under a graph.
    pub us_median: f64,
    pub us_min: f64,
    pub us_max: f64,
    pub gb_s: f64,
    /// A copy of half as many bytes, which moves as many.
    pub copy_gb_s: f64,
    pub vs_copy: f64,
    /// Payload bytes or elements other than the processor's.
    pub wrong: u64,
}

/// What is measured: an encode, and a decode of `ranks` payloads.
#[derive(Debug, Clone, Copy)]
pub struct KernelCase {
    pub codec: CodecKind,
    pub dtype: Dtype,
    pub tokens: usize,
    pub features: usize,
    pub ranks: usize,
}

/// Launches in one graph: the time of one is then far above the resolution of an event.
const LAUNCHES: usize = 20;
const REPEATS: usize = 25;
/// What launches go round, so that no cache of a GPU (50 MiB) holds what the next one reads.
const FOOTPRINT: usize = 384 << 20;
/// Elements that are compared with the processor's.
const COMPARED: usize = 1 << 22;
const DEADLINE: Duration = Duration::from_secs(60);

/// # Errors
/// A codec without kernels, and what the driver reports.
pub fn run(device: &Device, case: KernelCase) -> Result<Vec<KernelRow>> {
    let codec = inputs::codec(case.codec, case.ranks, case.features)
        .with_context(|| format!("codec {} needs a calibrated model", case.codec.name()))?;
    let bench = Bench::new(device, case, codec)?;
    Ok(vec![bench.encode()?, bench.decode()?])
}

struct Bench<'a> {
    device: &'a Device,
    case: KernelCase,
    codec: Box<dyn Codec>,
    tables: SiteTables,
    status: Buffer,
    gpu: String,
}

impl<'a> Bench<'a> {
    fn new(device: &'a Device, case: KernelCase, codec: Box<dyn Codec>) -> Result<Self> {
        let tables = SiteTables::new(device, &*codec)?;
        let tables = tables.with_context(|| format!("codec {} has no kernels", codec.name()))?;
        Ok(Self {
            device,
            case,
            codec,
            tables,
            status: Buffer::zeroed(device, size_of::<Status>())?,
            gpu: device.context().name()?,
        })
    }

    fn encode(&self) -> Result<KernelRow> {
        let KernelCase {
            dtype,
            tokens,
            features,
            ..
        } = self.case;
        let len = tokens * features;
        let payload_len = self.codec.payload_len(tokens, dtype);
        let input = hostile(dtype, len, 1);
        let values = Buffer::of(self.device, &repeated(input.bytes(), len * dtype.size()))?;
        let rounds = rounds(len * dtype.size() + payload_len);
        let sources = copies(self.device, &values, rounds)?;
        let payloads = buffers(self.device, HEADER_LEN + payload_len, rounds)?;
        let launch = Launch::encode(self.tables.codec, dtype, self.tables.encode_units, tokens);
        let call = |round: usize| Call {
            to: self.tables.table(),
            values: sources[round].address(),
            payload: payloads[round].address() + HEADER_LEN as u64,
            to_row_len: self.tables.row_len(dtype) as u32,
            ..self.blank()
        };
        let calls: Vec<Call> = (0..rounds).map(call).collect();
        // SAFETY: the buffers have what the shapes need, and live until `timed` has waited.
        unsafe { self.device.launch(&launch, &calls[0]) }?;
        let wrong = {
            let rows = (COMPARED / features.max(1)).clamp(1, tokens.max(1)).min(tokens);
            let mut expected = vec![0; self.codec.payload_len(rows, dtype)];
            let head = Tensor::from_bytes(dtype, &repeated(input.bytes(), rows * features * dtype.size()));
            self.codec.encode(0, head.values(), &mut expected);
            let got = read(self.device, &payloads[0], HEADER_LEN, expected.len())?;
            got.iter()
                .zip(&expected)
                .filter(|(got, expected)| got != expected)
                .count() as u64
        };
        let bytes = len * dtype.size() + payload_len;
        self.row(launch, 1, bytes, &calls, wrong)
    }

    fn decode(&self) -> Result<KernelRow> {
        let KernelCase {
            dtype,
            tokens,
            features,
            ranks,
            ..
        } = self.case;
        let len = tokens * features;
        let payload_len = self.codec.payload_len(tokens, dtype);
        let rounds = rounds(ranks * payload_len + len * dtype.size());
        let rows = tokens.min((COMPARED / features.max(1)).max(1));
        let mut sum = vec![0.0_f32; rows * features];
        let mut payloads = Vec::new();
        for rank in 0..ranks {
            let input = finite(dtype, features * tokens.min(16), rank as u64);
            let input = Tensor::from_bytes(dtype, &repeated(input.bytes(), len * dtype.size()));
            let mut payload = vec![0; HEADER_LEN + payload_len];
            self.codec.encode(rank, input.values(), &mut payload[HEADER_LEN..]);
            let head = self.codec.payload_len(rows, dtype);
            self.codec
                .decode_accumulate(rank, &payload[HEADER_LEN..][..head], dtype, &mut sum)?;
            let first = Buffer::of(self.device, &payload)?;
            payloads.push(copies(self.device, &first, rounds)?);
        }
        let outputs = buffers(self.device, len * dtype.size(), rounds)?;
        let launch = Launch::decode(self.tables.codec, dtype, features, tokens);
        let call = |round: usize| {
            let mut call = Call {
                from: self.tables.table(),
                output: outputs[round].address(),
                from_row_len: self.tables.row_len(dtype) as u32,
                ranks: ranks as u32,
                ..self.blank()
            };
            for (address, of_rank) in call.payloads.iter_mut().zip(&payloads) {
                *address = of_rank[round].address() + HEADER_LEN as u64;
            }
            call
        };
        let calls: Vec<Call> = (0..rounds).map(call).collect();
        // SAFETY: as in `encode`.
        unsafe { self.device.launch(&launch, &calls[0]) }?;
        let got = read(self.device, &outputs[0], 0, rows * features * dtype.size())?;
        let got = Tensor::from_bytes(dtype, &got);
        let expected = Tensor::repeat(dtype, &sum, sum.len());
        let wrong = (0..sum.len()).filter(|i| differs(got.at(*i), expected.at(*i))).count() as u64;
        let bytes = ranks * payload_len + len * dtype.size();
        self.row(launch, ranks, bytes, &calls, wrong)
    }

    fn row(&self, launch: Launch, ranks: usize, bytes: usize, calls: &[Call], wrong: u64) -> Result<KernelRow> {
        let mut at = 0;
        let mut us = timed(self.device, &mut || {
            at = (at + 1) % calls.len();
            // SAFETY: as in `encode`; the callers hold the buffers.
            unsafe { self.device.launch(&launch, &calls[at]) }
        })?;
        let copy = self.copy(bytes / 2)?;
        let median = quantile(&mut us, 0.5);
        let gb_s = bytes as f64 / median / 1e3;
        Ok(KernelRow {
            gpu: self.gpu.clone(),
            kernel: launch.kernel.name(),
            tokens: self.case.tokens,
            features: self.case.features,
            ranks,
            bytes: bytes as u64,
            us_median: median,
            us_min: quantile(&mut us, 0.0),
            us_max: quantile(&mut us, 1.0),
            gb_s,
            copy_gb_s: copy,
            vs_copy: gb_s / copy,
            wrong,
        })
    }

    /// GB/s of a copy of `len` bytes on the device, read and written counted.
    fn copy(&self, len: usize) -> Result<f64> {
        let rounds = rounds(2 * len);
        let (from, to) = (buffers(self.device, len, rounds)?, buffers(self.device, len, rounds)?);
        let mut at = 0;
        let mut us = timed(self.device, &mut || {
            at = (at + 1) % rounds;
            // SAFETY: buffers of that length, held until `timed` has waited.
            unsafe { self.device.copy(from[at].address(), to[at].address(), len) }
        })?;
        Ok(2.0 * len as f64 / quantile(&mut us, 0.5) / 1e3)
    }

    fn blank(&self) -> Call {
        Call {
            status: self.status.address(),
            tokens: self.case.tokens as u32,
            features: self.case.features as u32,
            values_stride: self.case.features as u32,
            ..Call::zeroed()
        }
    }
}

/// Microseconds of one `submit` in a graph of many, several times.
fn timed(device: &Device, submit: &mut dyn FnMut() -> Result<(), CudaError>) -> Result<Vec<f64>> {
    let stream = device.stream();
    device.finish(DEADLINE, &mut || Ok(()), &mut || {})?;
    let graph = device.capture(|| (0..LAUNCHES).try_for_each(|_| submit()))?;
    graph.launch()?;
    let mut us = Vec::new();
    for _ in 0..REPEATS {
        let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        graph.launch()?;
        let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        device.finish(DEADLINE, &mut || Ok(()), &mut || {})?;
        us.push(f64::from(start.elapsed_ms(&end)?) * 1e3 / LAUNCHES as f64);
    }
    Ok(us)
}

fn rounds(bytes: usize) -> usize {
    (FOOTPRINT / bytes.max(1)).clamp(1, LAUNCHES)
}

fn buffers(device: &Device, len: usize, count: usize) -> Result<Vec<Arc<Buffer>>> {
    let made = (0..count).map(|_| Buffer::zeroed(device, len).map(Arc::new));
    Ok(made.collect::<Result<_, _>>()?)
}

fn copies(device: &Device, of: &Buffer, count: usize) -> Result<Vec<Arc<Buffer>>> {
    let made = buffers(device, of.len(), count)?;
    for copy in &made {
        // SAFETY: of one length; the stream is waited for below.
        unsafe { device.copy(of.address(), copy.address(), of.len()) }?;
    }
    device.finish(DEADLINE, &mut || Ok(()), &mut || {})?;
    Ok(made)
}

fn read(device: &Device, buffer: &Buffer, offset: usize, len: usize) -> Result<Vec<u8>> {
    ensure!(offset + len <= buffer.len(), "a read beyond its buffer");
    device.finish(DEADLINE, &mut || Ok(()), &mut || {})?;
    let mut bytes = vec![0; len];
    // SAFETY: in bounds, and nothing writes there any more.
    unsafe { cudarc::driver::result::memcpy_dtoh_sync(&mut bytes, buffer.address() + offset as u64) }?;
    Ok(bytes)
}

fn repeated(bytes: &[u8], len: usize) -> Vec<u8> {
    bytes.iter().copied().cycle().take(len).collect()
}

fn differs(got: f32, expected: f32) -> bool {
    got.to_bits() != expected.to_bits() && !(got.is_nan() && expected.is_nan())
}

/// Values of all sizes, ties between codes among them.
fn finite(dtype: Dtype, count: usize, seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let extremes = [0.0, -0.0, 1e-45, -1e-40, 65504.0, -3.0e38, 3.4e38, f32::MIN_POSITIVE];
    let values: Vec<f32> = (0..count)
        .map(|_| match rng.random_range(0..64) {
            0 => extremes[rng.random_range(0..extremes.len())],
            1..4 => rng.random_range(-16i32..16) as f32 * 0.25,
            _ => rng.random_range(-4.0f32..4.0),
        })
        .collect();
    Tensor::repeat(dtype, &values, count)
}

/// As [`finite`], a few of them NaN or infinite. Up to a few million; longer inputs repeat them.
fn hostile(dtype: Dtype, count: usize, seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let finite = finite(dtype, count.clamp(1, COMPARED), seed);
    let values: Vec<f32> = (0..count.clamp(1, COMPARED))
        .map(|i| match rng.random_range(0..200) {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => f32::NEG_INFINITY,
            _ => finite.at(i),
        })
        .collect();
    Tensor::repeat(dtype, &values, values.len())
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);
