//! Station 4: the sum of all ranks' partial sums. The only module that knows codec, wire and transport.
//!
//! Every rank ends with the same bits. A rank adds the *dequantized* copy of its own part too, sums run in rank order
//! in f32 from zero, and are rounded once to the dtype of the input. Which algorithm runs depends only on what all
//! ranks know: the world size, the shape, the dtype, the codec and the configuration.
//!
//! | algorithm, `b` bits a value, `g` bits in the second stage | bytes a rank sends | steps | quantizations |
//! |---|---|--:|--:|
//! | [`Chosen::OneShot`]: every rank gets every payload | `(N-1) b` | 1 | 1 |
//! | [`Chosen::TwoShot`]: reduce-scatter, all-gather | `(N-1)/N (b + g)` | 2 | 2 |
//! | [`Chosen::Ring`]: the same, round a ring | `(N-1)/N (4.5 + g)` | `2 (N-1)` | N |
//! | [`Chosen::Doubling`] | `b + (log2 N - 1) g` | `log2 N` | `log2 N` |
//! | [`Chosen::LosslessOneShot`] | `(N-1) 16` in BF16 | 1 | 0 |
//! | [`Chosen::LosslessTwoShot`] | `2 (N-1)/N 16` in BF16 | 2 | 0 |

mod accumulate;
mod choices;
mod doubling;
mod error;
mod frames;
mod gate;
mod in_order;
mod in_process;
mod lossless;
mod one_shot;
mod parts;
mod policy;
mod ring;
mod scratch;
mod slices;
mod stage;
mod staged;
mod stream;
mod sum_codec;
mod two_shot;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub(crate) use accumulate::round;
pub use error::{ExchangeError, HeaderField};
pub use gate::{Gate, GateEntry};
pub(crate) use in_order::BLOCK_ELEMENTS;
pub use in_process::sum_in_process;
pub use policy::{predict_bytes_sent, Algorithm, Chosen, LinkTable, Shape};
pub use staged::{Delivery, Staging};
pub use sum_codec::GatherBits;

use self::choices::Choices;
use self::frames::Expected;
use self::in_order::BadPayload;
use self::parts::Parts;
use self::scratch::Scratch;
use crate::codec::{Codec, Dtype, Values, ValuesMut};
use crate::transport::{SendOp, Transport, TransportError, MAX_RANKS};

/// One all-reduce of the model. Numbered alike on all ranks; the name is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    pub id: u32,
    /// Such as `model.layers.3.mlp.down_proj`.
    pub name: Arc<str>,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What to do when a partial sum has NaN or infinity, which no quantizer can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NonFinite {
    /// The same error on all ranks, so that the request fails and not the group.
    #[default]
    Fail,
    /// All ranks repeat the exchange without a codec; the sum is what a lossless all-reduce gives.
    Fallback,
}

/// Alike on all ranks; [`Identity::policy`](crate::wire::Identity) makes sure of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExchangeConfig {
    /// How long an exchange may make no progress before the peers it waits for count as lost.
    pub timeout: Duration,
    pub nonfinite: NonFinite,
    pub algorithm: Algorithm,
    /// [`Algorithm::Auto`] chooses by site, not by message, and only algorithms with which a token's sum depends on its own row
    /// alone: the bits are then the same whatever else is in the batch. Needs `min_bytes` 0.
    pub batch_invariant: bool,
    /// How sums are encoded where an algorithm sends them.
    pub gather_bits: GatherBits,
    /// Messages of fewer raw bytes are exchanged without a codec.
    pub min_bytes: u64,
    /// What [`Algorithm::Auto`] reckons with.
    pub table: LinkTable,
    /// Which further messages are exchanged without a codec.
    pub gate: Gate,
}

impl Default for ExchangeConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            nonfinite: NonFinite::Fail,
            algorithm: Algorithm::Auto,
            batch_invariant: false,
            gather_bits: GatherBits::default(),
            min_bytes: 0,
            table: LinkTable::default(),
            gate: Gate::default(),
        }
    }
}

/// What one all-reduce did on this rank.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExchangeStats {
    /// Bytes handed to the transport, headers included.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Of this rank's input: values outside the calibrated range.
    pub clipped: u64,
    /// Of this rank's input: NaN or infinite values.
    pub nonfinite: u64,
    /// Repeated without a codec because some rank had NaN or infinity.
    pub fell_back: bool,
    pub encode: Duration,
    pub wire: Duration,
    pub decode: Duration,
}

