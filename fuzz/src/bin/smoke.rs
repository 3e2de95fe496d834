//! Mutates the seeds for some seconds a target: no coverage feedback, but a stable toolchain and no wait. A crash prints the input.

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mistralrs_tpq_fuzz::TARGETS;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Longer inputs only make it slower.
const MAX_LEN: usize = 64 << 10;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let seconds = args.next().and_then(|text| text.parse().ok()).unwrap_or(10.0);
    let only = args.next();
    let mut failed = false;
    for (name, target) in TARGETS.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        let seeds = seeds(name);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let (start, mut runs, mut slowest) = (Instant::now(), 0_u64, Duration::ZERO);
        while start.elapsed().as_secs_f64() < seconds {
            let input = mutate(&seeds, &mut random);
            let began = Instant::now();
            if catch_unwind(|| target(&input)).is_err() {
                println!("{name}: crash at run {runs}: {}", hex(&input));
                failed = true;
                break;
            }
            slowest = slowest.max(began.elapsed());
            runs += 1;
        }
        println!("{name}: {runs} runs of {} seeds, slowest {slowest:.1?}", seeds.len());
    }
    ExitCode::from(u8::from(failed))
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a seed")).collect()
}

fn mutate(seeds: &[Vec<u8>], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut input = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(0..6) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..8) {
            0 => input.truncate(at),
            1 => input.insert(at, random.random()),
            2 if at < input.len() => drop(input.drain(at..(at + random.random_range(1..9)).min(input.len()))),
            3 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            4 if at < input.len() => input[at] = random.random(),
            // The values at which lengths and signs go wrong.
            5 if at + 4 <= input.len() => {
                let value = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX][random.random_range(0..5)];
                input[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            6 => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..=other.len());
                input.splice(at.., other[from..].iter().copied());
            }
            7 => {
                let from = random.random_range(0..=at);
                let piece = input[from..at].to_vec();
                input.splice(at..at, piece);
            }
            _ => {}
        }
        input.truncate(MAX_LEN);
    }
    input
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
