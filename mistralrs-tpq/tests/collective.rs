//! One suite over every transport: sums are right, all ranks have the same bits, and whatever goes wrong is an error
//! that names the rank.

#[path = "collective/algorithms.rs"]
mod algorithms;
#[path = "collective/batch.rs"]
mod batch;
#[path = "collective/coarse.rs"]
mod coarse;
#[path = "collective/failures.rs"]
mod failures;
#[path = "collective/group.rs"]
mod group;

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use mistralrs_tpq::codec::{Codec, Dtype, Values, ValuesMut};
use mistralrs_tpq::exchange::{Algorithm, Communicator, ExchangeConfig, ExchangeError, ExchangeStats, NonFinite, Site};
use mistralrs_tpq::transport::{Patience, RecvOp, SendOp};

use coarse::{coarse, quantize, to_f32};
use group::{group, on_all, Kind, PATIENCE};

const WORLD_SIZES: [usize; 5] = [2, 3, 4, 5, 8];

/// Odd sizes, one token, none, fewer elements than ranks, and enough for the two-shot form of the lossless path.
const SHAPES: [(usize, usize); 7] = [(3, 37), (1, 64), (0, 64), (1, 1), (2, 3), (129, 257), (5, 4096)];

pub fn site(id: u32) -> Site {
    Site {
        id,
        name: Arc::from(format!("model.layers.{id}.mlp.down_proj")),
    }
}

/// A rank's partial sum: deterministic, different per rank, beyond the codec's range now and then.
pub fn partial(rank: usize, len: usize) -> Vec<f32> {
    let mut state = rank as u32 * 0x9E37 + 12345;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 * 36.0 - 18.0
    };
    (0..len).map(|_| next()).collect()
}

/// Owned elements of one dtype.
#[derive(Debug, Clone)]
enum Owned {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Owned {
    fn new(dtype: Dtype, values: &[f32]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(values.to_vec()),
            Dtype::Bf16 => Self::Bf16(values.iter().map(|x| bf16::from_f32(*x)).collect()),
            Dtype::F16 => Self::F16(values.iter().map(|x| f16::from_f32(*x)).collect()),
        }
    }

    fn values(&self) -> Values<'_> {
        match self {
            Self::F32(v) => Values::F32(v),
            Self::Bf16(v) => Values::Bf16(v),
            Self::F16(v) => Values::F16(v),
        }
    }

    fn values_mut(&mut self) -> ValuesMut<'_> {
        match self {
            Self::F32(v) => ValuesMut::F32(v),
            Self::Bf16(v) => ValuesMut::Bf16(v),
            Self::F16(v) => ValuesMut::F16(v),
        }
    }

    /// The bits, so that -0.0 and NaN count as what they are.
    fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(v) => v.iter().map(|x| x.to_bits()).collect(),
            Self::Bf16(v) => v.iter().map(|x| u32::from(x.to_bits())).collect(),
            Self::F16(v) => v.iter().map(|x| u32::from(x.to_bits())).collect(),
        }
    }
}

pub fn config(algorithm: Algorithm) -> ExchangeConfig {
    ExchangeConfig {
        timeout: PATIENCE / 4,
        algorithm,
        ..ExchangeConfig::default()
    }
}

fn reduce(
    communicator: &Communicator,
    id: u32,
    codec: &dyn Codec,
    input: &Owned,
) -> Result<(Owned, ExchangeStats), ExchangeError> {
    let mut output = input.clone();
    let stats = communicator.all_reduce(&site(id), codec, input.values(), output.values_mut())?;
    Ok((output, stats))
}

/// The sum that the definition asks for: in rank order, in f32, from zero, rounded once.
fn reference(dtype: Dtype, inputs: &[Owned], lossy: bool) -> Vec<u32> {
    let mut sum = vec![0.0_f32; inputs[0].values().len()];
    for input in inputs {
        let values = to_f32(input.values());
        let dequantized = values
            .iter()
            .map(|x| if lossy { f32::from(quantize(*x)) / 8.0 } else { *x });
        sum.iter_mut().zip(dequantized).for_each(|(sum, x)| *sum += x);
    }
    Owned::new(dtype, &sum).bits()
}

