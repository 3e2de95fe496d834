//! What watching for drift costs beside the exchange that it watches: two ranks as threads of one process, without a network, which
//! makes the exchange as cheap as can be.
//!
//! ```text
//! cargo run --release -p mistralrs-tpq --no-default-features --example drift_cost
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mistralrs_tpq::calibrate::{LayerStatistics, RangeObserver, Selection};
use mistralrs_tpq::codec::{Dtype, Values, ValuesMut};
use mistralrs_tpq::config::{OutlierCount, Plan};
use mistralrs_tpq::exchange::{Communicator, ExchangeConfig, Site};
use mistralrs_tpq::manifest::{Digest, Header, Manifest};
use mistralrs_tpq::monitor::Monitor;
use mistralrs_tpq::transport::memory;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FEATURES: usize = 4096;
const LAYER: &str = "layer";

fn main() {
    let manifest = manifest();
    println!("{FEATURES} features, 2 ranks, f32; time of rank 0");
    println!("codec       tokens  exchange us  watching us   share");
    for codec in [
        "{kind: paper, manifest: m}",
        "{kind: rd, manifest: m}",
        "{kind: rd, entropy: true, manifest: m}",
    ] {
        for (tokens, exchanges) in [(1, 2560), (16, 320), (256, 30)] {
            let (name, exchange, watched) = run(&manifest, codec, tokens, exchanges);
            let us = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(exchanges);
            let share = 100.0 * watched.as_secs_f64() / exchange.as_secs_f64();
            println!(
                "{name:<11} {tokens:>6} {:>12.2} {:>12.3} {share:>6.2}%",
                us(exchange),
                us(watched)
            );
        }
    }
}

fn run(manifest: &Manifest, codec: &str, tokens: usize, exchanges: u32) -> (&'static str, Duration, Duration) {
    let plan =
        Plan::parse(&format!("version: 1\ncodec: {codec}\n"), Path::new("tpq.yaml")).expect("a valid configuration");
    let input = rows(tokens, 1);
    let rank = |(rank, transport)| {
        let communicator = Communicator::new(Arc::new(transport), ExchangeConfig::default());
        let monitor =
            Monitor::new(&plan.drift, &plan.codec, Some(manifest), 0.99, rank).expect("a calibrated codec is watched");
        let watched = monitor
            .site(LAYER, FEATURES)
            .expect("the layer is there")
            .expect("its group is on");
        let site = Site {
            id: 0,
            name: LAYER.into(),
        };
        let mut sum = vec![0.0; input.len()];
        let mut spent = Duration::ZERO;
        for _ in 0..exchanges {
            let codec = watched.codec();
            let values = Values::F32(&input);
            let stats = communicator
                .all_reduce(&site, codec.as_ref(), values, ValuesMut::F32(&mut sum))
                .expect("no link fails");
            watched
                .exchanged(values, Values::F32(&sum), stats.clipped)
                .expect("whole rows");
            spent += stats.encode + stats.wire + stats.decode;
        }
        (spent, monitor.status().watched)
    };
    let rank = &rank;
    let ranks: Vec<_> = std::thread::scope(|scope| {
        let group = memory::group(2).into_iter().enumerate();
        let threads: Vec<_> = group.map(|at| scope.spawn(move || rank(at))).collect();
        let finished = threads.into_iter().map(|thread| thread.join().expect("no rank panics"));
        finished.collect()
    });
    (plan.codec.name(), ranks[0].0, ranks[0].1)
}

fn manifest() -> Manifest {
    let observers: Vec<RangeObserver> = (0..2)
        .map(|rank| {
            let mut observer = RangeObserver::new(FEATURES, 0.99).expect("valid");
            for sequence in 0..4 {
                observer
                    .observe(&rows(64, 100 + rank * 10 + sequence))
                    .expect("whole rows");
                observer.end_sequence();
            }
            observer
        })
        .collect();
    let statistics = LayerStatistics::gather(LAYER, &observers).expect("all ranks saw the same");
    let layer = statistics
        .into_layer(OutlierCount::Count(64), Selection::Largest)
        .expect("a layer");
    let header = Header {
        model: Digest([0; 32]),
        dtype: Dtype::F32,
        world_size: 2,
        corpus: Digest([0; 32]),
        sequences: 4,
        tokens: 64,
        ema: 0.99,
    };
    Manifest::new(header, vec![layer]).expect("a manifest")
}

fn rows(tokens: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..tokens * FEATURES)
        .map(|at| random.random_range(-1.0f32..1.0) * (1.0 + (at % 7) as f32))
        .collect()
}
