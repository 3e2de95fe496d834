//! A simulated exchange ends with the bits of the real one, and its errors are those that theory gives where its assumptions hold.

use std::sync::Arc;

use mistralrs_tpq::bench::inputs;
use mistralrs_tpq::codec::{Codec, CodecKind, Values, ValuesMut};
use mistralrs_tpq::exchange::{sum_in_process, Algorithm, Chosen, Communicator, ExchangeConfig, GatherBits, Site};
use mistralrs_tpq::simulate::{
    simulate, times, Calibration, Costs, Distribution, Origin, Recorded, RecordedLayer, SimulateOptions, Simulation,
};
use mistralrs_tpq::transport::memory;

const CODECS: [CodecKind; 4] = [
    CodecKind::Paper,
    CodecKind::Dynamic,
    CodecKind::Rd,
    CodecKind::RdEntropy,
];

/// Bell-shaped values, a deviation of 0.58, different for each seed.
fn bell(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9);
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len)
        .map(|_| uniform() + uniform() + uniform() + uniform())
        .collect()
}

fn exchanged(algorithm: Algorithm, codec: &dyn Codec, gather_bits: GatherBits, parts: &[Vec<f32>]) -> Vec<f32> {
    let ranks = parts.len();
    let reduce = |rank: usize, transport: memory::MemoryTransport| {
        let config = ExchangeConfig {
            algorithm,
            gather_bits,
            ..ExchangeConfig::default()
        };
        let site = Site {
            id: 0,
            name: "l".into(),
        };
        let mut sum = vec![0.0; parts[rank].len()];
        Communicator::new(Arc::new(transport), config)
            .all_reduce(&site, codec, Values::F32(&parts[rank]), ValuesMut::F32(&mut sum))
            .unwrap();
        sum
    };
    std::thread::scope(|scope| {
        let start = |(rank, transport)| scope.spawn(move || reduce(rank, transport));
        let threads: Vec<_> = memory::group(ranks).into_iter().enumerate().map(start).collect();
        let mut sums: Vec<Vec<f32>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        sums.swap_remove(ranks - 1)
    })
}

#[test]
fn sums_in_process_are_those_of_the_exchange_to_the_bit() {
    let algorithms = [
        (Algorithm::OneShot, Chosen::OneShot),
        (Algorithm::TwoShot, Chosen::TwoShot),
        (Algorithm::Ring, Chosen::Ring),
        (Algorithm::Doubling, Chosen::Doubling),
    ];
    for ranks in [2, 3, 4, 5, 8] {
        // More tokens than ranks, and fewer: slices by tokens and by features.
        for (tokens, features) in [(11, 96), (1, 320), (3, 37)] {
            let parts: Vec<Vec<f32>> = (0..ranks).map(|rank| bell(rank as u32, tokens * features)).collect();
            for kind in CODECS {
                let codec = inputs::codec(kind, ranks, features).unwrap();
                for (algorithm, chosen) in algorithms {
                    for gather_bits in [GatherBits::Four, GatherBits::Eight] {
                        let real = exchanged(algorithm, &*codec, gather_bits, &parts);
                        let simulated = sum_in_process(chosen, &*codec, gather_bits, &parts).unwrap();
                        let bits = |sum: &[f32]| sum.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                        assert_eq!(
                            bits(&simulated),
                            bits(&real),
                            "{ranks} ranks, {tokens} x {features}, {kind:?}, {algorithm:?}, {gather_bits:?}"
                        );
                    }
                }
            }
        }
    }
}

const FEATURES: usize = 192;
const TOKENS: usize = 512;

/// One layer recorded over `ranks` ranks.
fn recorded(ranks: usize, part: impl Fn(usize) -> Vec<f32>) -> Recorded {
    Recorded {
        origin: Origin {
            world_size: ranks,
            sequence: 64,
            dtype: "f32".into(),
            model: "0".into(),
        },
        layers: vec![RecordedLayer {
            name: "l".into(),
            features: FEATURES,
            ranks: (0..ranks).map(part).collect(),
        }],
    }
}

fn run(recorded: &Recorded, ranks: &[usize]) -> Simulation {
    let options = SimulateOptions {
        ranks: ranks.to_vec(),
        codecs: vec![CodecKind::Paper, CodecKind::Dynamic],
        bits: 4.1875,
        gather_bits: GatherBits::Eight,
    };
    simulate(recorded, &options, None, |_, _| ()).unwrap()
}

fn of_all(simulation: &Simulation, ranks: usize) -> &Distribution {
    let mut of_all = simulation.distributions.iter().filter(|one| one.layer.is_empty());
    of_all.find(|one| one.ranks == ranks).unwrap()
}

