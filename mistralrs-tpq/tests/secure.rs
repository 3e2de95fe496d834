//! What an attacker on the network can and cannot do: read, change, repeat, cut, join.

#[path = "collective/coarse.rs"]
#[allow(dead_code)]
mod coarse;
#[path = "collective/group.rs"]
#[allow(dead_code)]
mod group;
#[path = "secure/proxy.rs"]
mod proxy;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mistralrs_tpq::codec::{Values, ValuesMut};
use mistralrs_tpq::exchange::{Communicator, ExchangeConfig, Site};
use mistralrs_tpq::transport::tcp::{JoinError, MeshConfig, Secret, TcpMesh};
use mistralrs_tpq::transport::{Patience, Transport, TransportError};
use mistralrs_tpq::wire::HelloField;

use coarse::coarse;
use group::{identity, on_all, tcp_group, PATIENCE};
use proxy::{Flow, Proxy};

const PROMPT: &[u8] = b"the prompt that nobody else may read";
const FEATURES: usize = 1024;

fn secret(letter: &str) -> Option<Secret> {
    Some(Secret::new(letter.repeat(40).as_bytes()).unwrap())
}

fn config(rank: usize, peers: &[String]) -> MeshConfig {
    MeshConfig {
        secret: secret("s"),
        connect_timeout: PATIENCE / 2,
        timeout: Duration::from_secs(3),
        ..MeshConfig::new(rank, peers.to_vec(), identity())
    }
}

/// Two ranks that talk through a relay.
struct Pair {
    ranks: Vec<Arc<dyn Transport>>,
    proxy: Proxy,
}

impl Pair {
    fn join(change: impl Fn(&mut MeshConfig) + Sync) -> Self {
        let listeners: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let proxy = Proxy::start(listeners[0].local_addr().unwrap());
        let peers = [
            proxy.address.to_string(),
            listeners[1].local_addr().unwrap().to_string(),
        ];
        let ranks = thread::scope(|scope| {
            let (peers, change) = (&peers, &change);
            let join = |(rank, listener)| {
                scope.spawn(move || {
                    let mut config = config(rank, peers);
                    change(&mut config);
                    Arc::new(TcpMesh::connect_on(listener, config).unwrap()) as Arc<dyn Transport>
                })
            };
            let threads: Vec<_> = listeners.into_iter().enumerate().map(join).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        Self { ranks, proxy }
    }

    fn exchange(&self) -> Vec<Result<Vec<f32>, String>> {
        on_all(self.ranks.clone(), |rank, transport| {
            // A byte that is missing shows only in the silence after the others.
            let config = ExchangeConfig {
                timeout: Duration::from_secs(2),
                ..ExchangeConfig::default()
            };
            all_reduce(&Communicator::new(transport, config), rank)
        })
    }
}

fn all_reduce(communicator: &Communicator, rank: usize) -> Result<Vec<f32>, String> {
    let site = Site {
        id: 7,
        name: "layer".into(),
    };
    let partial: Vec<f32> = (0..FEATURES)
        .map(|i| ((i * 31 + rank * 17) % 101) as f32 - 50.0)
        .collect();
    let mut sum = vec![0.0; FEATURES];
    communicator
        .all_reduce(
            &site,
            &coarse(FEATURES),
            Values::F32(&partial),
            ValuesMut::F32(&mut sum),
        )
        .map(|_| sum)
        .map_err(|error| error.to_string())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn encrypted_ranks_get_the_same_sum_as_plain_ones() {
    let sums = |encrypt: bool, ranks: usize| {
        let group = tcp_group(ranks, |config| {
            (config.secret, config.encrypt) = (secret("s"), encrypt);
        });
        on_all(group, |rank, transport| {
            let communicator = Communicator::new(transport, ExchangeConfig::default());
            (0..20)
                .map(|_| all_reduce(&communicator, rank).unwrap())
                .collect::<Vec<_>>()
        })
    };
    for ranks in [2, 4] {
        assert_eq!(sums(true, ranks), sums(false, ranks));
    }
}

#[test]
fn a_prompt_is_not_on_the_wire_with_a_secret_and_partial_sums_are_not_with_encrypt() {
    for (has_secret, encrypt) in [(false, false), (true, false), (true, true)] {
        let pair = Pair::join(|config| {
            config.secret = config.secret.take().filter(|_| has_secret);
            config.encrypt = encrypt;
        });
        pair.ranks[0].send_message(1, PROMPT).unwrap();
        assert_eq!(
            pair.ranks[1].recv_message(0, Patience::Total(PATIENCE)).unwrap(),
            PROMPT
        );
        let sums = pair.exchange();
        assert!(sums[0].is_ok() && sums[0] == sums[1]);
        // Without a secret it is there, so the test would see it.
        assert_eq!(contains(&pair.proxy.bytes(|_| true), PROMPT), !has_secret);
        let site = 7_u32.to_le_bytes();
        assert_eq!(contains(&pair.proxy.bytes(|flow| flow.data), &site), !encrypt);
    }
}

#[test]
fn changed_repeated_dropped_and_foreign_bytes_on_an_encrypted_link_end_the_group_and_name_the_rank() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 5] = [
        ("a flipped bit", |bytes| *bytes.last_mut().unwrap() ^= 1),
        ("a repeated piece", |bytes| bytes.extend(bytes.clone())),
        ("a dropped byte", |bytes| {
            bytes.remove(5);
        }),
        ("an oversized record", |bytes| bytes[..2].fill(0xff)),
        ("an empty record", |bytes| bytes[..2].fill(0)),
    ];
    for (what, change) in changes {
        for data in [true, false] {
            let pair = Pair::join(|config| config.encrypt = true);
            pair.proxy.tamper(move |flow, bytes| {
                if flow
                    == (Flow {
                        data,
                        from_dialer: false,
                    })
                {
                    change(bytes);
                }
            });
            let start = Instant::now();
            let errors: Vec<String> = if data {
                // What was repeated is found when the next one is due.
                let first = pair.exchange();
                let results = if first.iter().all(Result::is_ok) {
                    pair.exchange()
                } else {
                    first
                };
                results.into_iter().filter_map(Result::err).collect()
            } else {
                pair.ranks[0].send_message(1, PROMPT).unwrap();
                pair.ranks[0].send_message(1, PROMPT).ok();
                let receive = || pair.ranks[1].recv_message(0, Patience::Total(PATIENCE));
                [receive(), receive(), receive()]
                    .into_iter()
                    .filter_map(|result| result.err().map(|error| error.to_string()))
                    .collect()
            };
            assert!(
                errors.iter().any(|error| error.contains("rank 0")),
                "{what}: {errors:?}"
            );
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{what}: {:?}",
                start.elapsed()
            );
        }
    }
}

