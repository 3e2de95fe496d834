//! A group of GPUs whose ranks are threads of this process.

use std::sync::Arc;

use cudarc::driver::CudaGraph;
use mistralrs_tpq::codec::{Codec, CodecError, Dtype, EncodeStats, Paper, PaperTables, Values};
use mistralrs_tpq::cuda::{CudaError, Device, DeviceReducer, DeviceTensor, GpuLink, ReducerConfig};
use mistralrs_tpq::exchange::{Communicator, ExchangeConfig, ExchangeStats, Site};
use mistralrs_tpq::transport::memory;

pub const FEATURES: usize = 200;
pub const DTYPE: Dtype = Dtype::F32;

/// Whether the driver is tests/cuda/soft_gpu.
pub fn on_stand_in() -> bool {
    let device = Device::new(0).expect("these tests need a CUDA driver: `cargo xtask cuda-check` brings a stand-in");
    device.context().name().unwrap() == "soft GPU"
}

/// Calibrated alike on all ranks, with three outliers.
pub fn codec(ranks: usize) -> Paper {
    let range = |feature: usize| 0.5 + (feature % 7) as f32;
    let of_rank = |_| (0..FEATURES).map(range).collect();
    Paper::new(PaperTables::new((0..ranks).map(of_rank).collect(), vec![5, 64, 199]).unwrap())
}

/// Has no kernels, the tag of [`codec`]'s, and sends an outlier that is not finite.
#[derive(Debug)]
pub struct Forged(pub Paper);

impl Codec for Forged {
    fn name(&self) -> &'static str {
        "forged"
    }

    fn tag(&self) -> u8 {
        self.0.tag()
    }

    fn features(&self) -> usize {
        self.0.features()
    }

    fn payload_len(&self, tokens: usize, dtype: Dtype) -> usize {
        self.0.payload_len(tokens, dtype)
    }

    fn encode(&self, rank: usize, values: Values<'_>, payload: &mut [u8]) -> EncodeStats {
        let seen = self.0.encode(rank, values, payload);
        if let Some(word) = payload.last_chunk_mut() {
            *word = 0x7f80_u16.to_le_bytes();
        }
        seen
    }

    fn decode_accumulate(&self, _: usize, _: &[u8], _: Dtype, _: &mut [f32]) -> Result<(), CodecError> {
        Ok(())
    }

    fn error_bound(&self, rank: usize, row: &[f32], bound: &mut [f32]) {
        self.0.error_bound(rank, row, bound);
    }
}

pub fn values(rank: usize, tokens: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 37 + rank * 101) % 211) as f32 / 100.0 - 1.0;
    (0..tokens * FEATURES).map(value).collect()
}

/// An exchange in a graph, and its tensors.
pub struct Captured {
    graph: CudaGraph,
    output: DeviceTensor,
    _values: DeviceTensor,
}

pub struct Rank {
    pub rank: usize,
    pub ranks: usize,
    device: Device,
    communicator: Communicator,
    reducer: DeviceReducer,
}

impl Rank {
    /// One exchange and the look at what went wrong in it; then the sum is read. Reading waits for the stream without a deadline.
    pub fn all_reduce(&mut self, site: u32, codec: &dyn Codec, input: &[f32]) -> Result<Vec<f32>, CudaError> {
        let (values, mut output) = self.tensors(input)?;
        let stats = self.exchange(site, codec, &values, &mut output)?;
        assert!(stats.bytes_sent > 0 || input.is_empty());
        self.reducer.check(&**self.communicator.transport())?;
        self.read(&output)
    }

    /// One exchange as a graph, which has not run yet.
    pub fn capture(&mut self, site: u32, codec: &dyn Codec, input: &[f32]) -> Result<Captured, CudaError> {
        let (values, mut output) = self.tensors(input)?;
        let device = self.device.clone();
        let graph = device.capture(|| self.exchange(site, codec, &values, &mut output).map(drop))?;
        Ok(Captured {
            graph,
            output,
            _values: values,
        })
    }

    /// The sum of a graph that runs once more.
    pub fn replay(&mut self, captured: &Captured) -> Result<Vec<f32>, CudaError> {
        captured.graph.launch().unwrap();
        self.reducer.check(&**self.communicator.transport())?;
        self.read(&captured.output)
    }

    fn read(&self, output: &DeviceTensor) -> Result<Vec<f32>, CudaError> {
        let read = output.read(&self.device)?;
        let words = read.as_chunks().0.iter();
        Ok(words.map(|word| f32::from_le_bytes(*word)).collect())
    }

    fn tensors(&self, input: &[f32]) -> Result<(DeviceTensor, DeviceTensor), CudaError> {
        let shape = (input.len() / FEATURES, FEATURES);
        let values = DeviceTensor::new(&self.device, shape, DTYPE, bytemuck::cast_slice(input))?;
        Ok((values, DeviceTensor::new(&self.device, shape, DTYPE, &[])?))
    }

    fn exchange(
        &mut self,
        site: u32,
        codec: &dyn Codec,
        input: &DeviceTensor,
        output: &mut DeviceTensor,
    ) -> Result<ExchangeStats, CudaError> {
        let site = Site {
            id: site,
            name: "model.layers.0.mlp.down_proj".into(),
        };
        let (reducer, communicator) = (&mut self.reducer, &self.communicator);
        reducer.all_reduce_tensor(communicator, &site, (0, codec), input, output)
    }

    /// What the specification makes of all ranks' [`values`].
    pub fn expected(&self, codec: &dyn Codec, tokens: usize) -> Vec<f32> {
        let mut sum = vec![0.0; tokens * FEATURES];
        for rank in 0..self.ranks {
            let mut payload = vec![0; codec.payload_len(tokens, DTYPE)];
            codec.encode(rank, Values::F32(&values(rank, tokens)), &mut payload);
            codec.decode_accumulate(rank, &payload, DTYPE, &mut sum).unwrap();
        }
        sum
    }
}

/// Joins `ranks` threads over `link` and gives what each makes of it, by rank.
pub fn ranks<T: Send>(
    ranks: usize,
    link: GpuLink,
    exchange: ExchangeConfig,
    body: impl Fn(&mut Rank) -> T + Sync,
) -> Vec<T> {
    let join = |(rank, transport): (usize, memory::MemoryTransport)| {
        // Freeing memory waits for all of a device's work, that of another rank too: each has its own, where there are as many.
        let device = Device::new(if on_stand_in() { rank } else { 0 }).unwrap();
        let reducer = DeviceReducer::join(device.clone(), &transport, ReducerConfig { link, exchange }).unwrap();
        body(&mut Rank {
            rank,
            ranks,
            device,
            communicator: Communicator::new(Arc::new(transport), exchange),
            reducer,
        })
    };
    std::thread::scope(|scope| {
        let join = &join;
        let threads: Vec<_> = memory::group(ranks)
            .into_iter()
            .enumerate()
            .map(|place| scope.spawn(move || join(place)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