#[test]
fn errors_of_bell_shaped_sums_have_the_moments_of_irwin_and_hall_for_2_to_128_ranks() {
    let recorded = recorded(4, |rank| bell(rank as u32, TOKENS * FEATURES));
    let numbers = [2, 4, 8, 16, 32, 64, 128];
    let simulation = run(&recorded, &numbers);
    for ranks in numbers {
        let one = of_all(&simulation, ranks);
        // Only clipping keeps values out: the more ranks, the likelier one of them clips.
        assert!(one.holds + one.clipped > 0.999 && one.holds > 0.2, "{one:?}");
        assert!((one.energy_ratio_held - 1.0).abs() < 0.05, "{one:?}");
        assert!((one.variance - 1.0).abs() < 0.05 && one.mean.abs() < 0.03, "{one:?}");
        // Kurtosis, which is never near zero as the excess is.
        let (measured, predicted) = (3.0 + one.excess_kurtosis, 3.0 + one.predicted_excess_kurtosis);
        assert!((measured / predicted - 1.0).abs() < 0.05, "{one:?}");
        assert!(one.distance < 0.03 && one.correlation.abs() < 0.02, "{one:?}");
        // Nearly equal steps: -6 / 5N.
        assert!(
            (one.predicted_excess_kurtosis + 1.2 / ranks as f64).abs() < 0.2 / ranks as f64,
            "{one:?}"
        );
    }
}

#[test]
fn the_distribution_says_which_assumption_fails() {
    // Rank 1 repeats rank 0: the errors are the same, so the sum has twice the energy that two independent ones have.
    let alike = recorded(2, |_| bell(7, TOKENS * FEATURES));
    let one = of_all(&run(&alike, &[2]), 2).clone();
    assert!(one.correlation > 0.99 && one.energy_ratio_held > 1.9, "{one:?}");
    // The second half, on which nothing was calibrated, is four times as large.
    let louder = |rank: usize| {
        let mut part = bell(rank as u32, TOKENS * FEATURES);
        part[TOKENS / 2 * FEATURES..].iter_mut().for_each(|x| *x *= 4.0);
        part
    };
    let one = of_all(&run(&recorded(2, louder), &[2]), 2).clone();
    assert!(one.clipped > 0.3 && one.energy_ratio > 5.0, "{one:?}");
    // One token in 64 sets the range of a feature that is nearly zero otherwise.
    let spiky = |rank: usize| {
        let mut part = bell(rank as u32, TOKENS * FEATURES);
        for (token, row) in part.chunks_exact_mut(FEATURES).enumerate() {
            let factor = if token % 64 == 9 { 1.0 } else { 1e-3 };
            row[..FEATURES / 2].iter_mut().for_each(|x| *x *= factor);
        }
        part
    };
    let one = of_all(&run(&recorded(2, spiky), &[2]), 2).clone();
    assert!(one.coarse > 0.4 && one.holds < 0.6, "{one:?}");
}

#[test]
fn error_grows_with_the_quantizations_of_an_algorithm_and_one_shot_keeps_its_level() {
    let recorded = recorded(4, |rank| bell(rank as u32, TOKENS * FEATURES));
    let simulation = run(&recorded, &[4, 64]);
    let sqnr = |ranks: usize, algorithm: &str| {
        let row = simulation
            .rows
            .iter()
            .find(|row| row.ranks == ranks && row.algorithm == algorithm && row.codec == "paper");
        row.unwrap().sqnr_db
    };
    assert!(
        (sqnr(4, "one_shot") - sqnr(64, "one_shot")).abs() < 1.0,
        "{:?}",
        simulation.rows
    );
    assert!(sqnr(64, "ring") < sqnr(4, "ring") - 6.0);
    assert!(sqnr(64, "two_shot") > sqnr(64, "ring") + 6.0);
    // A simulation repeats.
    let again = run(&recorded, &[4, 64]);
    assert_eq!(
        serde_json::to_string(&again).unwrap(),
        serde_json::to_string(&simulation).unwrap()
    );
}

#[test]
fn a_page_shows_every_plot_and_fetches_nothing() {
    let recorded = recorded(2, |rank| bell(rank as u32, 64 * FEATURES));
    let simulation = run(&recorded, &[2, 4]);
    let calibration = Calibration::observe(&recorded.layers[0].ranks, FEATURES, 64, 0.99).unwrap();
    let codecs = [CodecKind::Paper, CodecKind::None].map(|kind| calibration.codec(kind, 4.0).unwrap());
    let costs = Costs {
        link: Default::default(),
        coded_per_s: 1e9,
    };
    let times = times(&costs, &codecs, &[1, 512], GatherBits::Eight, 1024);
    let fastest = |codec: &str| {
        let of_codec = times
            .iter()
            .filter(|row| row.codec == codec && row.ranks == 2 && row.tokens == 512);
        of_codec.map(|row| row.microseconds).fold(f64::INFINITY, f64::min)
    };
    assert!(fastest("paper") * 2.0 < fastest("none"), "{times:?}");
    assert!(times.iter().any(|row| row.ranks == 1024 && row.algorithm == "doubling"));
    let page = mistralrs_tpq::simulate::page(&simulation, &times).unwrap();
    assert_eq!(page.matches("<svg").count(), 3, "growth, quantiles, times");
    assert!(page.contains("Irwin-Hall") && page.contains("paper, 512 tokens") && !page.contains("src="));
}