/// Adds up partial sums over the ranks of a group.
#[derive(Debug)]
pub struct Communicator {
    transport: Arc<dyn Transport>,
    config: ExchangeConfig,
    state: Mutex<State>,
}

/// One exchange runs at a time; buffers grow to the largest shape seen and stay.
#[derive(Debug, Default)]
struct State {
    sequence: u64,
    scratch: Scratch,
    choices: Choices,
}

/// What every stage of one exchange needs.
#[derive(Clone, Copy)]
struct Call<'a> {
    transport: &'a dyn Transport,
    timeout: Duration,
    site: &'a Site,
    codec: &'a dyn Codec,
    gather_bits: GatherBits,
    tokens: u32,
    dtype: Dtype,
    sequence: u64,
    /// Of a long exchange, see [`parts`].
    part: u32,
}

/// One exchange under way: this rank's input, and where everything goes.
struct Run<'a, 'o> {
    call: Call<'a>,
    scratch: &'a mut Scratch,
    input: Values<'a>,
    output: &'a mut ValuesMut<'o>,
    stats: &'a mut ExchangeStats,
}

impl Communicator {
    pub fn new(transport: Arc<dyn Transport>, config: ExchangeConfig) -> Self {
        Self {
            transport,
            config,
            state: Mutex::new(State::default()),
        }
    }

    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Returns once all ranks are here: what is timed next has no wait for a late rank in it.
    ///
    /// # Errors
    /// As [`Transport::transfer`].
    pub fn meet(&self) -> Result<(), TransportError> {
        let _one_at_a_time = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (rank, world_size) = (self.transport.rank(), self.transport.world_size());
        let mut bytes = [[0; 1]; MAX_RANKS];
        let mut sends = [SendOp::new(0, [&[], &[]]); MAX_RANKS];
        let mut recvs = frames::no_recvs();
        let operations = sends.iter_mut().zip(&mut recvs).zip(&mut bytes);
        for (peer, ((send, recv), byte)) in frames::peers(rank, world_size).zip(operations) {
            *send = SendOp::new(peer, [&[0], &[]]);
            (recv.from, recv.header) = (peer, byte);
        }
        let (sends, recvs) = (&sends[..world_size - 1], &mut recvs[..world_size - 1]);
        self.transport
            .transfer(sends, recvs, self.config.timeout, &mut |_| Ok(()))
    }

    /// Writes the sum of all ranks' `input` to `output`; both are `tokens * codec.features()` elements of one dtype.
    /// All ranks must call this for the same sites in the same order.
    ///
    /// # Errors
    /// [`ExchangeError::NonFinite`] leaves the group usable; after any other error of a peer or link it is not.
    /// `output` is unspecified then.
    pub fn all_reduce(
        &self,
        site: &Site,
        codec: &dyn Codec,
        input: Values<'_>,
        mut output: ValuesMut<'_>,
    ) -> Result<ExchangeStats, ExchangeError> {
        let tokens = check_shape(codec, input, &output)?;
        let shape = self.shape(codec, tokens as usize, input.dtype());
        if shape.world_size == 1 {
            accumulate::copy(input, &mut output);
            return Ok(ExchangeStats::default());
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State {
            sequence,
            scratch,
            choices,
        } = &mut *state;
        let chosen = choices.choose(&self.config, shape, codec);
        let mut stats = ExchangeStats::default();
        let call = self.call(site, codec, (tokens, input.dtype()), next(sequence));
        let mut run = Run {
            call,
            scratch,
            input,
            output: &mut output,
            stats: &mut stats,
        };
        let nonfinite = run.run(chosen)?;
        if nonfinite.is_empty() {
            return Ok(stats);
        }
        match (self.config.nonfinite, chosen) {
            (NonFinite::Fail, _) => Err(ExchangeError::NonFinite {
                site: site.clone(),
                ranks: nonfinite.to_vec(),
            }),
            // Nothing was lost: the sum has the NaN or infinity that a lossless all-reduce has.
            (NonFinite::Fallback, Chosen::Copy | Chosen::LosslessOneShot | Chosen::LosslessTwoShot) => Ok(stats),
            (NonFinite::Fallback, _) => {
                let seen = run.stats.nonfinite;
                run.call.sequence = next(sequence);
                run.run(policy::lossless(shape))?;
                (stats.nonfinite, stats.fell_back) = (seen, true);
                Ok(stats)
            }
        }
    }
}

impl Run<'_, '_> {
    /// Returns the ranks whose input had NaN or infinity: the same on all ranks.
    fn run(&mut self, chosen: Chosen) -> Result<RankSet, ExchangeError> {
        let shape = self.call.shape();
        let features = shape.features;
        let mut found = RankSet::default();
        for (part, (start, end)) in Parts::new(chosen, shape, self.call.codec).bounds().enumerate() {
            let (from, to) = (start * features, end * features);
            let mut run = Run {
                call: Call {
                    tokens: (end - start) as u32,
                    part: part as u32,
                    ..self.call
                },
                scratch: self.scratch,
                input: self.input.slice(from, to),
                output: &mut self.output.slice(from, to),
                stats: self.stats,
            };
            // Also after NaN: who has any in a later part belongs into the error.
            found = found.with(run.run_part(chosen)?);
        }
        Ok(found)
    }

