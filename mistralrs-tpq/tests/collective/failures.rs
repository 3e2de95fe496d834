//! What every transport must do when a rank leaves, hangs, or is somewhere else.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use mistralrs_tpq::codec::{Codec, Values, ValuesMut};
use mistralrs_tpq::exchange::{Algorithm, Communicator, ExchangeConfig, ExchangeError, ExchangeStats, HeaderField};
use mistralrs_tpq::transport::memory::{group_with, Fault, FaultKind};
use mistralrs_tpq::transport::{Patience, RecvOp, SendOp, Transport, TransportError};

use crate::coarse::{coarse, Coarse};
use crate::group::{group, on_all, Kind, PATIENCE};
use crate::{config, partial, site};

/// Far below the exchange's own deadline: the loss was noticed, not waited out.
const AT_ONCE: Duration = Duration::from_secs(2);

fn reduce(
    communicator: &Communicator,
    id: u32,
    codec: &dyn Codec,
    values: &[f32],
) -> Result<ExchangeStats, ExchangeError> {
    let mut output = vec![0.0; values.len()];
    communicator.all_reduce(&site(id), codec, Values::F32(values), ValuesMut::F32(&mut output))
}

fn assert_blames(error: &ExchangeError, rank: usize) {
    assert!(
        error.rank() == Some(rank) || error.to_string().contains(&format!("rank {rank} ")),
        "{error}"
    );
}

pub fn a_rank_that_leaves_is_named_by_all_others_at_once(kind: Kind) {
    for world_size in [2, 4, 8] {
        for algorithm in [Algorithm::OneShot, Algorithm::Lossless] {
            let leaver = world_size - 1;
            // A rank that is told of the loss while it still adds up the first exchange fails there.
            let first_is_over = Barrier::new(world_size);
            on_all(group(kind, world_size), |rank, transport| {
                let communicator = Communicator::new(Arc::clone(&transport), config(algorithm));
                let values = partial(rank, 30_000);
                reduce(&communicator, 0, &coarse(30_000), &values).unwrap();
                first_is_over.wait();
                if rank == leaver {
                    transport.close();
                    return;
                }
                let start = Instant::now();
                let error = reduce(&communicator, 1, &coarse(30_000), &values).unwrap_err();
                assert!(start.elapsed() < AT_ONCE, "{:?}: {error}", start.elapsed());
                assert_blames(&error, leaver);
                assert!(error.to_string().contains("model.layers.1."), "{error}");
            });
        }
    }
}

pub fn a_silent_rank_is_a_timeout_that_names_it_and_the_time(kind: Kind) {
    on_all(group(kind, 3), |rank, transport| {
        let timeout = Duration::from_millis(300);
        let short = ExchangeConfig {
            timeout,
            ..config(Algorithm::Auto)
        };
        let communicator = Communicator::new(transport, short);
        if rank == 1 {
            std::thread::sleep(timeout * 3);
            return;
        }
        let start = Instant::now();
        let error = reduce(&communicator, 0, &coarse(64), &partial(rank, 64)).unwrap_err();
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        assert_eq!(error.rank(), Some(1), "{error}");
        match error {
            ExchangeError::Transport {
                source: TransportError::Timeout { waited, .. },
                ..
            } => {
                assert!(waited >= timeout && start.elapsed() >= timeout);
            }
            // The other waiting rank was a little earlier, and its report came first.
            other => assert!(other.to_string().contains("nothing moved for "), "{other}"),
        }
    });
}

pub fn ranks_at_different_sites_get_an_error_that_names_both(kind: Kind) {
    on_all(group(kind, 3), |rank, transport| {
        let communicator = Communicator::new(transport, config(Algorithm::Auto));
        let error = reduce(
            &communicator,
            if rank == 2 { 7 } else { 3 },
            &coarse(64),
            &partial(rank, 64),
        )
        .unwrap_err();
        if let ExchangeError::Mismatch {
            field, expected, got, ..
        } = &error
        {
            assert_eq!(*field, HeaderField::Site);
            assert!([(3, 7), (7, 3)].contains(&(*expected, *got)));
        }
        // A rank may hear of it from another one first; either way it learns who and what.
        let text = error.to_string();
        assert!(text.contains("sent site 7") || text.contains("sent site 3"), "{text}");
    });
}

