//! Exchanges between GPUs: real processes and the whole of `src/cuda`, on whatever driver the loader finds. `cargo xtask
//! cuda-check` runs it without a GPU, on the stand-in of tests/cuda/soft_gpu; what that cannot show (speed, the order in which a
//! device's memory is seen, NVIDIA's own checks) needs the same tests on a GPU.

#[path = "common/mod.rs"]
mod common;
#[path = "gpu/group.rs"]
mod group;

use std::time::{Duration, Instant};

use common::process::{clean, Process};
use mistralrs_tpq::codec::NoCodec;
use mistralrs_tpq::cuda::{CudaError, GpuLink};
use mistralrs_tpq::exchange::{Algorithm, ExchangeConfig, NonFinite};
use nix::sys::signal::Signal;

use group::{codec, on_stand_in, ranks, values, Forged, Rank, FEATURES};

const LINKS: [&str; 4] = ["peer", "nccl", "tcp", "host"];
const LIMIT: Duration = Duration::from_secs(120);

/// `tpq`: on a machine without cargo TPQ_TEST_BINARY says where it is.
fn tpq() -> std::process::Command {
    let built = env!("CARGO_BIN_EXE_tpq");
    clean(std::env::var("TPQ_TEST_BINARY").unwrap_or_else(|_| built.to_owned()))
}

/// A process for each rank that benchmarks exchanges over `link`.
fn start(link: &str, ranks: usize, arguments: &[&str]) -> Vec<Process> {
    let ports = common::ports::free_ports(ranks);
    let peers: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let rank = |rank: usize| {
        let mut command = tpq();
        command
            .args(["bench", "exchange", "--json", "--device", "cuda", "--gpu-link", link])
            .args(arguments)
            .env("TPQ_RANK", rank.to_string())
            .env("TPQ_PEERS", peers.join(","))
            // NCCL takes one GPU twice when it believes in several hosts.
            .env("NCCL_HOSTID", format!("rank{rank}"))
            .env("NCCL_SOCKET_IFNAME", "lo");
        Process::start(command, LIMIT)
    };
    (0..ranks).map(rank).collect()
}

/// Runs to their end; the rows that rank 0 printed, all of them right.
fn rows(mut processes: Vec<Process>) -> usize {
    let finished: Vec<_> = processes.iter_mut().map(Process::finish).collect();
    for (rank, finished) in finished.iter().enumerate() {
        assert!(finished.status.success(), "rank {rank}: {finished:?}");
    }
    let all = &finished[0].stdout;
    let right = all.lines().filter(|row| row.contains("\"wrong\":0}")).count();
    assert_eq!(right, all.lines().count(), "{all}");
    right
}

/// Raw values, and three codecs with two algorithms, for two sizes.
const ROWS: usize = 2 + 3 * 2 * 2;
const CODECS: [&str; 2] = ["--codec", "none,paper,dynamic,rd"];
const SIZES: [&str; 8] = [
    "--min-bytes",
    "2048",
    "--max-bytes",
    "32768",
    "--factor",
    "16",
    "--features",
    "1024",
];
const SHORT: [&str; 4] = ["--seconds", "0", "--algorithm", "one_shot,two_shot"];

#[test]
fn sums_over_every_link_are_those_of_the_memory_transport() {
    for link in LINKS {
        for ranks in [2, 3, 4] {
            let arguments = [&SIZES[..], &SHORT, &CODECS].concat();
            assert_eq!(rows(start(link, ranks, &arguments)), ROWS, "{link}, {ranks} ranks");
        }
    }
}

#[test]
fn graphs_of_exchanges_have_the_same_sums_at_each_replay() {
    for (link, ranks) in [("peer", 3), ("nccl", 2)] {
        let arguments = [&SIZES[..], &SHORT, &CODECS, &["--graph"]].concat();
        assert_eq!(rows(start(link, ranks, &arguments)), ROWS, "{link}");
    }
}

#[test]
fn every_dtype_goes_over_every_link_in_rows_of_odd_length() {
    for link in LINKS {
        for dtype in ["f32", "f16", "bf16"] {
            let odd = [
                "--min-bytes",
                "3000",
                "--max-bytes",
                "9000",
                "--features",
                "517",
                "--dtype",
                dtype,
            ];
            assert!(
                rows(start(link, 2, &[&odd[..], &SHORT, &CODECS].concat())) >= 7,
                "{link}, {dtype}"
            );
        }
    }
}

