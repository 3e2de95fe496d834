//! Encode and decode of one codec beside a copy of the same input bytes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::inputs::{self, Tensor};
use super::quantile;
use crate::codec::{Codec, CodecError, CodecKind, Dtype, Level};
use crate::exchange::{round, BLOCK_ELEMENTS};

/// Throughput counts input bytes throughout, so figures of one dtype compare directly.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CodecRow {
    pub codec: String,
    pub dtype: String,
    /// The instruction set that the codecs were run with.
    pub kernels: String,
    pub values: usize,
    pub bits_per_value: f64,
    pub memcpy_gb_s: f64,
    pub encode_gb_s: f64,
    /// Added to f32 sums in memory.
    pub decode_gb_s: f64,
    /// As exchanges do it: two payloads are added up in blocks of sums that stay in the first-level cache, and rounded to the
    /// dtype; of one of the two.
    pub sum_gb_s: f64,
    pub encode_vs_memcpy: f64,
    pub decode_vs_memcpy: f64,
    pub sum_vs_memcpy: f64,
}

/// Measures `kind` on `tokens * features` values, in one thread. Copy, encode, decode and sum take turns, so that a busy moment
/// of the machine hits all of them.
///
/// # Errors
/// A codec that cannot be made without a model.
pub fn run(kind: CodecKind, dtype: Dtype, tokens: usize, features: usize, per_case: Duration) -> Result<CodecRow> {
    let codec =
        inputs::codec(kind, 1, features).with_context(|| format!("codec {} needs a calibrated model", kind.name()))?;
    let len = tokens * features;
    let input = Tensor::repeat(dtype, &inputs::rows(0, tokens, features, dtype), len);
    let mut copy = input.bytes().to_vec();
    let mut payload = vec![0; codec.payload_len(tokens, dtype)];
    let mut sum = vec![0.0_f32; len];
    let mut output = input.clone();
    let [mut copies, mut encodes, mut decodes, mut sums] = [const { Vec::new() }; 4];
    let start = Instant::now();
    while start.elapsed() < per_case || copies.len() < 5 {
        copies.push(seconds(|| copy.copy_from_slice(black_box(input.bytes()))));
        black_box(&mut copy);
        encodes.push(seconds(|| {
            black_box(codec.encode(0, black_box(input.values()), &mut payload));
        }));
        let mut decoded = Ok(());
        decodes.push(seconds(|| {
            decoded = codec.decode_accumulate(0, black_box(&payload), dtype, &mut sum)
        }));
        decoded?;
        black_box(&mut sum);
        let mut summed = Ok(());
        sums.push(seconds(|| summed = sum_two(&*codec, black_box(&payload), &mut output)) / 2.0);
        summed?;
        black_box(&mut output);
    }
    let speed = |times: &mut Vec<f64>| input.bytes().len() as f64 / quantile(times, 0.5) / 1e9;
    let (memcpy, encode) = (speed(&mut copies), speed(&mut encodes));
    let (decode, sum) = (speed(&mut decodes), speed(&mut sums));
    Ok(CodecRow {
        codec: kind.name().to_owned(),
        dtype: dtype.name().to_owned(),
        kernels: Level::best().name().to_owned(),
        values: len,
        bits_per_value: payload.len() as f64 * 8.0 / len.max(1) as f64,
        memcpy_gb_s: memcpy,
        encode_gb_s: encode,
        decode_gb_s: decode,
        sum_gb_s: sum,
        encode_vs_memcpy: encode / memcpy,
        decode_vs_memcpy: decode / memcpy,
        sum_vs_memcpy: sum / memcpy,
    })
}

/// The sum of `payload` and `payload`.
fn sum_two(codec: &dyn Codec, payload: &[u8], output: &mut Tensor) -> Result<(), CodecError> {
    let (features, dtype) = (codec.features(), output.values().dtype());
    let (rows, row_len) = (output.values().len() / features, codec.payload_len(1, dtype));
    let step = (BLOCK_ELEMENTS / features).max(1);
    let mut block = vec![0.0; step * features];
    for start in (0..rows).step_by(step) {
        let end = rows.min(start + step);
        let (sum, part) = (
            &mut block[..(end - start) * features],
            &payload[start * row_len..end * row_len],
        );
        codec.decode_first(0, part, dtype, sum)?;
        codec.decode_accumulate(0, part, dtype, sum)?;
        round(sum, &mut output.values_mut(), start * features);
    }
    Ok(())
}

fn seconds(call: impl FnOnce()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64()
}