pub fn ranks_with_different_shapes_dtypes_or_codecs_get_an_error(kind: Kind) {
    let other = || Coarse {
        features: 64,
        name: "other",
        tag: 9,
    };
    type Odd = fn(&Communicator, Coarse) -> Result<ExchangeStats, ExchangeError>;
    let cases: [(&str, Odd); 3] = [
        ("tokens", |communicator, _| {
            reduce(communicator, 0, &coarse(64), &[1.0; 128])
        }),
        ("codec tag", |communicator, other| {
            reduce(communicator, 0, &other, &[1.0; 64])
        }),
        ("dtype", |communicator, _| {
            let values = [half::bf16::ONE; 64];
            let mut output = values;
            communicator.all_reduce(
                &site(0),
                &coarse(64),
                Values::Bf16(&values),
                ValuesMut::Bf16(&mut output),
            )
        }),
    ];
    for (word, odd) in cases {
        on_all(group(kind, 2), |rank, transport| {
            let communicator = Communicator::new(transport, config(Algorithm::OneShot));
            let result = match rank {
                0 => reduce(&communicator, 0, &coarse(64), &[1.0; 64]),
                _ => odd(&communicator, other()),
            };
            let error = result.unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        });
    }
}

pub fn a_second_exchange_after_a_failure_fails_at_once_with_the_first_error(kind: Kind) {
    on_all(group(kind, 2), |rank, transport| {
        if rank == 1 {
            transport.close();
            return;
        }
        let communicator = Communicator::new(Arc::clone(&transport), config(Algorithm::Auto));
        let first = reduce(&communicator, 0, &coarse(64), &partial(0, 64)).unwrap_err();
        let start = Instant::now();
        assert_eq!(
            reduce(&communicator, 0, &coarse(64), &partial(0, 64)).unwrap_err(),
            first
        );
        let ExchangeError::Transport { source, .. } = first else {
            panic!("{first}")
        };
        assert_eq!(transport.send_message(1, b"x").unwrap_err(), source);
        assert_eq!(
            transport.recv_message(1, Patience::Total(PATIENCE)).unwrap_err(),
            source
        );
        assert!(start.elapsed() < Duration::from_millis(200));
    });
}

pub fn closing_wakes_a_waiting_receiver(kind: Kind) {
    on_all(group(kind, 2), |rank, transport| {
        if rank == 1 {
            // Stays until the barrier: rank 0 is woken by its own close.
            return;
        }
        std::thread::scope(|scope| {
            let message = scope.spawn(|| transport.recv_message(1, Patience::Total(PATIENCE)));
            let transfer = scope.spawn(|| {
                let (mut header, mut payload) = ([0; 32], [0; 64]);
                let mut recvs = [RecvOp {
                    from: 1,
                    header: &mut header,
                    payload: &mut payload,
                }];
                transport.transfer(&[], &mut recvs, PATIENCE, &mut |_| Ok(()))
            });
            std::thread::sleep(Duration::from_millis(50));
            let start = Instant::now();
            transport.close();
            assert_eq!(message.join().unwrap().unwrap_err(), TransportError::Closed { rank: 0 });
            assert_eq!(
                transfer.join().unwrap().unwrap_err(),
                TransportError::Closed { rank: 0 }
            );
            assert!(start.elapsed() < AT_ONCE);
        });
    });
}

pub fn a_message_from_a_rank_that_left_is_an_error_that_names_it(kind: Kind) {
    on_all(group(kind, 3), |rank, transport| {
        match rank {
            2 => {
                transport.send_message(0, b"last words").unwrap();
                transport.close();
            }
            0 => {
                assert_eq!(
                    transport.recv_message(2, Patience::Total(PATIENCE)).unwrap(),
                    b"last words"
                );
                let start = Instant::now();
                let error = transport.recv_message(2, Patience::Silence(PATIENCE)).unwrap_err();
                assert!(matches!(error, TransportError::PeerLost { rank: 2, .. }), "{error}");
                assert!(start.elapsed() < AT_ONCE);
            }
            _ => {}
        };
    });
}

