//! The all-reduce of a layer whose tensors are on a GPU: the other half of the custom op in `reducer.rs`.

use std::sync::Mutex;

use anyhow::{Context, Result};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, Layout, Shape};

use super::group::Group;
use super::node::lock;
use super::reducer::SiteReducer;
use crate::codec::Codec;
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
                let opened = Opened::new(&group, storage, node.plan.exchange.gpu_link);
                empty.insert(opened.inspect_err(told)?)
            }
        };
        let outcome = opened.sum(&group, self.site(), (choice, codec.as_ref()), (storage, layout));
        let (output, stats) = outcome.inspect_err(|error| {
            if !error.leaves_the_group_usable() {
                opened.reducer.abort();
                group
                    .transport
                    .abort(error.rank().unwrap_or(node.rank()), &error.to_string());
            }
        })?;
        node.count(choice, codec.as_ref(), tokens, group.dtype, &stats);
        Ok(output)
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
            let seen = self.reducer.check(&*group.transport)?;
            stats.clipped += seen.clipped;
            stats.nonfinite += seen.nonfinite;
        }
        Ok((output, stats))
    }
}

fn through_cpu(
    storage: &CudaStorage,
    layout: &Layout,
    on_cpu: impl FnOnce(&CpuStorage, &Layout) -> candle_core::Result<(CpuStorage, Shape)>,
) -> Result<CudaStorage> {
    let (output, _) = on_cpu(&storage.to_cpu_storage()?, layout)?;
    Ok(storage.device().storage_from_cpu_storage(&output)?)
}
