//! The all-reduce of a layer whose tensors are on a GPU: the other half of the custom op in `reducer.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, Layout, Shape};

use super::group::Group;
use super::node::{lock, Node};
use super::reducer::SiteReducer;
use crate::codec::{Codec, EncodeStats};
use crate::cuda::order::PassEnd;
use crate::cuda::{all_reduce_storage, CudaError, Device, DeviceReducer, GpuLink, ReducerConfig};
use crate::exchange::{ExchangeStats, Site};
use crate::monitor::Monitor;
use crate::transport::Transport;

/// What a group has on its GPU; opened by the first exchange, which is the first to know the device.
#[derive(Debug, Default)]
pub(super) struct DeviceSlot(Mutex<Option<Opened>>);

#[derive(Debug)]
struct Opened {
    reducer: DeviceReducer,
    end: PassEnd,
    /// What a captured step exchanges whenever it is replayed, by the rows of its exchanges and the site.
    captured: BTreeMap<usize, BTreeMap<u32, Exchanged>>,
}

/// For the counters.
#[derive(Debug)]
struct Exchanged {
    choice: usize,
    codec: Arc<dyn Codec>,
    stats: ExchangeStats,
}

impl Node {
    /// Tells apart what exchanges do when they are captured; `None` where they are not to be.
    pub(super) fn graph_epoch(&self) -> Option<u64> {
        let copies = self.observing() || self.recording() || self.verifying();
        let group = self.group().ok().filter(|_| !copies)?;
        let captures = lock(&group.device.0).as_ref()?.reducer.captures();
        captures.then(|| self.graph_epoch.load(Ordering::Acquire))
    }

    /// Waits for the exchanges of `rows` rows of a graph that was launched, and counts them.
    ///
    /// # Errors
    /// As of exchanges without a graph.
    pub(super) fn graph_replayed(&self, rows: usize) -> Result<()> {
        let group = self.group()?;
        let mut slot = lock(&group.device.0);
        let opened = slot.as_mut().context("a graph of a group that has exchanged nothing")?;
        let seen = opened.reducer.check(&*group.transport);
        if let Err(error) = &seen {
            // The engine gives its graphs up after an error. Those of another epoch it tries again.
            self.graph_epoch.fetch_add(1, Ordering::Release);
            give_up(&mut opened.reducer, &group, self.rank(), error);
        }
        let mut seen = Some(seen.context("exchanges of a captured step failed")?);
        for exchanged in opened.captured.get(&rows).into_iter().flat_map(BTreeMap::values) {
            let mut stats = exchanged.stats;
            // Which of them it was is not known.
            add(&mut stats, seen.take().unwrap_or_default());
            self.count(exchanged.choice, exchanged.codec.as_ref(), rows, group.dtype, &stats);
        }
        Ok(())
    }
}

impl SiteReducer {
    /// # Errors
    /// As on the processor, and what the driver or NCCL reports.
    pub(super) fn sum_on_device(
        &self,
        storage: &CudaStorage,
        layout: &Layout,
        on_cpu: impl FnOnce(&CpuStorage, &Layout) -> candle_core::Result<(CpuStorage, Shape)>,
    ) -> Result<CudaStorage> {
        let node = self.node();
        if node.observing() || node.recording() {
            // Both look at every value, on the processor.
            return through_cpu(storage, layout, on_cpu);
        }
        let group = node.group()?;
        // The others wait for this rank's GPU.
        let told = |error: &anyhow::Error| group.transport.abort(node.rank(), &format!("{error:#}"));
        let unwatched = |monitor: &Monitor| monitor.check_unwatched(&self.site().name).map_err(Into::into);
        node.drift().map_or(Ok(()), unwatched).inspect_err(told)?;
        let features = layout.dims().last().copied().unwrap_or(1);
        let decode = matches!(layout.dims(), [.., 1, _]);
        let tokens = layout.shape().elem_count().checked_div(features).unwrap_or(0);
        let choice = self.choice(tokens, decode);
        let codec = self.codec(choice, features)?;
        if node.verifying() {
            self.verify(choice, codec.as_ref(), &storage.to_cpu_storage()?, layout)?;
        }
        let mut slot = lock(&group.device.0);
        let opened = match &mut *slot {
            Some(opened) => opened,
            empty => {
                node.graph_epoch.fetch_add(1, Ordering::Release);
                let opened = Opened::new(&group, storage, node.plan.exchange.gpu_link);
                empty.insert(opened.inspect_err(told)?)
            }
        };
        if opened.reducer.device().is_capturing()? {
            return Ok(opened.capture(&group, self.site(), (choice, codec), (storage, layout), tokens)?);
        }
        let outcome = opened.sum(&group, self.site(), (choice, codec.as_ref()), (storage, layout));
        let (output, stats) = outcome.inspect_err(|error| give_up(&mut opened.reducer, &group, node.rank(), error))?;
        node.count(choice, codec.as_ref(), tokens, group.dtype, &stats);
        Ok(output)
    }
}