#[test]
fn kernels_on_the_device_match_the_specification() {
    let mut command = tpq();
    command
        .args(["bench", "codec", "--device", "cuda", "--json", "--tokens", "3"])
        .args(["--features", "131", "--dtype", "bf16,f32,f16", "--ranks", "3"]);
    let finished = Process::start(command, LIMIT).finish();
    assert!(finished.status.success(), "{finished:?}");
    let right = finished.stdout.lines().filter(|row| row.contains("\"wrong\":0}"));
    assert_eq!(right.count(), 3 * 4 * 2, "{}", finished.stdout);
}

#[test]
fn a_killed_rank_ends_the_others_soon_and_is_named() {
    let in_graphs = ["peer", "nccl"].map(|link| (link, &["--graph"][..]));
    for (link, graph) in LINKS.map(|link| (link, &[][..])).into_iter().chain(in_graphs) {
        let sizes = ["--seconds", "2", "--min-bytes", "8192", "--max-bytes", "65536"];
        let mut processes = start(link, 3, &[&sizes[..], graph].concat());
        // Exchanges run: rank 0 has printed the row of the first case, of some dozens.
        while processes[0].stdout().is_empty() {
            assert!(processes[0].left() > Duration::ZERO, "{link}");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(processes.iter_mut().all(|process| !process.has_ended()), "{link}");
        processes[1].signal(Signal::SIGKILL);
        let killed = Instant::now();
        for rank in [0, 2] {
            let finished = processes[rank].finish();
            assert_eq!(finished.status.code(), Some(1), "{link}, rank {rank}: {finished:?}");
            assert!(
                finished.stderr.contains("rank 1"),
                "{link}, rank {rank}: {}",
                finished.stderr
            );
        }
        assert!(killed.elapsed() < Duration::from_secs(15), "{link}");
    }
}

fn config(nonfinite: NonFinite, algorithm: Algorithm) -> ExchangeConfig {
    ExchangeConfig {
        timeout: Duration::from_secs(5),
        nonfinite,
        algorithm,
        ..ExchangeConfig::default()
    }
}

/// Whether NCCL joins threads of one process: not when they share a GPU.
fn has_nccl_in_process() -> bool {
    let has = on_stand_in();
    if !has {
        eprintln!("without NCCL between threads of one process, which takes a GPU once only");
    }
    has
}

/// Links that threads of one process can use.
fn in_process() -> &'static [GpuLink] {
    match has_nccl_in_process() {
        true => &[GpuLink::Nccl, GpuLink::Tcp, GpuLink::Host],
        false => &[GpuLink::Tcp, GpuLink::Host],
    }
}

#[test]
fn the_first_exchange_of_a_site_has_its_calibration() {
    for link in in_process() {
        for round in 0..10 {
            let config = config(NonFinite::Fail, Algorithm::OneShot);
            let sums = ranks(2, *link, config, |rank: &mut Rank| {
                let codec = codec(rank.ranks);
                let sum = rank.all_reduce(round, &codec, &values(rank.rank, 2)).unwrap();
                (sum, rank.expected(&codec, 2))
            });
            for (rank, (sum, expected)) in sums.into_iter().enumerate() {
                assert_eq!(sum, expected, "{link:?}, rank {rank}, site {round}");
            }
        }
    }
}

#[test]
fn nan_fails_on_all_ranks_and_the_next_exchange_is_right() {
    for link in in_process() {
        for algorithm in [Algorithm::OneShot, Algorithm::TwoShot] {
            let outcomes = ranks(3, *link, config(NonFinite::Fail, algorithm), |rank: &mut Rank| {
                let codec = codec(rank.ranks);
                let mut input = values(rank.rank, 4);
                if rank.rank == 2 {
                    input[FEATURES + 3] = f32::NAN;
                }
                let failed = rank.all_reduce(0, &codec, &input).err();
                let sum = rank.all_reduce(0, &codec, &values(rank.rank, 4)).unwrap();
                (failed, sum)
            });
            for (rank, (failed, sum)) in outcomes.iter().enumerate() {
                let failed = failed
                    .as_ref()
                    .unwrap_or_else(|| panic!("{link:?}: rank {rank} saw nothing"));
                assert!(failed.leaves_the_group_usable(), "{link:?}: {failed}");
                assert_eq!(failed.rank(), Some(2), "{link:?}: {failed}");
                assert_eq!(sum, &outcomes[0].1, "{link:?}, {algorithm:?}");
            }
        }
    }
}

