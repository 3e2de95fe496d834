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
use crate::cuda::{CudaError, Device, DeviceReducer, DeviceTensor, GpuLink, ReducerConfig};
use crate::exchange::{Communicator, ExchangeConfig};
use crate::transport::{memory, Transport};

const DEADLINE: Duration = Duration::from_secs(60);
/// Exchanges in a graph, each of other values. Odd, so that those of the next replay find the link's two slots the other way round.
const IN_GRAPH: usize = 3;

/// A GPU that has joined a group. Each rank is a process of its own: a process cannot open memory that it shares itself.
#[derive(Debug)]
pub struct Gpu {
    device: Device,
    reducer: DeviceReducer,
    /// Cases so far: each has a codec of its own.
    cases: usize,
    in_graphs: bool,
}

impl Gpu {
    /// Opens GPU `ordinal` and joins the other ranks over `link`. `in_graphs`: exchanges are captured into CUDA graphs, and those
    /// are measured.
    ///
    /// # Errors
    /// What the device reports, and a link that some rank cannot use.
    pub fn join(
        transport: &dyn Transport,
        ordinal: usize,
        (link, in_graphs): (GpuLink, bool),
        base: ExchangeConfig,
    ) -> Result<Self> {
        let device = Device::new(ordinal)?;
        let reducer = DeviceReducer::join(device.clone(), transport, ReducerConfig { link, exchange: base })?;
        Ok(Self {
            device,
            reducer,
            cases: 0,
            in_graphs,
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
        let tensor = |bytes: &[u8]| DeviceTensor::new(&self.device, (case.tokens, case.features), case.dtype, bytes);
        let rounds = 0..if self.in_graphs { IN_GRAPH } else { 1 };
        let zeros = || rounds.clone().map(|_| tensor(&[])).collect::<Result<Vec<_>, _>>();
        let input = |round| tensor(exchange::input(case, rank + round * ranks).bytes());
        self.cases += 1;
        let exchanges = Exchanges {
            communicator: Communicator::new(Arc::clone(transport), exchange::config(case, base)),
            choice: self.cases,
            codec: &*codec,
            values: rounds.clone().map(input).collect::<Result<_, _>>()?,
        };
        let (reducer, mut outputs) = (&mut self.reducer, zeros()?);
        // The codec's tables get to the device with its first exchange. Into other memory, as sums that a graph did not write
        // would be right all the same.
        let mut first = zeros()?;
        let bytes_sent = exchanges.submit(reducer, &mut first)?;
        reducer.check(&**transport)?;
        drop(first);
        let graph = match self.in_graphs {
            true => {
                let submit = || exchanges.submit(reducer, &mut outputs).map(|_| ());
                Some(self.device.capture(submit)?)
            }
            false => None,
        };
        let mut once = || -> Result<f64> {
            let stream = self.device.stream();
            let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            match &graph {
                Some(graph) => graph.launch()?,
                None => {
                    exchanges.submit(reducer, &mut outputs)?;
                }
            }
            let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
            reducer.check(&**transport)?;
            self.device.finish(DEADLINE, &mut || Ok(()), &mut || {})?;
            Ok(f64::from(start.elapsed_ms(&end)?) / 1e3 / rounds.len() as f64)
        };
        let (us_median, us_p99) = exchange::time(transport, effort, &mut once)?;
        let (mut wrong, mut digest) = (0, Sha256::new());
        for (round, output) in outputs.iter().enumerate() {
            let got = Tensor::from_bytes(case.dtype, &output.read(&self.device)?);
            wrong += count_different(case, &got, &expected(case, (round, ranks), &*codec, base)?);
            digest.update(got.bytes());
        }
        let report = Report {
            us_median,
            us_p99,
            bytes_sent,
            wrong,
            digest: digest.finalize().into(),
        };
        exchange::gather(transport, case, report)
    }
}

/// Those of a case, one after the other.
struct Exchanges<'a> {
    communicator: Communicator,
    choice: usize,
    codec: &'a dyn Codec,
    values: Vec<DeviceTensor>,
}

impl Exchanges<'_> {
    /// Adds them to the stream. Bytes that this rank sends in each.
    fn submit(&self, reducer: &mut DeviceReducer, outputs: &mut [DeviceTensor]) -> Result<u64, CudaError> {
        let (site, codec) = (exchange::site(), (self.choice, self.codec));
        let mut bytes_sent = 0;
        for (values, output) in self.values.iter().zip(outputs) {
            let stats = reducer.all_reduce_tensor(&self.communicator, &site, codec, values, output)?;
            bytes_sent = stats.bytes_sent;
        }
        Ok(bytes_sent)
    }
}

/// What the memory transport gives for the rows that the inputs repeat.
fn expected(case: Case, (round, ranks): (usize, usize), codec: &dyn Codec, base: ExchangeConfig) -> Result<Tensor> {
    let case = Case {
        tokens: case.tokens.min(PERIOD),
        ..case
    };
    let run = |transport: memory::MemoryTransport, rank| -> Result<Tensor> {
        let communicator = Communicator::new(Arc::new(transport), exchange::config(case, base));
        let input = exchange::input(case, rank + round * ranks);
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