fn inputs(world_size: usize, dtype: Dtype, len: usize) -> Vec<Owned> {
    (0..world_size)
        .map(|rank| Owned::new(dtype, &partial(rank, len)))
        .collect()
}

fn sums_match_the_reference(kind: Kind, algorithm: Algorithm, lossy: bool) {
    for world_size in WORLD_SIZES {
        let results = on_all(group(kind, world_size), |rank, transport| {
            let communicator = Communicator::new(transport, config(algorithm));
            let mut results = Vec::new();
            for (i, (tokens, features)) in SHAPES.into_iter().enumerate() {
                for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                    let input = inputs(world_size, dtype, tokens * features).swap_remove(rank);
                    results.push(
                        reduce(&communicator, i as u32, &coarse(features), &input)
                            .unwrap()
                            .0
                            .bits(),
                    );
                }
            }
            results
        });
        let mut expected = Vec::new();
        for (tokens, features) in SHAPES {
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                expected.push(reference(dtype, &inputs(world_size, dtype, tokens * features), lossy));
            }
        }
        for (rank, result) in results.iter().enumerate() {
            assert!(
                *result == expected,
                "rank {rank} of {world_size} differs from the reference"
            );
        }
    }
}

fn one_shot_sums_match_the_reference_on_every_rank(kind: Kind) {
    sums_match_the_reference(kind, Algorithm::OneShot, true);
}

fn lossless_sums_match_the_reference_on_every_rank(kind: Kind) {
    sums_match_the_reference(kind, Algorithm::Lossless, false);
}

fn many_exchanges_of_alternating_shapes_stay_in_step(kind: Kind) {
    let outputs = on_all(group(kind, 4), |rank, transport| {
        let communicator = Communicator::new(transport, config(Algorithm::Auto));
        let mut last = Vec::new();
        for i in 0..300_u32 {
            let tokens = [1, 17, 0, 2][i as usize % 4];
            let input = Owned::F32(partial(rank + i as usize, tokens * 96));
            last.extend(reduce(&communicator, i % 64, &coarse(96), &input).unwrap().0.bits());
        }
        last
    });
    assert!(!outputs[0].is_empty() && outputs.iter().all(|output| *output == outputs[0]));
}

fn a_message_larger_than_any_socket_buffer_does_not_deadlock(kind: Kind) {
    let len = 12 << 20;
    on_all(group(kind, 2), |rank, transport| {
        let out = vec![rank as u8 + 1; len];
        let (mut header, mut payload) = ([0; 4], vec![0; len]);
        let sends = [SendOp::new(1 - rank, [b"head", &out])];
        let mut recvs = [RecvOp {
            from: 1 - rank,
            header: &mut header,
            payload: &mut payload,
        }];
        transport
            .transfer(&sends, &mut recvs, PATIENCE, &mut |_| Ok(()))
            .unwrap();
        assert_eq!(&header, b"head");
        assert!(payload.iter().all(|byte| *byte == 2 - rank as u8));
    });
}

fn nonfinite_input_is_the_same_error_on_all_ranks_and_the_group_goes_on(kind: Kind) {
    for (algorithm, features) in [
        (Algorithm::OneShot, 64),
        (Algorithm::TwoShot, 64),
        (Algorithm::Ring, 64),
        (Algorithm::Doubling, 64),
        (Algorithm::Lossless, 64),
        (Algorithm::Lossless, 40_000),
    ] {
        on_all(group(kind, 3), |rank, transport| {
            let communicator = Communicator::new(transport, config(algorithm));
            let mut values = partial(rank, features);
            if rank == 1 {
                values[5] = f32::NAN;
            }
            let error = reduce(&communicator, 3, &coarse(features), &Owned::F32(values)).unwrap_err();
            assert_eq!(
                error,
                ExchangeError::NonFinite {
                    site: site(3),
                    ranks: vec![1]
                }
            );
            assert_eq!(
                error.to_string(),
                "NaN or infinity at model.layers.3.mlp.down_proj in the partial sum of rank 1"
            );
            reduce(
                &communicator,
                4,
                &coarse(features),
                &Owned::F32(partial(rank, features)),
            )
            .unwrap();
        });
    }
}

