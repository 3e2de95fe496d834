//! The all-reduce of one layer, as a candle custom op.

use std::sync::{Arc, OnceLock};

use anyhow::{ensure, Context};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use mistralrs_quant::AllReduce;

use super::node::Node;
use super::provider::candle;
use crate::codec::{Codec, Values, ValuesMut};
use crate::command::LayerError;
use crate::exchange::Site;
use crate::monitor::SiteMonitor;

/// Sums one layer's partial sums over the ranks.
#[derive(Debug)]
pub(super) struct SiteReducer {
    node: Arc<Node>,
    site: Site,
    /// One codec per choice of the node. Each is made at its first exchange, which is the first to know the feature count.
    codecs: Vec<OnceLock<Arc<dyn Codec>>>,
    /// Of the configured choice, where it is watched; it has the codec then.
    monitor: OnceLock<Option<Arc<SiteMonitor>>>,
}

impl SiteReducer {
    /// # Errors
    /// A layer that the manifest does not know.
    pub(super) fn new(node: Arc<Node>, name: Arc<str>) -> anyhow::Result<Self> {
        for choice in node.choices() {
            if let Some(manifest) = &choice.manifest {
                manifest.layer(&name).with_context(|| {
                    format!(
                        "the manifest of {} has no layer {name}: calibrate this model (tpq calibrate)",
                        choice.label
                    )
                })?;
            }
        }
        let site = node.site(name);
        let codecs = node.choices().iter().map(|_| OnceLock::new()).collect();
        Ok(Self {
            node,
            site,
            codecs,
            monitor: OnceLock::new(),
        })
    }

    #[cfg(feature = "cuda")]
    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    #[cfg(feature = "cuda")]
    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    /// Counts the error of this rank's own partial sum, of a copy on the processor.
    #[cfg(feature = "cuda")]
    pub(super) fn verify(
        &self,
        choice: usize,
        codec: &dyn Codec,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> anyhow::Result<()> {
        let (start, end) = layout
            .contiguous_offsets()
            .context("the engine passed a partial sum that is not contiguous")?;
        let values = match storage {
            CpuStorage::F32(v) => Values::F32(&v[start..end]),
            CpuStorage::BF16(v) => Values::Bf16(&v[start..end]),
            CpuStorage::F16(v) => Values::F16(&v[start..end]),
            other => anyhow::bail!("partial sums are f32, bf16 or f16, got {:?}", other.dtype()),
        };
        let error = own_error(codec, self.node.rank(), values);
        self.node.count_error(choice, &self.site.name, error);
        Ok(())
    }

    /// The codec of an exchange, of the node's choices. `decode`: one token a sequence.
    pub(super) fn choice(&self, tokens: usize, decode: bool) -> usize {
        let policy = &self.node.plan.exchange;
        let small = (tokens as u64) < policy.min_tokens || (policy.prefill_only && decode);
        match self.node.observing() || small || self.node.spared(&self.site.name) {
            true => Node::LOSSLESS,
            false => self.node.selected(),
        }
    }

    pub(super) fn codec(&self, choice: usize, features: usize) -> anyhow::Result<Arc<dyn Codec>> {
        let codec = match self.codecs[choice].get() {
            Some(codec) => codec,
            None => {
                let made = self.node.choices()[choice].for_layer(&self.site.name, features)?;
                self.codecs[choice].get_or_init(|| made)
            }
        };
        Ok(codec.clone())
    }

    fn monitor(&self, choice: usize, features: usize) -> anyhow::Result<Option<&Arc<SiteMonitor>>> {
        let Some(monitor) = self.node.drift().filter(|_| choice == Node::CONFIGURED) else {
            return Ok(None);
        };
        if self.monitor.get().is_none() {
            let made = monitor.site(&self.site.name, features)?;
            self.monitor.get_or_init(|| made);
        }
        Ok(self.monitor.get().and_then(Option::as_ref))
    }

    /// `decode`: one token a sequence.
    fn exchange(
        &self,
        input: Values<'_>,
        mut output: ValuesMut<'_>,
        features: usize,
        decode: bool,
    ) -> anyhow::Result<()> {
        let tokens = input.len() / features.max(1);
        let node = &self.node;
        let choice = self.choice(tokens, decode);
        let monitor = self.monitor(choice, features)?;
        let codec = match monitor {
            Some(monitor) => monitor.codec(),
            None => self.codec(choice, features)?,
        };
        ensure!(
            codec.features() == features,
            "layer {} was exchanged with {} features before, now {features}",
            self.site.name,
            codec.features()
        );
        if node.observing() {
            node.observe(&self.site.name, features, &to_f32(input))?;
        }
        if node.recording() {
            node.record(&self.site.name, features, &to_f32(input));
        }
        if node.verifying() {
            node.count_error(choice, &self.site.name, own_error(codec.as_ref(), node.rank(), input));
        }
        let dtype = input.dtype();
        let step = node.step.current();
        let span = tracing::debug_span!(parent: &step, "exchange", site = %self.site, tokens).entered();
        let communicator = node.communicator()?;
        if node.meeting() {
            communicator.meet()?;
        }
        let stats = communicator.all_reduce(&self.site, codec.as_ref(), input, output.reborrow())?;
        drop(span);
        if let Some(monitor) = monitor {
            monitor.exchanged(input, output.as_values(), stats.clipped)?;
        }
        node.count(choice, codec.as_ref(), tokens, dtype, &stats);
        Ok(())
    }
}

impl AllReduce for SiteReducer {
    fn sum_all_reduce(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply_op1_no_bwd(&AllReduceOp(self))
    }
}

struct AllReduceOp<'a>(&'a SiteReducer);