#[test]
fn nan_in_a_graph_fails_on_all_ranks_at_each_replay_and_the_group_works_on() {
    if !has_nccl_in_process() {
        return;
    }
    let config = config(NonFinite::Fail, Algorithm::OneShot);
    let outcomes = ranks(3, GpuLink::Nccl, config, |rank: &mut Rank| {
        let codec = codec(rank.ranks);
        let mut input = values(rank.rank, 4);
        let once = |rank: &mut Rank| rank.all_reduce(0, &codec, &values(rank.rank, 4)).unwrap();
        let first = once(rank);
        if rank.rank == 2 {
            input[FEATURES + 3] = f32::NAN;
        }
        let graph = rank.capture(0, &codec, &input).unwrap();
        let failed = [0, 1].map(|_| {
            let error = rank.replay(&graph).unwrap_err();
            (error, once(rank) == first)
        });
        (failed, first == rank.expected(&codec, 4))
    });
    for (failed, right) in outcomes {
        assert!(right);
        for (error, same) in failed {
            assert_eq!(error, CudaError::NonFinite { ranks: vec![2] });
            assert!(same, "after {error}");
        }
    }
}

#[test]
fn nan_goes_as_raw_values_where_that_is_configured() {
    for link in in_process() {
        let config = config(NonFinite::Fallback, Algorithm::OneShot);
        let sums = ranks(2, *link, config, |rank: &mut Rank| {
            let input = |rank: usize| {
                let mut input = values(rank, 3);
                if rank == 1 {
                    input[7] = f32::INFINITY;
                }
                input
            };
            let sum = rank.all_reduce(0, &codec(rank.ranks), &input(rank.rank)).unwrap();
            let exact: Vec<f32> = input(0).iter().zip(input(1)).map(|(a, b)| a + b).collect();
            (sum, exact)
        });
        for (sum, exact) in sums {
            assert_eq!(sum, exact, "{link:?}");
        }
    }
}

#[test]
fn a_rank_that_does_not_come_ends_the_wait_in_time() {
    for link in in_process() {
        let config = ExchangeConfig {
            timeout: Duration::from_secs(1),
            ..config(NonFinite::Fail, Algorithm::OneShot)
        };
        let outcomes = ranks(2, *link, config, |rank: &mut Rank| {
            if rank.rank == 1 {
                // Joined, and busy with something else.
                std::thread::sleep(Duration::from_secs(6));
                return None;
            }
            let started = Instant::now();
            let error = rank.all_reduce(0, &codec(rank.ranks), &values(0, 2)).err();
            Some((error, started.elapsed()))
        });
        let (error, waited) = outcomes.into_iter().flatten().next().unwrap();
        assert!(error.is_some(), "{link:?}");
        assert!(waited < Duration::from_secs(5), "{link:?}: {waited:?}");
    }
}

#[test]
fn ranks_at_different_sites_are_told_so() {
    if !has_nccl_in_process() {
        return;
    }
    let config = config(NonFinite::Fail, Algorithm::OneShot);
    let outcomes = ranks(2, GpuLink::Nccl, config, |rank: &mut Rank| {
        let codec = NoCodec::new(FEATURES);
        let site = rank.rank as u32;
        rank.all_reduce(site, &codec, &values(rank.rank, 2)).unwrap_err()
    });
    for (rank, error) in outcomes.into_iter().enumerate() {
        assert_eq!(error, CudaError::Mismatched { ranks: vec![1 - rank] });
    }
}

#[test]
fn a_payload_over_tcp_that_no_encoder_sends_is_reported_by_rank() {
    let config = config(NonFinite::Fail, Algorithm::OneShot);
    let outcomes = ranks(2, GpuLink::Tcp, config, |rank: &mut Rank| {
        let codec = codec(rank.ranks);
        let input = values(rank.rank, 2);
        match rank.rank {
            0 => rank.all_reduce(0, &codec, &input),
            _ => rank.all_reduce(0, &Forged(codec), &input),
        }
    });
    assert_eq!(outcomes[0], Err(CudaError::Malformed { ranks: vec![1] }));
    assert!(outcomes[1].is_ok(), "{:?}", outcomes[1]);
}