    fn run_part(&mut self, chosen: Chosen) -> Result<RankSet, ExchangeError> {
        match chosen {
            Chosen::Copy => {
                accumulate::copy(self.input, self.output);
                Ok(RankSet::default())
            }
            Chosen::OneShot => one_shot::run(self),
            Chosen::TwoShot => two_shot::run(self),
            Chosen::Ring => ring::run(self),
            Chosen::Doubling => doubling::run(self),
            Chosen::LosslessOneShot => lossless::one_shot(self),
            Chosen::LosslessTwoShot => lossless::two_shot(self),
        }
    }
}

impl Call<'_> {
    /// This rank, and how many there are.
    fn place(&self) -> (usize, usize) {
        (self.transport.rank(), self.transport.world_size())
    }

    fn shape(&self) -> Shape {
        Shape {
            world_size: self.transport.world_size(),
            tokens: self.tokens as usize,
            features: self.codec.features(),
            dtype: self.dtype,
        }
    }

    fn expected(&self, kind: crate::wire::FrameKind, codec: u8) -> Expected<'_> {
        Expected {
            site: self.site,
            kind,
            codec,
            dtype: self.dtype,
            sequence: self.sequence,
            tokens: self.tokens,
            part: self.part,
        }
    }

    fn lost(&self, source: TransportError) -> ExchangeError {
        ExchangeError::Transport {
            site: self.site.clone(),
            source,
        }
    }

    fn bad_payload(&self, (rank, source): BadPayload) -> ExchangeError {
        ExchangeError::Payload {
            rank,
            site: self.site.clone(),
            source,
        }
    }

    /// A payload that does not decode, found outside a transfer.
    fn give_up(&self, bad: BadPayload) -> ExchangeError {
        self.abort(bad.0, self.bad_payload(bad))
    }

    /// Gives up after an error that only this rank may see, so that the others do not wait for it.
    fn abort(&self, culprit: usize, error: ExchangeError) -> ExchangeError {
        self.transport.abort(culprit, &error.to_string());
        error
    }
}

/// The number of the next exchange.
fn next(sequence: &mut u64) -> u64 {
    *sequence += 1;
    *sequence - 1
}

/// A set of ranks, without allocating.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct RankSet(u64);

impl RankSet {
    fn insert(&mut self, rank: usize) {
        self.0 |= 1 << rank;
    }

    #[must_use]
    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn to_vec(self) -> Vec<usize> {
        (0..64).filter(|rank| self.0 & (1 << rank) != 0).collect()
    }
}

fn check_shape(codec: &dyn Codec, input: Values<'_>, output: &ValuesMut<'_>) -> Result<u32, ExchangeError> {
    let misuse = |what: String| Err(ExchangeError::ApiMisuse { what });
    let (len, dtype) = accumulate::describe(output);
    if input.len() != len || input.dtype() != dtype {
        return misuse(format!(
            "input has {} elements of {}, output has {len} of {}",
            input.len(),
            input.dtype().name(),
            dtype.name()
        ));
    }
    let features = codec.features();
    if features == 0 || len % features != 0 {
        return misuse(format!("{len} elements are not rows of {features}"));
    }
    match u32::try_from(len / features) {
        // The header counts payload bytes in 32 bits.
        Ok(tokens) if len.checked_mul(4).is_some_and(|bytes| u32::try_from(bytes).is_ok()) => Ok(tokens),
        _ => misuse(format!(
            "{len} elements are more than one exchange carries: split the batch"
        )),
    }
}
