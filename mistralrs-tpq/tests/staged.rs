//! The exchange of tensors on a GPU over the group's own connections, with a stand-in for the GPU: the same frames as a rank on
//! the processor sends, payloads delivered whole and once, and every way it can go wrong seen on all ranks.

use std::sync::Arc;
use std::time::Duration;

use mistralrs_tpq::codec::{Codec, Dtype, Dynamic, EncodeStats, Values, ValuesMut};
use mistralrs_tpq::cuda::CudaError;
use mistralrs_tpq::exchange::{
    Algorithm, Communicator, Delivery, ExchangeConfig, ExchangeError, NonFinite, Site, Staging,
};
use mistralrs_tpq::transport::memory;

const FEATURES: usize = 4096;

/// A GPU that is this process: what it encoded comes at once, what is delivered to it lies in `payloads`.
struct StandIn {
    frame_len: usize,
    own: Vec<u8>,
    seen: EncodeStats,
    room: Vec<u8>,
    inbox: Inbox,
    /// Fetches that succeed.
    fetches: usize,
    asked: Vec<usize>,
}

struct Inbox {
    rank: usize,
    ranks: usize,
    frame_len: usize,
    /// By rank: where its delivered bytes end.
    delivered: Vec<usize>,
    deliveries: usize,
}

impl StandIn {
    fn new(rank: usize, ranks: usize, codec: &dyn Codec, values: &[f32], fetches: usize) -> Self {
        let tokens = values.len() / FEATURES;
        let frame_len = Communicator::staged_frame_len(codec, tokens, Dtype::F32);
        let mut own = vec![0xee; frame_len];
        let payload_len = codec.payload_len(tokens, Dtype::F32);
        let seen = codec.encode(rank, Values::F32(values), &mut own[..payload_len]);
        Self {
            frame_len,
            own,
            seen,
            room: vec![0; frame_len * (ranks - 1)],
            inbox: Inbox {
                rank,
                ranks,
                frame_len,
                delivered: vec![0; ranks],
                deliveries: 0,
            },
            fetches,
            asked: Vec::new(),
        }
    }

    /// The sum in rank order, as the decoding kernel makes it.
    fn sum(&self, codec: &dyn Codec, tokens: usize) -> Vec<f32> {
        let payload_len = codec.payload_len(tokens, Dtype::F32);
        let mut sum = vec![0.0; tokens * FEATURES];
        for from in 0..self.inbox.ranks {
            let payload = match from == self.inbox.rank {
                true => &self.own[..payload_len],
                false => {
                    assert_eq!(self.inbox.delivered[from], payload_len, "payload of rank {from}");
                    let place = if from > self.inbox.rank { from - 1 } else { from };
                    &self.room[place * self.frame_len..][..payload_len]
                }
            };
            codec.decode_accumulate(from, payload, Dtype::F32, &mut sum).unwrap();
        }
        sum
    }
}

impl Staging for StandIn {
    fn fetch(&mut self, end: usize) -> Result<(), CudaError> {
        self.asked.push(end);
        match self.asked.len() <= self.fetches {
            true => Ok(()),
            false => Err(CudaError::Driver {
                what: "go on",
                reason: "CUDA_ERROR_ILLEGAL_ADDRESS".to_owned(),
            }),
        }
    }

    fn own(&self) -> &[u8] {
        &self.own
    }

    fn own_mut(&mut self) -> &mut [u8] {
        &mut self.own
    }

    fn seen(&mut self) -> Result<EncodeStats, CudaError> {
        Ok(self.seen)
    }

    fn halves(&mut self) -> (&[u8], &mut [u8], &mut dyn Delivery) {
        (&self.own, &mut self.room, &mut self.inbox)
    }
}

impl Delivery for Inbox {
    fn deliver(&mut self, from: usize, start: usize, end: usize) -> Result<(), CudaError> {
        assert_eq!(start, self.delivered[from], "in order, and nothing twice");
        assert!(end > start && end <= self.frame_len);
        self.delivered[from] = end;
        self.deliveries += 1;
        Ok(())
    }
}

fn site() -> Site {
    Site {
        id: 4,
        name: "model.layers.0.mlp.down_proj".into(),
    }
}

fn values(rank: usize, tokens: usize) -> Vec<f32> {
    (0..tokens * FEATURES)
        .map(|i| ((i * 31 + rank * 17) % 1009) as f32 / 64.0 - 7.5)
        .collect()
}

fn config(nonfinite: NonFinite) -> ExchangeConfig {
    ExchangeConfig {
        algorithm: Algorithm::OneShot,
        timeout: Duration::from_secs(20),
        nonfinite,
        ..ExchangeConfig::default()
    }
}

