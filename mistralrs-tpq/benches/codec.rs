//! Encode and decode of 8 Mi values, beside a copy of the same input bytes: throughput counts input bytes throughout, so
//! the figures of one dtype compare directly. `cargo bench --no-default-features --bench codec`

use std::hint::black_box;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use half::bf16;
use mistralrs_tpq::codec::{Codec, Dtype, Dynamic, NoCodec, Paper, PaperTables, Values};

const TOKENS: usize = 2048;
const FEATURES: usize = 4096;

fn codecs(values: &[f32]) -> [Box<dyn Codec>; 3] {
    let ranges = (0..FEATURES)
        .map(|i| values[i..].iter().step_by(FEATURES).fold(0.0f32, |m, x| m.max(x.abs())))
        .collect();
    let outliers = (0..FEATURES as u32).step_by(64).collect();
    let tables = PaperTables::new(vec![ranges], outliers).expect("ranges and outliers above are valid");
    [
        Box::new(NoCodec::new(FEATURES)),
        Box::new(Paper::new(tables)),
        Box::new(Dynamic::new(FEATURES)),
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
            verify(codec.as_ref(), input, &floats, &mut payload, &mut sum);
            group.bench_function(format!("{}/encode", codec.name()), |b| {
                b.iter(|| codec.encode(0, black_box(input), black_box(&mut payload)))
            });
            group.bench_function(format!("{}/decode_accumulate", codec.name()), |b| {
                b.iter(|| codec.decode_accumulate(0, black_box(&payload), dtype, black_box(&mut sum)))
            });
        }
        group.finish();
    }
}

/// A fast wrong answer is not a result.
fn verify(codec: &dyn Codec, input: Values<'_>, floats: &[f32], payload: &mut [u8], sum: &mut [f32]) {
    codec.encode(0, input, payload);
    codec
        .decode_accumulate(0, payload, input.dtype(), sum)
        .expect("own payload decodes");
    let mut bound = vec![0.0; FEATURES];
    for (row, sum) in floats.chunks(FEATURES).zip(sum.chunks(FEATURES)) {
        codec.error_bound(0, row, &mut bound);
        for ((x, sum), bound) in row.iter().zip(sum).zip(&bound) {
            // The input itself may be BF16 already: 2^-8 of a value of at most 2.
            assert!((x - sum).abs() <= bound + if input.dtype() == Dtype::F32 { 0.0 } else { 0.0157 });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
