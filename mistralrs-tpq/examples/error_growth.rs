//! How far each algorithm's sum is from the exact one: signal to noise in dB, over bell-shaped partial sums with outliers.
//!
//! `cargo run --release --no-default-features --example error_growth` prints a row for each number of ranks and algorithm.

use std::sync::Arc;

use mistralrs_tpq::bench::inputs::{self, Tensor};
use mistralrs_tpq::codec::{CodecKind, Dtype};
use mistralrs_tpq::exchange::{Algorithm, Communicator, ExchangeConfig, ExchangeError, GatherBits, Site};
use mistralrs_tpq::transport::memory;

const TOKENS: usize = 16;
const FEATURES: usize = 4096;

fn main() -> Result<(), ExchangeError> {
    println!("ranks codec    gather_bits  one_shot  two_shot  ring  doubling   (SQNR, dB)");
    for ranks in [2, 4, 8, 16] {
        for kind in [CodecKind::Paper, CodecKind::Dynamic] {
            for gather_bits in [GatherBits::Four, GatherBits::Eight] {
                let mut line = format!("{ranks:5} {:8} {:11}", kind.name(), gather_bits.bits());
                for algorithm in [
                    Algorithm::OneShot,
                    Algorithm::TwoShot,
                    Algorithm::Ring,
                    Algorithm::Doubling,
                ] {
                    let config = ExchangeConfig {
                        algorithm,
                        gather_bits,
                        ..ExchangeConfig::default()
                    };
                    line += &format!("  {:8.1}", sqnr_db(ranks, kind, config)?);
                }
                println!("{line}");
            }
        }
    }
    Ok(())
}

fn sqnr_db(ranks: usize, kind: CodecKind, config: ExchangeConfig) -> Result<f64, ExchangeError> {
    let input = move |rank| inputs::rows(rank, TOKENS, FEATURES, Dtype::F32);
    let reduce = move |rank: usize, transport: memory::MemoryTransport| {
        let codec = inputs::codec(kind, ranks, FEATURES).ok_or(ExchangeError::ApiMisuse {
            what: "a codec that needs a model".to_owned(),
        })?;
        let values = input(rank);
        let partial = Tensor::repeat(Dtype::F32, &values, values.len());
        let mut sum = partial.clone();
        let site = Site {
            id: 0,
            name: "error".into(),
        };
        Communicator::new(Arc::new(transport), config)
            .all_reduce(&site, &*codec, partial.values(), sum.values_mut())
            .map(|_| sum)
    };
    let sums = std::thread::scope(|scope| {
        let start = |(rank, transport)| scope.spawn(move || reduce(rank, transport));
        let threads: Vec<_> = memory::group(ranks).into_iter().enumerate().map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(sum) => sum,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect::<Result<Vec<Tensor>, _>>()
    })?;
    let mut exact = vec![0.0_f64; TOKENS * FEATURES];
    for rank in 0..ranks {
        exact
            .iter_mut()
            .zip(input(rank))
            .for_each(|(sum, x)| *sum += f64::from(x));
    }
    let (mut signal, mut noise) = (0.0, 0.0);
    for (i, x) in exact.iter().enumerate() {
        signal += x * x;
        noise += (x - f64::from(sums[0].at(i))).powi(2);
    }
    Ok(10.0 * (signal / noise).log10())
}