/// Runs `rank` on a thread for each rank of a group of three.
fn on_ranks<T: Send + 'static>(
    nonfinite: NonFinite,
    rank: impl Fn(usize, Communicator) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let rank = Arc::new(rank);
    let threads: Vec<_> = memory::group(3)
        .into_iter()
        .enumerate()
        .map(|(index, transport)| {
            let rank = rank.clone();
            let communicator = Communicator::new(Arc::new(transport), config(nonfinite));
            std::thread::spawn(move || rank(index, communicator))
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn ranks_with_and_without_a_gpu_end_with_the_same_bits() {
    // The largest takes nine pieces and a rest.
    for tokens in [1, 2, 113, 1031] {
        let sums = on_ranks(NonFinite::Fail, move |rank, communicator| {
            let codec = Dynamic::new(FEATURES);
            let values = values(rank, tokens);
            if rank == 1 {
                let mut sum = vec![0.0; values.len()];
                let stats = communicator
                    .all_reduce(&site(), &codec, Values::F32(&values), ValuesMut::F32(&mut sum))
                    .unwrap();
                return (sum, stats.bytes_sent);
            }
            let mut gpu = StandIn::new(rank, 3, &codec, &values, usize::MAX);
            let shape = (tokens as u32, Dtype::F32);
            let stats = communicator.staged_one_shot(&site(), &codec, shape, &mut gpu).unwrap();
            assert_eq!(gpu.asked.last(), Some(&codec.payload_len(tokens, Dtype::F32)));
            (gpu.sum(&codec, tokens), stats.bytes_sent)
        });
        assert!(sums.iter().all(|sum| *sum == sums[1]), "{tokens} tokens");
    }
}

#[test]
fn nan_on_a_gpu_is_the_same_error_on_all_ranks_and_leaves_the_group_usable() {
    let outcomes = on_ranks(NonFinite::Fail, |rank, communicator| {
        let codec = Dynamic::new(FEATURES);
        let mut named = Vec::new();
        for exchange in 0..2 {
            let mut values = values(rank, 1);
            if rank == 2 && exchange == 0 {
                values[7] = f32::NAN;
            }
            let ranks = if rank == 1 {
                let mut sum = vec![0.0; values.len()];
                match communicator.all_reduce(&site(), &codec, Values::F32(&values), ValuesMut::F32(&mut sum)) {
                    Err(ExchangeError::NonFinite { ranks, .. }) => ranks,
                    other => {
                        other.unwrap();
                        Vec::new()
                    }
                }
            } else {
                let mut gpu = StandIn::new(rank, 3, &codec, &values, usize::MAX);
                match communicator.staged_one_shot(&site(), &codec, (1, Dtype::F32), &mut gpu) {
                    Err(CudaError::NonFinite { ranks }) => ranks,
                    other => {
                        other.unwrap();
                        Vec::new()
                    }
                }
            };
            named.push(ranks);
        }
        named
    });
    for named in outcomes {
        assert_eq!(named, [vec![2], vec![]]);
    }
}

#[test]
fn with_fallback_all_ranks_go_on_to_the_same_exact_sum() {
    let sums = on_ranks(NonFinite::Fallback, |rank, communicator| {
        let codec = Dynamic::new(FEATURES);
        let mut values = values(rank, 3);
        if rank == 0 {
            values[5] = f32::INFINITY;
        }
        let mut sum = vec![0.0; values.len()];
        let (input, output) = (Values::F32(&values), ValuesMut::F32(&mut sum));
        if rank == 1 {
            assert!(
                communicator
                    .all_reduce(&site(), &codec, input, output)
                    .unwrap()
                    .fell_back
            );
        } else {
            let mut gpu = StandIn::new(rank, 3, &codec, &values, usize::MAX);
            let stats = communicator.staged_one_shot(&site(), &codec, (3, Dtype::F32), &mut gpu);
            assert!(stats.unwrap().fell_back);
            communicator.lossless(&site(), &codec, input, output).unwrap();
        }
        sum
    });
    assert_eq!(sums[0], sums[1]);
    assert_eq!(sums[2], sums[1]);
    assert_eq!(sums[1][5], f32::INFINITY);
    let expected: f32 = (0..3).map(|rank| values(rank, 3)[6]).sum();
    assert_eq!(sums[1][6], expected);
}

#[test]
fn a_gpu_that_fails_half_way_ends_the_wait_of_the_others_and_is_named() {
    let outcomes = on_ranks(NonFinite::Fail, |rank, communicator| {
        let codec = Dynamic::new(FEATURES);
        let tokens = 1031;
        let fetches = if rank == 2 { 3 } else { usize::MAX };
        let mut gpu = StandIn::new(rank, 3, &codec, &values(rank, tokens), fetches);
        communicator
            .staged_one_shot(&site(), &codec, (tokens as u32, Dtype::F32), &mut gpu)
            .unwrap_err()
    });
    assert!(matches!(outcomes[2], CudaError::Driver { .. }), "{}", outcomes[2]);
    for error in &outcomes[..2] {
        assert_eq!(error.rank(), Some(2), "{error}");
        assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    }
}