/// Ends the group after an error that it does not survive.
fn give_up(reducer: &mut DeviceReducer, group: &Group, own_rank: usize, error: &CudaError) {
    if !error.leaves_the_group_usable() {
        reducer.abort();
        group
            .transport
            .abort(error.rank().unwrap_or(own_rank), &error.to_string());
    }
}

impl Opened {
    fn new(group: &Group, storage: &CudaStorage, link: GpuLink) -> Result<Self> {
        let device =
            Device::on(storage.device().cuda_stream()).context("cannot load the kernels on the model's GPU")?;
        let config = ReducerConfig {
            link,
            exchange: group.exchange,
        };
        let reducer = DeviceReducer::join(device, &*group.transport, config);
        Ok(Self {
            reducer: reducer.context("the GPUs of the group cannot exchange")?,
            end: PassEnd::default(),
            captured: BTreeMap::new(),
        })
    }

    fn sum(
        &mut self,
        group: &Group,
        site: &Site,
        codec: (usize, &dyn Codec),
        tensor: (&CudaStorage, &Layout),
    ) -> Result<(CudaStorage, ExchangeStats), CudaError> {
        let (output, mut stats) = all_reduce_storage(&mut self.reducer, &group.communicator, site, codec, tensor)?;
        if self.end.is_here(site.id) {
            add(&mut stats, self.reducer.check(&*group.transport)?);
        }
        Ok((output, stats))
    }

    /// Adds an exchange of `rows` rows to the graph that is being captured. Nothing is exchanged yet: an error is this rank's alone.
    fn capture(
        &mut self,
        group: &Group,
        site: &Site,
        (choice, codec): (usize, Arc<dyn Codec>),
        tensor: (&CudaStorage, &Layout),
        rows: usize,
    ) -> Result<CudaStorage, CudaError> {
        let chosen = (choice, codec.as_ref());
        let (output, stats) = all_reduce_storage(&mut self.reducer, &group.communicator, site, chosen, tensor)?;
        let exchanged = Exchanged { choice, codec, stats };
        self.captured.entry(rows).or_default().insert(site.id, exchanged);
        Ok(output)
    }
}

fn add(stats: &mut ExchangeStats, seen: EncodeStats) {
    stats.clipped += seen.clipped;
    stats.nonfinite += seen.nonfinite;
}

