//! Products of a few rows with the weights of a linear layer, beside candle's: one thread, F32, more weights than a cache holds.
//!
//! `RAYON_NUM_THREADS=1 cargo bench -p mistralrs-tpq --no-default-features --features candle --bench linear`

use candle_core::{Device, Tensor};
use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use mistralrs_tpq::codec::Dtype;
use mistralrs_tpq::linear::{product, Kernel};

/// Inputs and outputs of an MLP's down and up projection, as one of two ranks has them.
const SHAPES: [(usize, usize); 3] = [(1408, 1024), (1024, 1408), (4096, 5504)];
/// Bytes of weights that the layers of a round have together.
const ROUND: usize = 64 << 20;

fn products(criterion: &mut Criterion) {
    let Some(kernel) = Kernel::best(Dtype::F32) else {
        return println!("no kernel for F32 on this processor");
    };
    for (inputs, outputs) in SHAPES {
        let layers = (ROUND / (4 * inputs * outputs)).max(2);
        let random = |rows: usize| Tensor::randn(0f32, 1., (rows, inputs), &Device::Cpu).unwrap();
        let weights: Vec<Tensor> = (0..layers).map(|_| random(outputs)).collect();
        let own: Vec<Vec<f32>> = weights.iter().map(values).collect();
        for rows in [1, 2, 4, 16, 64, 128] {
            let x = random(rows);
            let x_values = values(&x);
            let mut group = criterion.benchmark_group(format!("linear/{inputs}x{outputs}"));
            group.sample_size(10);
            group.throughput(Throughput::Elements((layers * rows) as u64));
            group.bench_function(BenchmarkId::new("candle", rows), |bench| {
                bench.iter(|| {
                    for w in &weights {
                        std::hint::black_box(x.matmul(&w.t().unwrap()).unwrap());
                    }
                });
            });
            group.bench_function(BenchmarkId::new("own", rows), |bench| {
                bench.iter(|| {
                    for w in &own {
                        std::hint::black_box(product(kernel, &x_values, w, inputs));
                    }
                });
            });
        }
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

criterion_group!(benches, products);
criterion_main!(benches);