impl AllReduceOp<'_> {
    fn run<'v, T: Clone + Default>(
        &self,
        data: &'v [T],
        layout: &Layout,
        values: impl Fn(&'v [T]) -> Values<'v>,
        values_mut: impl for<'m> Fn(&'m mut [T]) -> ValuesMut<'m>,
    ) -> anyhow::Result<Vec<T>> {
        let (start, end) = layout
            .contiguous_offsets()
            .context("the engine passed a partial sum that is not contiguous")?;
        let features = layout.dims().last().copied().unwrap_or(1);
        let mut output = vec![T::default(); end - start];
        // [batch, sequence, features]: a decode step has one token a sequence.
        let decode = matches!(layout.dims(), [.., 1, _]);
        self.0
            .exchange(values(&data[start..end]), values_mut(&mut output), features, decode)?;
        Ok(output)
    }
}

impl CustomOp1 for AllReduceOp<'_> {
    fn name(&self) -> &'static str {
        "tpq-all-reduce"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let output = match storage {
            CpuStorage::F32(v) => self
                .run(v, layout, Values::F32, |v| ValuesMut::F32(v))
                .map(CpuStorage::F32),
            CpuStorage::BF16(v) => self
                .run(v, layout, Values::Bf16, |v| ValuesMut::Bf16(v))
                .map(CpuStorage::BF16),
            CpuStorage::F16(v) => self
                .run(v, layout, Values::F16, |v| ValuesMut::F16(v))
                .map(CpuStorage::F16),
            other => Err(anyhow::anyhow!(
                "partial sums are f32, bf16 or f16, got {:?}",
                other.dtype()
            )),
        };
        let site = &self.0.site.name;
        let output = output.map_err(|error| candle(error.context(format!("all-reduce of {site} failed"))))?;
        Ok((output, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let on_cpu = |storage: &CpuStorage, layout: &Layout| self.cpu_fwd(storage, layout);
        let output = self.0.sum_on_device(storage, layout, on_cpu);
        let site = &self.0.site.name;
        let output = output.map_err(|error| candle(error.context(format!("all-reduce of {site} failed"))))?;
        Ok((output, layout.shape().clone()))
    }
}

fn to_f32(values: Values<'_>) -> Vec<f32> {
    match values {
        Values::F32(v) => v.to_vec(),
        Values::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
        Values::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
    }
}

/// Error of this rank's own partial sum after the codec: what the peers see against what it was.
fn own_error(codec: &dyn Codec, rank: usize, input: Values<'_>) -> LayerError {
    let features = codec.features().max(1);
    let tokens = input.len() / features;
    let dtype = input.dtype();
    let exact = to_f32(input);
    let mut payload = vec![0; codec.payload_len(tokens, dtype)];
    codec.encode(rank, input, &mut payload);
    let mut seen = vec![0.0; exact.len()];
    if codec.decode_accumulate(rank, &payload, dtype, &mut seen).is_err() {
        return LayerError {
            out_of_bound: exact.len() as u64,
            ..LayerError::default()
        };
    }
    let mut total = LayerError {
        values: exact.len() as u64,
        ..LayerError::default()
    };
    let mut bound = vec![0.0; features];
    for (row, seen) in exact.chunks_exact(features).zip(seen.chunks_exact(features)) {
        codec.error_bound(rank, row, &mut bound);
        for ((&x, &y), &bound) in row.iter().zip(seen).zip(&bound) {
            let error = (f64::from(x) - f64::from(y)).abs();
            total.signal_energy += f64::from(x) * f64::from(x);
            total.error_energy += error * error;
            total.out_of_bound += u64::from(error > f64::from(bound));
        }
    }
    total
}
