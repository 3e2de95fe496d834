//! A GPU with the kernels loaded, and launches on one of its streams.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

use super::args::{Barrier, Call};
use super::grid::{Kernel, Launch};
use super::wait::{wait, Pending};
use super::CudaError;

// SAFETY: plain integers in the layout of the structures in `kernels/args.cuh`; the tests compare their sizes.
unsafe impl DeviceRepr for Call {}
// SAFETY: as `Call`.
unsafe impl DeviceRepr for Barrier {}

/// Made by the build script: PTX, of which the driver makes machine code for the GPU at hand.
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// One GPU, one stream, all kernels. Cheap to clone.
#[derive(Clone)]
pub struct Device {
    stream: Arc<CudaStream>,
    functions: Arc<HashMap<Kernel, CudaFunction>>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("ordinal", &self.stream.context().ordinal())
            .finish()
    }
}

impl Device {
    /// The GPU of that number among the visible ones, with a stream of its own.
    ///
    /// # Errors
    /// No driver, no such GPU, or one that cannot run the kernels.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        require_driver()?;
        let context = CudaContext::new(ordinal).map_err(driver("open the GPU"))?;
        let stream = context.new_stream().map_err(driver("make a stream"))?;
        Self::on(stream)
    }

    /// On a stream of the engine's, so that exchanges run in order with what it computes.
    ///
    /// # Errors
    /// As [`Device::new`].
    pub fn on(stream: Arc<CudaStream>) -> Result<Self, CudaError> {
        let context = stream.context();
        let mut modules = Vec::new();
        for source in [ptx::CODEC, ptx::BARRIER] {
            modules.push(
                context
                    .load_module(Ptx::from_src(source))
                    .map_err(driver("load the kernels"))?,
            );
        }
        let mut functions = HashMap::new();
        for kernel in Kernel::all() {
            let module = &modules[usize::from(kernel == Kernel::Barrier)];
            let function = module.load_function(&kernel.name()).map_err(driver("find a kernel"))?;
            functions.insert(kernel, function);
        }
        let functions = Arc::new(functions);
        Ok(Self { stream, functions })
    }

    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    /// Makes the GPU that of the calling thread, which what follows in it relies on.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.context().bind_to_thread().map_err(driver("use the GPU"))
    }

    /// Records what `submit` adds to the stream into a graph, instead of running it.
    ///
    /// # Errors
    /// Those of `submit`, and what the driver reports.
    pub fn capture<E: From<CudaError>>(&self, submit: impl FnOnce() -> Result<(), E>) -> Result<CudaGraph, E> {
        let refused = driver("capture a graph");
        // As engines do it: other threads may go on using the driver.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        let (context, tracked) = (self.context(), self.context().is_event_tracking());
        // SAFETY: what is captured is in the order of one stream. An event in a graph could not be waited for outside of it.
        unsafe { context.disable_event_tracking() };
        let began = self.stream.begin_capture(mode).map_err(|error| E::from(refused(error)));
        let submitted = began.and_then(|()| submit());
        // Ended in any case: a stream that captures runs nothing.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        if tracked {
            // SAFETY: as it was before.
            unsafe { context.enable_event_tracking() };
        }
        submitted?;
        let none = || CudaError::ApiMisuse {
            what: "a graph of nothing".to_owned(),
        };
        Ok(graph.map_err(&refused)?.ok_or_else(none)?)
    }

    /// Whether work is being recorded into a graph instead of run.
    pub(crate) fn is_capturing(&self) -> Result<bool, CudaError> {
        let status = self
            .stream
            .capture_status()
            .map_err(driver("say whether it captures"))?;
        Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// # Safety
    /// Every address in `call` must stay valid, for as many bytes as `kernels/codec.cu` reads or writes of it, until the
    /// stream has run the kernel.
    pub unsafe fn launch(&self, launch: &Launch, call: &Call) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.submit(launch, call) }
    }

    /// # Safety
    /// As [`Device::launch`], of `kernels/barrier.cu`.
    pub unsafe fn barrier(&self, barrier: &Barrier) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.submit(&Launch::barrier(), barrier) }
    }

    /// # Safety
    /// As [`Device::launch`]; `argument` is the type that the kernel takes.
    unsafe fn submit<T: DeviceRepr>(&self, launch: &Launch, argument: &T) -> Result<(), CudaError> {
        let function = self.functions.get(&launch.kernel).ok_or_else(|| CudaError::ApiMisuse {
            what: format!("there is no kernel {}", launch.kernel.name()),
        })?;
        let config = LaunchConfig {
            grid_dim: (launch.grid.0, launch.grid.1, 1),
            block_dim: (launch.threads, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut builder = self.stream.launch_builder(function);
        builder.arg(argument);
        // SAFETY: one argument of the kernel's type, which is copied at the launch; its addresses are the caller's promise.
        let launched = unsafe { builder.launch(config) };
        launched.map(|_| ()).map_err(driver("launch a kernel"))
    }

    /// Copies `len` bytes on the device, in the stream's order.
    ///
    /// # Safety
    /// Both addresses are valid for `len` bytes until the stream has copied them, and do not overlap.
    pub unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        let copied = unsafe { cudarc::driver::result::memcpy_dtod_async(to, from, len, self.stream.cu_stream()) };
        copied.map_err(driver("copy on the GPU"))
    }

    /// Writes zeros, in the stream's order.
    ///
    /// # Safety
    /// The address is valid for `len` bytes until the stream has written them.
    pub unsafe fn clear(&self, at: u64, len: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        let cleared = unsafe { cudarc::driver::result::memset_d8_async(at, 0, len, self.stream.cu_stream()) };
        cleared.map_err(driver("clear memory of the GPU"))
    }

    /// Waits until the stream has done all that was given to it so far. `between` is called now and then meanwhile, and
    /// `abort` when it reports an error or the deadline has passed.
    ///
    /// # Errors
    /// What the driver or `between` reports, or [`CudaError::Stalled`].
    pub fn finish(
        &self,
        deadline: Duration,
        between: &mut dyn FnMut() -> Result<(), CudaError>,
        abort: &mut dyn FnMut(),
    ) -> Result<(), CudaError> {
        let event = self.stream.record_event(None).map_err(driver("record an event"))?;
        let event = &event;
        wait(&mut Recorded { event, between, abort }, deadline)
    }

    /// As [`Device::finish`], of what was given to the stream before `event`.
    ///
    /// # Errors
    /// As [`Device::finish`].
    pub(super) fn wait_for(
        event: &CudaEvent,
        deadline: Duration,
        between: &mut dyn FnMut() -> Result<(), CudaError>,
        abort: &mut dyn FnMut(),
    ) -> Result<(), CudaError> {
        wait(&mut Recorded { event, between, abort }, deadline)
    }
}

