//! Exchanges between GPUs: the processor's cases with another way between the ranks, and every bit against what the memory
//! transport gives.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cudarc::driver::sys::CUevent_flags;
use sha2::{Digest as _, Sha256};

use super::exchange::{self, Case, Effort, Report, Row};
use super::inputs::{Tensor, PERIOD};
use crate::codec::Codec;
use crate::cuda::{Device, DeviceReducer, DeviceTensor, GpuLink, ReducerConfig};
use crate::exchange::{Communicator, ExchangeConfig};
use crate::transport::{memory, Transport};

const DEADLINE: Duration = Duration::from_secs(60);

/// A GPU that has joined a group. Each rank is a process of its own: a process cannot open memory that it shares itself.
#[derive(Debug)]
pub struct Gpu {
    device: Device,
    reducer: DeviceReducer,
    /// Cases so far: each has a codec of its own.
    cases: usize,
}

impl Gpu {
    /// Opens GPU `ordinal` and joins the other ranks over `link`.
    ///
    /// # Errors
    /// What the device reports, and a link that some rank cannot use.
    pub fn join(transport: &dyn Transport, ordinal: usize, link: GpuLink, base: ExchangeConfig) -> Result<Self> {
        let device = Device::new(ordinal)?;
        let reducer = DeviceReducer::join(device.clone(), transport, ReducerConfig { link, exchange: base })?;
        Ok(Self {
            device,
            reducer,
            cases: 0,
        })
    }

    /// As [`exchange::run`], on this rank's GPU.
    ///
    /// # Errors
    /// As [`exchange::run`], and what the device reports.
    pub fn run(
        &mut self,
        transport: &Arc<dyn Transport>,
        case: Case,
        base: ExchangeConfig,
        effort: Effort,
    ) -> Result<Option<Row>> {
        let (rank, ranks) = (transport.rank(), transport.world_size());
        let codec = exchange::codec(case, ranks)?;
        let communicator = Communicator::new(Arc::clone(transport), exchange::config(case, base));
        let site = exchange::site();
        let input = exchange::input(case, rank);
        let shape = (case.tokens, case.features);
        let values = DeviceTensor::new(&self.device, shape, case.dtype, input.bytes())?;
        let mut output = DeviceTensor::new(&self.device, shape, case.dtype, &[])?;
        self.cases += 1;
        let (choice, mut bytes_sent) = (self.cases, 0);
        let mut once = || -> Result<f64> {
            let stream = self.device.stream();
            let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            let codec = (choice, &*codec);
            let reducer = &mut self.reducer;
            let stats = reducer.all_reduce_tensor(&communicator, &site, codec, &values, &mut output)?;
            let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            self.reducer.check(&**transport)?;
            self.device.finish(DEADLINE, &mut || Ok(()), &mut || {})?;
            bytes_sent = stats.bytes_sent;
            Ok(f64::from(start.elapsed_ms(&end)?) / 1e3)
        };
        let (us_median, us_p99) = exchange::time(transport, effort, &mut once)?;
        let got = Tensor::from_bytes(case.dtype, &output.read(&self.device)?);
        let report = Report {
            us_median,
            us_p99,
            bytes_sent,
            wrong: count_different(case, &got, &expected(case, ranks, &*codec, base)?),
            digest: Sha256::digest(got.bytes()).into(),
        };
        exchange::gather(transport, case, report)
    }
}

/// What the memory transport gives for the rows that the inputs repeat.
fn expected(case: Case, ranks: usize, codec: &dyn Codec, base: ExchangeConfig) -> Result<Tensor> {
    let case = Case {
        tokens: case.tokens.min(PERIOD),
        ..case
    };
    let run = |transport: memory::MemoryTransport, rank| -> Result<Tensor> {
        let communicator = Communicator::new(Arc::new(transport), exchange::config(case, base));
        let input = exchange::input(case, rank);
        let mut output = input.clone();
        communicator.all_reduce(&exchange::site(), codec, input.values(), output.values_mut())?;
        Ok(output)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = memory::group(ranks)
            .into_iter()
            .enumerate()
            .map(|(rank, transport)| scope.spawn(move || run(transport, rank)))
            .collect();
        let mut outputs = threads.into_iter().map(|thread| thread.join());
        let first = outputs.next().context("a group without ranks")?;
        first.map_err(|_| anyhow::anyhow!("a rank's thread panicked"))?
    })
}

fn count_different(case: Case, got: &Tensor, expected: &Tensor) -> u64 {
    let period = case.tokens.min(PERIOD) * case.features;
    let differs = |i: &usize| got.at(*i).to_bits() != expected.at(i % period.max(1)).to_bits();
    (0..case.tokens * case.features).filter(differs).count() as u64
}
