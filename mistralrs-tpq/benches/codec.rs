//! Encode and decode of 8 Mi values, beside a copy of the same input bytes: throughput counts input bytes throughout, so
//! the figures of one dtype compare directly. `cargo bench --no-default-features --bench codec`; with the feature `engine`
//! also beside the block quantizers of candle.
//!
//! `decode_accumulate` adds to 8 Mi f32 sums in memory: four times the traffic of a copy of BF16. `decode_first` only writes
//! them, as candle's decoders do. `decode_to_output` is what an exchange does: blocks of sums that stay in the cache, rounded
//! to an output of the input's dtype.

use std::hint::black_box;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use half::bf16;
use mistralrs_tpq::bench::inputs;
use mistralrs_tpq::codec::{round_to_bf16, Codec, CodecKind, Dtype, Dynamic, NoCodec, Paper, PaperTables, Values};

const TOKENS: usize = 2048;
const FEATURES: usize = 4096;
/// 32 Ki sums, as in the exchange.
const BLOCK_ROWS: usize = 8;

fn codecs(values: &[f32]) -> [Box<dyn Codec>; 5] {
    let ranges = (0..FEATURES)
        .map(|i| values[i..].iter().step_by(FEATURES).fold(0.0f32, |m, x| m.max(x.abs())))
        .collect();
    let outliers = (0..FEATURES as u32).step_by(64).collect();
    let tables = PaperTables::new(vec![ranges], outliers).expect("ranges and outliers above are valid");
    [
        Box::new(NoCodec::new(FEATURES)),
        Box::new(Paper::new(tables)),
        Box::new(Dynamic::new(FEATURES)),
        Box::new(Dynamic::wide(FEATURES)),
        inputs::codec(CodecKind::Rd, 1, FEATURES).expect("the inputs that it is calibrated on are sound"),
    ]
}

/// Roughly bell-shaped, like a partial sum.
fn values() -> Vec<f32> {
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..TOKENS * FEATURES)
        .map(|_| uniform() + uniform() + uniform() + uniform())
        .collect()
}

fn bench(c: &mut Criterion) {
    let floats = values();
    let halves: Vec<bf16> = floats.iter().copied().map(bf16::from_f32).collect();
    for input in [Values::F32(&floats), Values::Bf16(&halves)] {
        let dtype = input.dtype();
        let mut group = c.benchmark_group(dtype.name());
        group.throughput(Throughput::Bytes((input.len() * dtype.size()) as u64));
        group
            .sample_size(20)
            .warm_up_time(Duration::from_secs(1))
            .measurement_time(Duration::from_secs(3));

        let source = vec![1u8; input.len() * dtype.size()];
        let mut target = vec![2u8; source.len()];
        group.bench_function("memcpy", |b| {
            b.iter(|| black_box(&mut target).copy_from_slice(black_box(&source)))
        });

        for codec in codecs(&floats) {
            let mut payload = vec![0; codec.payload_len(TOKENS, dtype)];
            let mut sum = vec![0.0; input.len()];
            verify(codec.as_ref(), input, &mut payload, &mut sum);
            group.bench_function(format!("{}/encode", codec.name()), |b| {
                b.iter(|| codec.encode(0, black_box(input), black_box(&mut payload)))
            });
            group.bench_function(format!("{}/decode_accumulate", codec.name()), |b| {
                b.iter(|| codec.decode_accumulate(0, black_box(&payload), dtype, black_box(&mut sum)))
            });
            group.bench_function(format!("{}/decode_first", codec.name()), |b| {
                b.iter(|| codec.decode_first(0, black_box(&payload), dtype, black_box(&mut sum)))
            });
            group.bench_function(format!("{}/decode_to_output", codec.name()), |b| {
                b.iter(|| to_output(codec.as_ref(), black_box(&payload), dtype, &mut target))
            });
        }
        #[cfg(feature = "engine")]
        if let Values::F32(values) = input {
            candle::bench(&mut group, values);
        }
        group.finish();
    }
}

/// Decodes in blocks of `BLOCK_ROWS` rows and rounds them to `output`.
fn to_output(codec: &dyn Codec, payload: &[u8], dtype: Dtype, output: &mut [u8]) {
    let mut block = vec![0.0_f32; BLOCK_ROWS * FEATURES];
    let payloads = payload.chunks_exact(codec.payload_len(BLOCK_ROWS, dtype));
    for (payload, output) in payloads.zip(output.chunks_exact_mut(block.len() * dtype.size())) {
        codec
            .decode_first(0, payload, dtype, &mut block)
            .expect("own payload decodes");
        match dtype {
            Dtype::F32 => output.copy_from_slice(bytemuck::cast_slice(&block)),
            _ => round_to_bf16(&block, bytemuck::cast_slice_mut(output)),
        }
    }
}

/// The block quantizers that candle carries for weights: the nearest thing to a codec that the engine has of its own.
#[cfg(feature = "engine")]
mod candle {
    use super::*;
    use candle_core::quantized::k_quants::{BlockQ4_0, BlockQ8_0, GgmlType};
    use criterion::{measurement::WallTime, BenchmarkGroup};

    pub fn bench(group: &mut BenchmarkGroup<'_, WallTime>, values: &[f32]) {
        one::<BlockQ4_0>(group, values, "candle_q4_0");
        one::<BlockQ8_0>(group, values, "candle_q8_0");
    }

    fn one<B: GgmlType>(group: &mut BenchmarkGroup<'_, WallTime>, values: &[f32], name: &str) {
        let mut blocks = vec![B::zeros(); values.len() / B::BLCK_SIZE];
        let mut decoded = vec![0.0_f32; values.len()];
        group.bench_function(format!("{name}/encode"), |b| {
            b.iter(|| B::from_float(black_box(values), black_box(&mut blocks)))
        });
        // As `decode_first`.
        group.bench_function(format!("{name}/decode"), |b| {
            b.iter(|| B::to_float(black_box(&blocks), black_box(&mut decoded)))
        });
    }
}

/// A fast wrong answer is not a result.
fn verify(codec: &dyn Codec, input: Values<'_>, payload: &mut [u8], sum: &mut [f32]) {
    codec.encode(0, input, payload);
    codec
        .decode_accumulate(0, payload, input.dtype(), sum)
        .expect("own payload decodes");
    let input: Vec<f32> = match input {
        Values::F32(v) => v.to_vec(),
        Values::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
        Values::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
    };
    let mut bound = vec![0.0; FEATURES];
    for (row, sum) in input.chunks(FEATURES).zip(sum.chunks(FEATURES)) {
        codec.error_bound(0, row, &mut bound);
        assert!(row
            .iter()
            .zip(sum)
            .zip(&bound)
            .all(|((x, sum), bound)| (x - sum).abs() <= *bound));
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