#[test]
fn an_exchange_that_a_graph_cannot_repeat_is_not_captured_and_the_group_works_on() {
    for link in in_process() {
        for nonfinite in [NonFinite::Fail, NonFinite::Fallback] {
            let config = config(nonfinite, Algorithm::OneShot);
            let outcomes = ranks(2, *link, config, |rank: &mut Rank| {
                let codec = codec(rank.ranks);
                let mut refusals = Vec::new();
                let mut capture = |rank: &mut Rank, tokens| {
                    let captured = rank.capture(0, &codec, &values(rank.rank, tokens));
                    refusals.push(captured.err().map(|error| error.to_string()));
                };
                capture(rank, 2);
                let sum = rank.all_reduce(0, &codec, &values(rank.rank, 2)).unwrap();
                assert_eq!(sum, rank.expected(&codec, 2));
                capture(rank, 2);
                capture(rank, 100);
                let sum = rank.all_reduce(0, &codec, &values(rank.rank, 2)).unwrap();
                assert_eq!(sum, rank.expected(&codec, 2));
                refusals
            });
            let expected = match (link, nonfinite) {
                (GpuLink::Nccl, NonFinite::Fail) => [Some("has not exchanged before"), None, None],
                (GpuLink::Nccl, _) => [Some("has not exchanged before"), Some("fallback"), Some("fallback")],
                _ => [
                    Some("has not exchanged before"),
                    Some("host's memory"),
                    Some("host's memory"),
                ],
            };
            for refusals in outcomes {
                for (refusal, expected) in refusals.iter().zip(expected) {
                    let refusal = refusal.as_deref();
                    assert_eq!(
                        refusal.is_some(),
                        expected.is_some(),
                        "{link:?}, {nonfinite:?}: {refusal:?}"
                    );
                    assert!(
                        refusal.unwrap_or("").contains(expected.unwrap_or("")),
                        "{link:?}: {refusal:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_graph_over_nccl_is_right_after_longer_messages_and_beside_exchanges_without_one() {
    if !has_nccl_in_process() {
        return;
    }
    // NCCL is warmed up with 8 MiB: this is longer than any message before, and raw values go as two-shot then.
    const LONG: usize = (9 << 20) / (4 * FEATURES);
    let config = config(NonFinite::Fail, Algorithm::Auto);
    let outcomes = ranks(3, GpuLink::Nccl, config, |rank: &mut Rank| {
        let codec = NoCodec::new(FEATURES);
        let once = |rank: &mut Rank, tokens| rank.all_reduce(0, &codec, &values(rank.rank, tokens)).unwrap();
        let mut sums = vec![(2, once(rank, 2))];
        let refused = rank.capture(0, &codec, &values(rank.rank, LONG)).err();
        let mut graphs = Vec::new();
        for tokens in [2, LONG, 5] {
            sums.push((tokens, once(rank, tokens)));
            graphs.push((tokens, rank.capture(0, &codec, &values(rank.rank, tokens)).unwrap()));
            for (tokens, graph) in &graphs {
                sums.push((*tokens, rank.replay(graph).unwrap()));
            }
        }
        let expected = |(tokens, sum)| (sum == rank.expected(&codec, tokens), tokens);
        (refused, sums.into_iter().map(expected).collect::<Vec<_>>())
    });
    for (refused, sums) in outcomes {
        assert!(refused.unwrap().to_string().contains("more bytes"));
        assert!(sums.iter().all(|(right, _)| *right), "{sums:?}");
    }
}

#[test]
fn ranks_have_a_gpu_each_where_there_are_as_many() {
    if !on_stand_in() {
        eprintln!("needs the eight GPUs of the stand-in");
        return;
    }
    let gpus = |ranks: &str, visible: Option<&str>| {
        let mut command = tpq();
        let script = "echo ${CUDA_VISIBLE_DEVICES-all}";
        command.args(["launch", "-n", ranks, "--", "sh", "-c", script]);
        match visible {
            Some(visible) => command.env("CUDA_VISIBLE_DEVICES", visible),
            None => command.env_remove("CUDA_VISIBLE_DEVICES"),
        };
        let finished = Process::start(command, LIMIT).finish();
        assert!(finished.status.success(), "{finished:?}");
        let mut lines: Vec<_> = finished.stdout.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(gpus("2", None), ["[rank 0] 0", "[rank 1] 1"]);
    assert_eq!(gpus("2", Some("5, 3,1")), ["[rank 0] 5", "[rank 1] 3"]);
    assert_eq!(gpus("2", Some("6")), ["[rank 0] 6", "[rank 1] 6"]);
    assert_eq!(gpus("1", None), ["[rank 0] all"]);
}

#[test]
fn rows_of_no_tokens_are_no_exchange() {
    for link in in_process() {
        let config = config(NonFinite::Fail, Algorithm::OneShot);
        let sums = ranks(2, *link, config, |rank: &mut Rank| {
            rank.all_reduce(0, &codec(rank.ranks), &[]).unwrap()
        });
        assert!(sums.iter().all(Vec::is_empty), "{link:?}");
    }
}