pub fn operations_that_do_not_fit_the_group_are_refused_and_harm_nothing(kind: Kind) {
    on_all(group(kind, 2), |rank, transport| {
        let peer = 1 - rank;
        let twice = [SendOp::new(peer, [b"a", b"b"]); 2];
        let bad = [SendOp::new(2, [b"a", b"b"])];
        let own = [SendOp::new(rank, [b"a", b"b"])];
        for sends in [&twice[..], &bad[..], &own[..]] {
            let error = transport
                .transfer(sends, &mut [], PATIENCE, &mut |_| Ok(()))
                .unwrap_err();
            assert!(matches!(error, TransportError::ApiMisuse { .. }), "{error}");
        }
        assert!(
            transport.send_message(99, b"").is_err() && transport.recv_message(99, Patience::Total(PATIENCE)).is_err()
        );
        let communicator = Communicator::new(transport, config(Algorithm::Auto));
        reduce(&communicator, 0, &coarse(64), &partial(rank, 64)).unwrap();
    });
}

pub fn shapes_that_do_not_fit_are_refused_and_harm_nothing(kind: Kind) {
    on_all(group(kind, 2), |rank, transport| {
        let communicator = Communicator::new(transport, config(Algorithm::Auto));
        let error = reduce(&communicator, 0, &coarse(64), &[1.0; 65]).unwrap_err();
        assert_eq!(
            error,
            ExchangeError::ApiMisuse {
                what: "65 elements are not rows of 64".into()
            }
        );
        let mut short = [0.0; 32];
        let values = Values::F32(&[1.0; 64]);
        assert!(communicator
            .all_reduce(&site(0), &coarse(64), values, ValuesMut::F32(&mut short))
            .is_err());
        reduce(&communicator, 0, &coarse(64), &partial(rank, 64)).unwrap();
    });
}

/// Three ranks in memory, of which one frame goes wrong; the errors in rank order.
fn with_fault(kind: FaultKind, timeout: Duration) -> Vec<Result<ExchangeStats, ExchangeError>> {
    let fault = Fault {
        from: 2,
        to: 0,
        frame: 1,
        kind,
    };
    let group = group_with(3, vec![fault])
        .into_iter()
        .map(|t| Arc::new(t) as Arc<dyn Transport>)
        .collect();
    on_all(group, |rank, transport| {
        let communicator = Communicator::new(
            transport,
            ExchangeConfig {
                timeout,
                ..config(Algorithm::Auto)
            },
        );
        reduce(&communicator, 0, &coarse(64), &partial(rank, 64)).unwrap();
        reduce(&communicator, 1, &coarse(64), &partial(rank, 64))
    })
}

#[test]
fn a_frame_that_is_late_is_no_error() {
    let results = with_fault(FaultKind::Delay(Duration::from_millis(100)), Duration::from_secs(5));
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

#[test]
fn a_frame_that_is_cut_or_never_comes_is_a_timeout_that_names_its_sender() {
    for kind in [FaultKind::Drop, FaultKind::Truncate(10), FaultKind::Truncate(40)] {
        let results = with_fault(kind, Duration::from_millis(200));
        let error = results[0].as_ref().unwrap_err();
        assert!(
            matches!(
                error,
                ExchangeError::Transport {
                    source: TransportError::Timeout { .. },
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(error.rank(), Some(2));
    }
}

#[test]
fn a_corrupt_header_is_refused_before_its_payload_is_waited_for() {
    // Offsets of the header's fields: magic, kind, codec, dtype, rank, sequence, site, tokens, length, part.
    for at in [0, 1, 2, 3, 4, 6, 8, 16, 20, 24, 28] {
        let start = Instant::now();
        let results = with_fault(FaultKind::Corrupt(at), PATIENCE);
        let error = results[0].as_ref().unwrap_err();
        assert_eq!(error.rank(), Some(2), "byte {at}: {error}");
        assert!(
            matches!(
                error,
                ExchangeError::Mismatch { .. } | ExchangeError::PeerMisbehaved { .. }
            ),
            "byte {at}: {error}"
        );
        assert!(start.elapsed() < AT_ONCE);
    }
}

#[test]
fn a_rank_that_dies_mid_exchange_is_named_by_all_others() {
    let results = with_fault(FaultKind::Die, PATIENCE);
    for error in results[..2].iter().map(|result| result.as_ref().unwrap_err()) {
        assert_eq!(error.rank(), Some(2), "{error}");
    }
}
