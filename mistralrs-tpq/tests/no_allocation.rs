//! An exchange of a shape that was seen before allocates nothing, in the exchange and in the TCP transport, and what the
//! first one allocates is limited.
#![allow(unsafe_code)]

#[path = "collective/coarse.rs"]
#[allow(dead_code)]
mod coarse;
#[path = "collective/group.rs"]
#[allow(dead_code)]
mod group;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Duration;

use half::bf16;
use mistralrs_tpq::codec::{Codec, Dynamic, NoCodec, Values, ValuesMut};
use mistralrs_tpq::exchange::{Algorithm, Communicator, ExchangeConfig, Site};

use group::{on_all, tcp_group};

struct Counting;

thread_local! {
    /// Of this thread: each rank's control thread wakes once a second and makes a list of sockets, which is not the hot path.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}
static LIVE_BYTES: AtomicU64 = AtomicU64::new(0);
/// The most that [`LIVE_BYTES`] has been.
static PEAK_BYTES: AtomicU64 = AtomicU64::new(0);
/// Bytes are those of the whole process, so one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        let size = layout.size() as u64;
        let live = LIVE_BYTES.fetch_add(size, Ordering::Relaxed) + size;
        PEAK_BYTES.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn exchanges_of_known_shapes_do_not_allocate_and_buffers_stay_below_four_messages() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for algorithm in [
        Algorithm::OneShot,
        Algorithm::TwoShot,
        Algorithm::Ring,
        Algorithm::Doubling,
        Algorithm::Lossless,
    ] {
        let ready = Barrier::new(3);
        on_all(
            tcp_group(3, |config| config.heartbeat = Duration::from_secs(3600)),
            |_, transport| {
                let communicator = Communicator::new(
                    transport,
                    ExchangeConfig {
                        algorithm,
                        ..ExchangeConfig::default()
                    },
                );
                let (site, codec) = (
                    Site {
                        id: 0,
                        name: "layer".into(),
                    },
                    coarse::coarse(4096),
                );
                let input = vec![1.0; 8 * 4096];
                let mut output = input.clone();
                let mut reduce = |tokens: usize| {
                    let len = tokens * 4096;
                    let (input, output) = (Values::F32(&input[..len]), ValuesMut::F32(&mut output[..len]));
                    communicator.all_reduce(&site, &codec, input, output).unwrap();
                };
                ready.wait();
                let live = LIVE_BYTES.load(Ordering::Relaxed);
                ready.wait();
                (0..20).for_each(|i| reduce([8, 1][i % 2]));
                ready.wait();
                let grown = LIVE_BYTES.load(Ordering::Relaxed).saturating_sub(live) / 3;
                assert!(grown <= 4 * 8 * 4096 * 4, "{algorithm:?}: {grown} bytes a rank");
                ready.wait();
                let before = ALLOCATIONS.get();
                ready.wait();
                (0..200).for_each(|i| reduce([8, 1][i % 2]));
                ready.wait();
                let after = ALLOCATIONS.get();
                ready.wait();
                assert_eq!(after - before, 0, "{algorithm:?}");
            },
        );
    }
}

/// BF16, of which the sums in f32 are twice a message already.
#[test]
fn messages_that_grow_never_take_more_than_four_times_the_largest_one() {
    const TOKENS: [usize; 4] = [1, 40, 90, 128];
    const FEATURES: usize = 4096;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let codecs: [Box<dyn Codec>; 2] = [Box::new(NoCodec::new(FEATURES)), Box::new(Dynamic::new(FEATURES))];
    for (ranks, codec) in [2, 4, 8]
        .into_iter()
        .flat_map(|ranks| codecs.iter().map(move |codec| (ranks, codec)))
    {
        let ready = Barrier::new(ranks);
        on_all(
            tcp_group(ranks, |config| config.heartbeat = Duration::from_secs(3600)),
            |rank, transport| {
                let communicator = Communicator::new(transport, ExchangeConfig::default());
                let site = Site {
                    id: 0,
                    name: "layer".into(),
                };
                let input = vec![bf16::ONE; 128 * FEATURES];
                let mut output = input.clone();
                ready.wait();
                let before = LIVE_BYTES.load(Ordering::Relaxed);
                if rank == 0 {
                    PEAK_BYTES.store(before, Ordering::Relaxed);
                }
                ready.wait();
                for len in TOKENS.map(|tokens| tokens * FEATURES) {
                    let (input, output) = (Values::Bf16(&input[..len]), ValuesMut::Bf16(&mut output[..len]));
                    communicator.all_reduce(&site, &**codec, input, output).unwrap();
                }
                ready.wait();
                let taken = PEAK_BYTES.load(Ordering::Relaxed) - before;
                let of_a_rank = taken as f64 / ranks as f64 / (input.len() * 2) as f64;
                assert!(
                    of_a_rank <= 4.0,
                    "{ranks} ranks, {}: {of_a_rank:.2} messages",
                    codec.name()
                );
                println!("{ranks} ranks, {}: {of_a_rank:.2} messages", codec.name());
            },
        );
    }
}