fn ranks_that_meet_wait_for_the_last(kind: Kind) {
    const LATE: Duration = Duration::from_millis(80);
    let waited = on_all(group(kind, 3), |rank, transport| {
        let communicator = Communicator::new(transport, config(Algorithm::Auto));
        communicator.meet().unwrap();
        let start = Instant::now();
        if rank == 1 {
            std::thread::sleep(LATE);
        }
        communicator.meet().unwrap();
        let waited = start.elapsed();
        reduce(&communicator, 0, &coarse(64), &Owned::F32(partial(rank, 64))).unwrap();
        waited
    });
    assert!(waited.iter().all(|waited| *waited > LATE * 9 / 10), "{waited:?}");
}

fn nonfinite_input_in_any_part_of_a_long_exchange_is_named_by_all_ranks(kind: Kind) {
    let (tokens, features) = (400, 4096);
    for algorithm in [Algorithm::OneShot, Algorithm::TwoShot, Algorithm::Lossless] {
        on_all(group(kind, 3), |rank, transport| {
            let communicator = Communicator::new(transport, config(algorithm));
            let mut values = vec![1.0; tokens * features];
            match rank {
                0 => values[5] = f32::NAN,
                2 => values[tokens * features - 1] = f32::INFINITY,
                _ => {}
            }
            let error = reduce(&communicator, 3, &coarse(features), &Owned::F32(values)).unwrap_err();
            let expected = ExchangeError::NonFinite {
                site: site(3),
                ranks: vec![0, 2],
            };
            assert_eq!(error, expected);
        });
    }
}

fn nonfinite_input_falls_back_to_the_lossless_sum_on_all_ranks(kind: Kind) {
    let features = 64;
    let mut all = inputs(4, Dtype::Bf16, features);
    let Owned::Bf16(values) = &mut all[2] else {
        unreachable!()
    };
    values[9] = bf16::INFINITY;
    let expected = reference(Dtype::Bf16, &all, false);
    for algorithm in ALGORITHMS {
        on_all(group(kind, 4), |rank, transport| {
            let policy = ExchangeConfig {
                nonfinite: NonFinite::Fallback,
                ..config(algorithm)
            };
            let communicator = Communicator::new(transport, policy);
            let (output, stats) = reduce(&communicator, 0, &coarse(features), &all[rank]).unwrap();
            assert_eq!(output.bits(), expected);
            assert!(stats.fell_back);
            assert_eq!(stats.nonfinite, u64::from(rank == 2));
            let (_, stats) = reduce(
                &communicator,
                1,
                &coarse(features),
                &inputs(4, Dtype::Bf16, features)[rank],
            )
            .unwrap();
            assert!(!stats.fell_back);
        });
    }
}

fn control_messages_arrive_whole_and_in_order_beside_exchanges(kind: Kind) {
    on_all(group(kind, 3), |rank, transport| {
        let communicator = Communicator::new(Arc::clone(&transport), config(Algorithm::Auto));
        let big = vec![rank as u8; 3 << 20];
        for to in (0..3).filter(|to| *to != rank) {
            transport.send_message(to, b"").unwrap();
            transport.send_message(to, &big).unwrap();
        }
        reduce(&communicator, 0, &coarse(64), &Owned::F32(partial(rank, 64))).unwrap();
        for from in (0..3).filter(|from| *from != rank) {
            assert_eq!(transport.recv_message(from, Patience::Total(PATIENCE)).unwrap(), b"");
            let message = transport.recv_message(from, Patience::Silence(PATIENCE)).unwrap();
            assert!(message.len() == 3 << 20 && message.iter().all(|byte| *byte == from as u8));
        }
    });
}

