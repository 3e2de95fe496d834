//! One-shot of a tensor that is on a GPU, over the same connections and with the same frames as on the processor: a group may
//! have ranks of both kinds. Encoding and adding up is the GPU's; here payloads go out while they come from it, and to it
//! while they come in.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::frames::{peers, transfer, Outbox};
use super::policy::{choose, choose_of, lossless, predict_bytes_sent, Chosen, Shape};
use super::scratch::recv_ops_into;
use super::stream::seal;
use super::{
    check_shape, next, Call, Communicator, ExchangeError, ExchangeStats, NonFinite, RankSet, Run, Site, State,
};
use crate::codec::{Codec, Dtype, EncodeStats, Values, ValuesMut};
use crate::cuda::staging::{piece_ends, Inflow};
use crate::cuda::CudaError;
use crate::transport::MAX_RANKS;
use crate::wire::{FrameKind, FRAME_TRAILER_LEN};

/// The GPU's side. Its page-locked memory is the caller's.
pub trait Staging {
    /// Returns when the first `end` bytes of this rank's payload are on the host.
    ///
    /// # Errors
    /// What the device reports, or that it did not get there in time.
    fn fetch(&mut self, end: usize) -> Result<(), CudaError>;

    /// This rank's frame, of which as much is meaningful as was fetched.
    fn own(&self) -> &[u8];

    fn own_mut(&mut self) -> &mut [u8];

    /// What encoding saw; after a first `fetch`.
    ///
    /// # Errors
    /// As `fetch`.
    fn seen(&mut self) -> Result<EncodeStats, CudaError>;

    /// When all of it was fetched: this rank's frame, room for one of each other rank in rank order, and what takes those to
    /// the device.
    fn halves(&mut self) -> (&[u8], &mut [u8], &mut dyn Delivery);
}

/// Takes payloads to the device.
pub trait Delivery {
    /// Starts to copy bytes `start..end` of the payload of `from`, which are in their place in the room.
    ///
    /// # Errors
    /// What the device reports.
    fn deliver(&mut self, from: usize, start: usize, end: usize) -> Result<(), CudaError>;
}

impl Communicator {
    /// See [`ExchangeConfig::timeout`](super::ExchangeConfig::timeout).
    pub fn timeout(&self) -> Duration {
        self.config.timeout
    }

    /// What this communicator would run for a message: alike on all ranks. `auto`: of these, or of all where none are given.
    pub fn chosen(&self, codec: &dyn Codec, tokens: usize, dtype: Dtype, auto: Option<&[Chosen]>) -> Chosen {
        let shape = self.shape(codec, tokens, dtype);
        match auto {
            Some(candidates) => choose_of(candidates, &self.config, shape, codec),
            None => choose(&self.config, shape, codec),
        }
    }

    pub(super) fn shape(&self, codec: &dyn Codec, tokens: usize, dtype: Dtype) -> Shape {
        Shape {
            world_size: self.transport.world_size(),
            tokens,
            features: codec.features(),
            dtype,
        }
    }

    /// Bytes that this rank sends then, as the exchange on the processor counts them.
    pub fn predict(&self, codec: &dyn Codec, tokens: usize, dtype: Dtype, chosen: Chosen) -> u64 {
        let shape = self.shape(codec, tokens, dtype);
        predict_bytes_sent(chosen, shape, self.transport.rank(), codec, self.config.gather_bits)
    }

    /// Bytes of a frame of [`Communicator::staged_one_shot`]: the payload and what follows it.
    pub fn staged_frame_len(codec: &dyn Codec, tokens: usize, dtype: Dtype) -> usize {
        codec.payload_len(tokens, dtype) + FRAME_TRAILER_LEN
    }