struct Recorded<'a> {
    event: &'a CudaEvent,
    between: &'a mut dyn FnMut() -> Result<(), CudaError>,
    abort: &'a mut dyn FnMut(),
}

impl Pending for Recorded<'_> {
    fn poll(&mut self) -> Result<bool, CudaError> {
        (self.between)()?;
        self.event.try_is_complete().map_err(driver("go on"))
    }

    fn abort(&mut self) {
        (self.abort)();
    }
}

/// What the driver says, with what was asked of it.
pub(super) fn driver(what: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver {
        what,
        reason: format!("{:?}", error.0),
    }
}

/// GPUs that this process sees; none without a driver.
pub fn device_count() -> usize {
    let count = require_driver().map(|()| CudaContext::device_count());
    count.map_or(0, |count| count.map_or(0, |count| usize::try_from(count).unwrap_or(0)))
}

/// Without the engine the driver is looked for now; the engine's program would not have started without it.
pub(super) fn require_driver() -> Result<(), CudaError> {
    #[cfg(not(feature = "candle"))]
    // SAFETY: loads a shared library by its usual names and drops it again.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(CudaError::Absent {
            library: "CUDA driver (libcuda.so.1)",
            hint: "it comes with NVIDIA's driver; in a container, expose it",
        });
    }
    Ok(())
}