fn through_cpu(
    storage: &CudaStorage,
    layout: &Layout,
    on_cpu: impl FnOnce(&CpuStorage, &Layout) -> candle_core::Result<(CpuStorage, Shape)>,
) -> Result<CudaStorage> {
    let (output, _) = on_cpu(&storage.to_cpu_storage()?, layout)?;
    Ok(storage.device().storage_from_cpu_storage(&output)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::path::Path;

    use candle_core::{Device as CandleDevice, Tensor, Var};
    use mistralrs_quant::AllReduce;

    use crate::codec::Dtype;
    use crate::command::Command;
    use crate::config::{Environment, Plan, PEERS_VARIABLE, RANK_VARIABLE};
    use crate::engine::links;

    const RANKS: usize = 2;
    const SHAPE: (usize, usize, usize) = (3, 1, 64);

    /// One rank: its place in the group, its GPU, a layer.
    struct Rank {
        node: Arc<Node>,
        gpu: CandleDevice,
        layer: SiteReducer,
    }

    impl Rank {
        fn values(&self, round: usize, device: &CandleDevice) -> Tensor {
            let value = |i: usize| ((i * 37 + self.node.rank() * 101 + round * 13) % 211) as f32 / 100.0 - 1.0;
            let values: Vec<f32> = (0..SHAPE.0 * SHAPE.1 * SHAPE.2).map(value).collect();
            Tensor::from_vec(values, SHAPE, device).unwrap()
        }

        /// What the processors make of it.
        fn expected(&self, round: usize) -> Vec<f32> {
            floats(
                &self
                    .layer
                    .sum_all_reduce(&self.values(round, &CandleDevice::Cpu))
                    .unwrap(),
            )
        }

        fn sum(&self, round: usize) -> Vec<f32> {
            floats(&self.layer.sum_all_reduce(&self.values(round, &self.gpu)).unwrap())
        }

        fn exchanges(&self) -> u64 {
            self.node.counters().iter().map(|(_, report)| report.exchanges).sum()
        }

        fn stream(&self) -> Arc<cudarc::driver::CudaStream> {
            self.gpu.as_cuda_device().unwrap().cuda_stream()
        }
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// NCCL takes a GPU once in a process.
    fn a_gpu_each() -> bool {
        let enough = crate::cuda::device_count() >= RANKS;
        if !enough {
            eprintln!("needs {RANKS} GPUs");
        }
        enough
    }

    /// Ranks as threads, with a GPU each where there are as many.
    fn ranks(link: &str, body: impl Fn(&Rank) + Sync) {
        let listeners: Vec<_> = (0..RANKS).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
        let peers: Vec<_> = listeners.iter().map(address).collect();
        drop(listeners);
        let text = format!("version: 1\ncodec: {{kind: dynamic}}\nexchange: {{gpu_link: {link}}}\n");
        let run = |rank: usize| {
            let plan = Plan::parse(&text, Path::new("tpq.yaml")).unwrap();
            let variables = [(RANK_VARIABLE, rank.to_string()), (PEERS_VARIABLE, peers.join(","))];
            let environment: Environment = variables.into_iter().collect();
            let topology = plan.topology(&environment).unwrap();
            let place = links::place(&plan, &topology, None).unwrap().unwrap();
            let node = Arc::new(Node::new(plan, place, false).unwrap());
            node.connect([7; 32], Dtype::F32).unwrap();
            let gpu = CandleDevice::new_cuda_with_stream(rank % crate::cuda::device_count()).unwrap();
            let layer = SiteReducer::new(node.clone(), "model.layers.0.mlp.down_proj".into()).unwrap();
            body(&Rank { node, gpu, layer });
        };
        std::thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> = (0..RANKS).map(|rank| scope.spawn(move || run(rank))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn a_layer_on_a_gpu_has_the_sums_of_processors() {
        let links = ["tcp", "host", "nccl"].into_iter();
        for link in links.filter(|link| *link != "nccl" || a_gpu_each()) {
            ranks(link, |rank| {
                for round in 0..3 {
                    assert_eq!(rank.sum(round), rank.expected(round), "{link}");
                }
                assert_eq!(rank.exchanges(), 6);
                assert_eq!(rank.node.graph_epoch().is_some(), link == "nccl");
            });
        }
    }

    #[test]
    fn a_captured_step_exchanges_what_its_tensors_have_at_each_replay_and_is_counted() {
        if !a_gpu_each() {
            return;
        }
        ranks("nccl", |rank| {
            assert_eq!(rank.node.graph_epoch(), None, "nothing is open");
            rank.sum(0);
            let epoch = rank.node.graph_epoch();
            assert!(epoch.is_some());
            let values = Var::from_tensor(&rank.values(0, &rank.gpu)).unwrap();
            let device = Device::on(rank.stream()).unwrap();
            let mut output = None;
            let graph = device.capture(|| -> Result<()> {
                output = Some(rank.layer.sum_all_reduce(values.as_tensor())?);
                Ok(())
            });
            let (graph, output) = (graph.unwrap(), output.unwrap());
            let before = rank.exchanges();
            for round in [3, 1, 2] {
                values.set(&rank.values(round, &rank.gpu)).unwrap();
                graph.launch().unwrap();
                rank.node.graph_replayed(SHAPE.0).unwrap();
                assert_eq!(floats(&output), rank.expected(round));
            }
            // Three more are the processors'.
            assert_eq!(rank.exchanges() - before, 6);
            assert_eq!(rank.node.graph_epoch(), epoch);
            rank.node.obey(Command::Select(Node::LOSSLESS)).unwrap();
            assert_ne!(rank.node.graph_epoch(), epoch);
            rank.node.obey(Command::Verify(true)).unwrap();
            assert_eq!(rank.node.graph_epoch(), None);
        });
    }

    #[test]
    fn nan_in_a_replay_fails_on_all_ranks_and_puts_the_graph_out_of_date() {
        if !a_gpu_each() {
            return;
        }
        ranks("nccl", |rank| {
            rank.sum(0);
            let epoch = rank.node.graph_epoch();
            let values = Var::from_tensor(&rank.values(0, &rank.gpu)).unwrap();
            let device = Device::on(rank.stream()).unwrap();
            let graph = device.capture(|| {
                rank.layer
                    .sum_all_reduce(values.as_tensor())
                    .map(|_| ())
                    .map_err(anyhow::Error::from)
            });
            let graph = graph.unwrap();
            if rank.node.rank() == 1 {
                let nan = Tensor::full(f32::NAN, SHAPE, &CandleDevice::Cpu).unwrap();
                values.set(&nan.to_device(&rank.gpu).unwrap()).unwrap();
            }
            graph.launch().unwrap();
            let error = rank.node.graph_replayed(SHAPE.0).unwrap_err();
            assert!(format!("{error:#}").contains("rank 1"), "{error:#}");
            assert_ne!(rank.node.graph_epoch(), epoch);
            assert_eq!(rank.sum(1), rank.expected(1));
        });
    }
}
