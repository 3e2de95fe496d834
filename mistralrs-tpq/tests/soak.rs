//! Many exchanges of changing shapes under a watchdog: nothing hangs, nothing drifts, with and without encryption.

#[path = "collective/group.rs"]
#[allow(dead_code)]
mod group;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mistralrs_tpq::codec::{Codec, Dynamic, NoCodec, Values, ValuesMut};
use mistralrs_tpq::exchange::{Communicator, ExchangeConfig, Site};
use mistralrs_tpq::transport::tcp::Secret;
use mistralrs_tpq::transport::Transport;
use sha2::{Digest, Sha256};

use group::tcp_group;

const WATCHDOG: Duration = Duration::from_secs(60);
const FEATURES: usize = 16;
const RANKS: usize = 4;

/// 1 to 4096 tokens. Most are decode steps, as in serving.
fn tokens(step: usize) -> usize {
    match step % 50 {
        0 => 4096,
        10 => 1000,
        20 => 257,
        30 => 64,
        n if n % 2 == 0 => 16,
        _ => 1,
    }
}

/// The digest of all sums on each rank.
fn soak(exchanges: usize, encrypt: bool) -> Vec<Vec<u8>> {
    let done = Arc::new(AtomicBool::new(false));
    let watched = done.clone();
    std::thread::spawn(move || {
        std::thread::sleep(WATCHDOG);
        if !watched.load(Ordering::Acquire) {
            eprintln!("{exchanges} exchanges are not done after {WATCHDOG:?}");
            std::process::exit(1);
        }
    });
    let group = tcp_group(RANKS, |config| {
        if encrypt {
            config.secret = Some(Secret::new(&[b'k'; 40]).unwrap());
            config.encrypt = true;
        }
    });
    let start = Instant::now();
    let digests = std::thread::scope(|scope| {
        let ranks: Vec<_> = group
            .iter()
            .cloned()
            .enumerate()
            .map(|(rank, transport)| scope.spawn(move || run(rank, transport, exchanges)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    done.store(true, Ordering::Release);
    println!(
        "{exchanges} exchanges between {RANKS} ranks, encrypt {encrypt}: {:.1} s",
        start.elapsed().as_secs_f64()
    );
    digests
}

fn run(rank: usize, transport: Arc<dyn Transport>, exchanges: usize) -> Vec<u8> {
    let communicator = Communicator::new(transport, ExchangeConfig::default());
    let site = Site {
        id: 1,
        name: "layer".into(),
    };
    let codecs: [Box<dyn Codec>; 2] = [Box::new(Dynamic::new(FEATURES)), Box::new(NoCodec::new(FEATURES))];
    let values: Vec<f32> = (0..4096 * FEATURES)
        .map(|i| ((i * 7919 + rank * 104_729) % 2003) as f32 / 64.0 - 15.0)
        .collect();
    let mut sum = vec![0.0; values.len()];
    let mut digest = Sha256::new();
    for step in 0..exchanges {
        let len = tokens(step) * FEATURES;
        let start = (step * FEATURES) % (values.len() - len + 1);
        let codec = codecs[usize::from(step % 7 == 0)].as_ref();
        communicator
            .all_reduce(
                &site,
                codec,
                Values::F32(&values[start..start + len]),
                ValuesMut::F32(&mut sum[..len]),
            )
            .unwrap_or_else(|error| panic!("exchange {step} of {} tokens: {error}", tokens(step)));
        digest.update(bytemuck::cast_slice(&sum[..len]));
    }
    digest.finalize().to_vec()
}

fn assert_alike(digests: &[Vec<u8>]) {
    assert_eq!(digests.len(), RANKS);
    assert!(digests.iter().all(|digest| *digest == digests[0]), "ranks differ");
}

#[test]
fn ranks_are_bit_identical_after_exchanges_of_alternating_shapes_encrypted_or_not() {
    assert_alike(&soak(1000, false));
    let few = soak(200, false);
    assert_alike(&few);
    assert_eq!(soak(200, true), few);
}

#[test]
#[ignore = "up to a minute: cargo test --release --no-default-features --test soak -- --ignored --nocapture"]
fn ranks_are_bit_identical_after_50_000_exchanges() {
    assert_alike(&soak(50_000, false));
}