#[test]
fn a_cut_connection_is_reported_by_both_ranks() {
    let pair = Pair::join(|config| config.encrypt = true);
    pair.proxy.tamper(|_, bytes| bytes.clear());
    let start = Instant::now();
    let errors = pair.exchange();
    assert!(errors.iter().all(Result::is_err), "{errors:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_slow_link_is_no_error_unless_nothing_moves_for_the_timeout() {
    for (delay, fails) in [(300, false), (4000, true)] {
        let pair = Pair::join(|config| config.encrypt = true);
        pair.proxy
            .tamper(move |flow, _| thread::sleep(Duration::from_millis(if flow.data { delay } else { 0 })));
        let start = Instant::now();
        let results = pair.exchange();
        if fails {
            assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
            let errors: Vec<String> = results.into_iter().filter_map(Result::err).collect();
            let named = |rank: &str| errors.iter().any(|error| error.contains(rank));
            assert!(named("rank 0") || named("rank 1"), "{errors:?}");
        } else {
            assert!(results[0].is_ok() && results[0] == results[1], "{results:?}");
        }
    }
}

#[test]
fn a_rank_that_goes_silent_while_nobody_waits_for_it_ends_the_group() {
    let pair = Pair::join(|config| {
        (config.timeout, config.heartbeat) = (Duration::from_secs(1), Duration::from_millis(50));
    });
    pair.proxy.tamper(|flow, bytes| {
        if !flow.from_dialer {
            bytes.clear();
        }
    });
    let start = Instant::now();
    while pair.ranks[1].failure().is_none() {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(10));
    }
    let error = pair.ranks[1].failure().unwrap();
    assert!(
        matches!(
            error,
            TransportError::NoMessage {
                rank: 0,
                silent: true,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_rank_with_another_secret_or_none_is_refused_and_the_right_one_still_joins() {
    let listeners: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<String> = listeners[..2]
        .iter()
        .map(|l| l.local_addr().unwrap().to_string())
        .collect();
    let mut listeners = listeners.into_iter();
    let mut next = || listeners.next().unwrap();
    let first = {
        let (listener, config) = (next(), config(0, &peers));
        thread::spawn(move || TcpMesh::connect_on(listener, config))
    };
    let right = next();
    let wrong = next();
    for (theirs, got) in [(secret("x"), "another secret"), (None, "no secret")] {
        let listener = wrong.try_clone().unwrap();
        let start = Instant::now();
        let result = TcpMesh::connect_on(
            listener,
            MeshConfig {
                secret: theirs,
                ..config(1, &peers)
            },
        );
        let Err(JoinError::Refused(refusal)) = result else {
            panic!("{got}: {result:?}")
        };
        assert_eq!((refusal.field, refusal.got.as_str()), (HelloField::Secret, got));
        assert!(refusal.to_string().contains("TPQ_SECRET_FILE"), "{refusal}");
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    let second = TcpMesh::connect_on(right, config(1, &peers)).unwrap();
    let first = first.join().unwrap().unwrap();
    second.send_message(0, b"hi").unwrap();
    assert_eq!(first.recv_message(1, Patience::Total(PATIENCE)).unwrap(), b"hi");
}

#[test]
fn a_secret_on_one_side_only_is_an_error_that_both_report() {
    let listeners: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let threads: Vec<_> = listeners
        .into_iter()
        .zip([None, secret("s")])
        .enumerate()
        .map(|(rank, (listener, secret))| {
            let config = MeshConfig {
                secret,
                ..config(rank, &peers)
            };
            thread::spawn(move || TcpMesh::connect_on(listener, config).unwrap_err().to_string())
        })
        .collect();
    for thread in threads {
        let text = thread.join().unwrap();
        assert!(
            text.starts_with("rank 0 expected no secret, rank 1 has a secret"),
            "{text}"
        );
    }
}

#[test]
fn an_absent_rank_is_not_confused_with_a_stranger_who_knocked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peers = [listener.local_addr().unwrap().to_string(), "127.0.0.1:9".to_owned()];
    let waiting = thread::spawn({
        let config = MeshConfig {
            connect_timeout: Duration::from_millis(500),
            ..config(0, &peers)
        };
        move || TcpMesh::connect_on(listener, config).unwrap_err().to_string()
    });
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let wrong = MeshConfig {
        secret: secret("x"),
        ..config(1, &peers)
    };
    TcpMesh::connect_on(stranger, wrong).unwrap_err();
    let text = waiting.join().unwrap();
    assert!(text.contains("rank 1") && text.contains("has another secret"), "{text}");
}

#[test]
fn a_recorded_join_that_is_sent_again_neither_joins_nor_keeps_the_rank_out() {
    let recorded = Pair::join(|_| {}).proxy.bytes(|flow| flow.from_dialer && flow.data);
    assert!(recorded.starts_with(b"TPQN") && recorded.len() > 64 + 2 + 16);

    let listeners: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let mut listeners = listeners.into_iter();
    let first = {
        let (listener, config) = (listeners.next().unwrap(), config(0, &peers));
        thread::spawn(move || TcpMesh::connect_on(listener, config))
    };
    let mut replay = TcpStream::connect(&peers[0]).unwrap();
    replay.write_all(&recorded).unwrap();
    replay.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = Vec::new();
    // It answers the handshake, because only the hello shows that the sender is alive, and then hangs up.
    let _ = replay.read_to_end(&mut answer);
    assert_eq!(answer.len(), 64, "a replayed hello was answered");
    let second = TcpMesh::connect_on(listeners.next().unwrap(), config(1, &peers)).unwrap();
    let first = first.join().unwrap().unwrap();
    second.send_message(0, b"hi").unwrap();
    assert_eq!(first.recv_message(1, Patience::Total(PATIENCE)).unwrap(), b"hi");
}

#[test]
fn encryption_without_a_secret_is_refused() {
    let peers = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
    let error = TcpMesh::connect(MeshConfig {
        secret: None,
        encrypt: true,
        ..config(0, &peers)
    })
    .unwrap_err();
    assert_eq!(error, JoinError::EncryptWithoutSecret);
}