    /// Sends this rank's payload, which `device` encodes, to all others, and their payloads to `device`. Adding up is left to
    /// the caller.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`], and what the device reports.
    pub fn staged_one_shot(
        &self,
        site: &Site,
        codec: &dyn Codec,
        (tokens, dtype): (u32, Dtype),
        device: &mut dyn Staging,
    ) -> Result<ExchangeStats, CudaError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { sequence, scratch, .. } = &mut *state;
        let call = self.call(site, codec, (tokens, dtype), next(sequence));
        let mut stats = ExchangeStats::default();
        let frame_len = Self::staged_frame_len(codec, tokens as usize, dtype);
        let (rank, world_size) = call.place();
        let mut outbox = Outbox::new(&call);
        for peer in peers(rank, world_size) {
            outbox.address(peer, call.expected(FrameKind::OneShot, codec.tag()), frame_len);
        }
        // A rank that gives up says so: the others wait for its payload.
        let given_up = |error: CudaError| {
            call.transport.abort(rank, &error.to_string());
            error
        };
        let marks = send_pieces(&call, &mut outbox, device, &mut stats).map_err(given_up)?;
        let (own, room, delivery) = device.halves();
        let own = &own[..frame_len];
        let sends = outbox.rests(|_| own);
        let frames = peers(rank, world_size).zip(room.chunks_exact_mut(frame_len));
        let (mut ops, count) = recv_ops_into(frames, &mut scratch.room);
        let mut inflow = [Inflow::default(); MAX_RANKS];
        let mut failed = None;
        let mut on_payload = |from: usize, bytes: &[u8], complete: bool| {
            let Some((start, end)) = inflow[from].next(bytes.len(), complete) else {
                return Ok(());
            };
            delivery.deliver(from, start, end).map_err(|error| {
                let what = error.to_string();
                failed = Some(error);
                ExchangeError::ApiMisuse { what }
            })
        };
        let expected = call.expected(FrameKind::OneShot, codec.tag());
        let outcome = transfer(
            &call,
            &sends[..world_size - 1],
            &mut ops[..count],
            |_| expected,
            &mut on_payload,
            &mut stats,
        );
        if let Some(error) = failed {
            return Err(error);
        }
        let marks = outcome?.with(marks);
        match (marks.is_empty(), self.config.nonfinite) {
            (true, _) => Ok(stats),
            (false, NonFinite::Fallback) => Ok(ExchangeStats {
                fell_back: true,
                ..stats
            }),
            (false, NonFinite::Fail) => Err(CudaError::NonFinite { ranks: marks.to_vec() }),
        }
    }

    /// As [`Communicator::all_reduce`] of raw values, whatever the codec: how all ranks go on after an exchange that
    /// [fell back](ExchangeStats::fell_back).
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`], NaN and infinity excepted.
    pub fn lossless(
        &self,
        site: &Site,
        codec: &dyn Codec,
        input: Values<'_>,
        mut output: ValuesMut<'_>,
    ) -> Result<ExchangeStats, ExchangeError> {
        let tokens = check_shape(codec, input, &output)?;
        let shape = self.shape(codec, tokens as usize, input.dtype());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { sequence, scratch, .. } = &mut *state;
        let mut stats = ExchangeStats::default();
        let call = self.call(site, codec, (tokens, input.dtype()), next(sequence));
        let mut run = Run {
            call,
            scratch,
            input,
            output: &mut output,
            stats: &mut stats,
        };
        run.run(lossless(shape))?;
        Ok(stats)
    }

    pub(super) fn call<'a>(
        &'a self,
        site: &'a Site,
        codec: &'a dyn Codec,
        (tokens, dtype): (u32, Dtype),
        sequence: u64,
    ) -> Call<'a> {
        Call {
            transport: &*self.transport,
            timeout: self.config.timeout,
            site,
            codec,
            gather_bits: self.config.gather_bits,
            tokens,
            dtype,
            sequence,
            part: 0,
        }
    }
}

/// Offers the payload piece by piece as it comes from the device, and seals the frame.
fn send_pieces(
    call: &Call<'_>,
    outbox: &mut Outbox<'_>,
    device: &mut dyn Staging,
    stats: &mut ExchangeStats,
) -> Result<RankSet, CudaError> {
    let (rank, world_size) = call.place();
    let len = call.codec.payload_len(call.tokens as usize, call.dtype);
    for end in piece_ends(len) {
        let start = Instant::now();
        device.fetch(end)?;
        stats.encode += start.elapsed();
        outbox.offer((rank + 1) % world_size, &device.own()[..end], stats)?;
    }
    let seen = device.seen()?;
    stats.clipped += seen.clipped;
    stats.nonfinite += seen.nonfinite;
    let mut marks = RankSet::default();
    if seen.nonfinite > 0 {
        marks.insert(rank);
    }
    seal(&mut device.own_mut()[..len + FRAME_TRAILER_LEN], marks);
    Ok(marks)
}