fn messages_from_several_threads_do_not_mix(kind: Kind) {
    on_all(group(kind, 2), |rank, transport| {
        if rank == 0 {
            std::thread::scope(|scope| {
                for thread in 0..4_u8 {
                    let transport = &transport;
                    scope.spawn(move || {
                        for len in 0..200 {
                            transport.send_message(1, &vec![thread; len * 31 + 1]).unwrap();
                        }
                    });
                }
            });
            return;
        }
        for _ in 0..800 {
            let message = transport.recv_message(0, Patience::Total(PATIENCE)).unwrap();
            assert!(
                message.iter().all(|byte| *byte == message[0]),
                "two messages were mixed"
            );
        }
    });
}

macro_rules! on_every_transport {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $name() { super::$name(super::Kind::Memory); })*
        }
        mod tcp {
            $(#[test] fn $name() { super::$name(super::Kind::Tcp); })*
        }
    };
}

use algorithms::*;
use failures::*;

on_every_transport!(
    one_shot_sums_match_the_reference_on_every_rank,
    lossless_sums_match_the_reference_on_every_rank,
    many_exchanges_of_alternating_shapes_stay_in_step,
    a_message_larger_than_any_socket_buffer_does_not_deadlock,
    every_algorithm_leaves_the_same_bits_on_all_ranks_near_the_sum_and_predicts_its_bytes,
    auto_picks_the_same_on_all_ranks_and_two_shot_for_a_prefill_of_four_ranks,
    messages_below_min_bytes_are_lossless,
    predicted_bytes_are_what_the_transport_counts,
    nonfinite_input_is_the_same_error_on_all_ranks_and_the_group_goes_on,
    nonfinite_input_in_any_part_of_a_long_exchange_is_named_by_all_ranks,
    ranks_that_meet_wait_for_the_last,
    nonfinite_input_falls_back_to_the_lossless_sum_on_all_ranks,
    control_messages_arrive_whole_and_in_order_beside_exchanges,
    messages_from_several_threads_do_not_mix,
    a_rank_that_leaves_is_named_by_all_others_at_once,
    a_silent_rank_is_a_timeout_that_names_it_and_the_time,
    ranks_at_different_sites_get_an_error_that_names_both,
    ranks_with_different_shapes_dtypes_or_codecs_get_an_error,
    a_second_exchange_after_a_failure_fails_at_once_with_the_first_error,
    closing_wakes_a_waiting_receiver,
    a_message_from_a_rank_that_left_is_an_error_that_names_it,
    operations_that_do_not_fit_the_group_are_refused_and_harm_nothing,
    shapes_that_do_not_fit_are_refused_and_harm_nothing,
);

#[test]
fn a_single_rank_copies_its_input() {
    let results = on_all(group(Kind::Memory, 1), |_, transport| {
        let communicator = Communicator::new(transport, ExchangeConfig::default());
        reduce(&communicator, 0, &coarse(8), &Owned::F32(partial(0, 24)))
            .unwrap()
            .0
            .bits()
    });
    assert_eq!(results[0], Owned::F32(partial(0, 24)).bits());
}

#[test]
fn clipped_values_are_counted_per_rank() {
    on_all(group(Kind::Memory, 2), |rank, transport| {
        let communicator = Communicator::new(transport, ExchangeConfig::default());
        let values = if rank == 0 {
            vec![100.0, 1.0, -100.0]
        } else {
            vec![1.0; 3]
        };
        let (_, stats) = reduce(&communicator, 0, &coarse(3), &Owned::F32(values)).unwrap();
        assert_eq!(stats.clipped, if rank == 0 { 2 } else { 0 });
    });
}
