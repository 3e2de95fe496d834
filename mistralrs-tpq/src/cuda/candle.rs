//! candle's tensors as operands: what a custom op's `cuda_fwd` does.

#![allow(unsafe_code)]

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaStorage, CudaStorageSlice};
use candle_core::{CudaDevice, Layout};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr};

use super::group::Operands;
use super::{CudaError, DeviceReducer};
use crate::codec::{Codec, Dtype};
use crate::exchange::{Communicator, ExchangeStats, Site};

/// As [`DeviceReducer::all_reduce`], of a contiguous tensor `[.., features]` of candle's, whose stream `reducer` must use; the sum
/// and what the exchange did.
///
/// # Errors
/// A tensor that is not contiguous, has another dtype than f32, bf16 or f16, is on another stream, or for whose sum there is no
/// memory; as [`DeviceReducer::all_reduce`].
pub fn all_reduce_storage(
    reducer: &mut DeviceReducer,
    communicator: &Communicator,
    site: &Site,
    codec: (usize, &dyn Codec),
    (storage, layout): (&CudaStorage, &Layout),
) -> Result<(CudaStorage, ExchangeStats), CudaError> {
    let device = storage.device();
    if **reducer.device().stream() != *device.cuda_stream() {
        return Err(misuse(
            "the engine passed a partial sum of another GPU or stream".to_owned(),
        ));
    }
    if layout.dims().last() != Some(&codec.1.features()) {
        return Err(misuse(format!(
            "the engine passed a partial sum of shape {:?}",
            layout.dims()
        )));
    }
    let mut stats = ExchangeStats::default();
    let run = |operands: &Operands| {
        // SAFETY: candle's tensors, of the shape in `operands` as `typed` made them; candle frees them in the order of the
        // stream that the reducer adds to.
        stats = unsafe { reducer.all_reduce(communicator, site, codec, operands) }?;
        Ok(())
    };
    let slice = match &storage.slice {
        CudaStorageSlice::F32(values) => CudaStorageSlice::F32(typed(device, values, layout, Dtype::F32, run)?),
        CudaStorageSlice::BF16(values) => CudaStorageSlice::BF16(typed(device, values, layout, Dtype::Bf16, run)?),
        CudaStorageSlice::F16(values) => CudaStorageSlice::F16(typed(device, values, layout, Dtype::F16, run)?),
        _ => {
            return Err(misuse(format!(
                "partial sums are f32, bf16 or f16, got {:?}",
                storage.dtype()
            )))
        }
    };
    let device = device.clone();
    Ok((CudaStorage { slice, device }, stats))
}

fn typed<T: DeviceRepr>(
    device: &CudaDevice,
    values: &CudaSlice<T>,
    layout: &Layout,
    dtype: Dtype,
    run: impl FnOnce(&Operands) -> Result<(), CudaError>,
) -> Result<CudaSlice<T>, CudaError> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| misuse("the engine passed a partial sum that is not contiguous".to_owned()))?;
    let features = layout.dims().last().copied().unwrap_or(1);
    // SAFETY: all of it is written by `run`, whose promise that is.
    let output = unsafe { device.alloc::<T>(end - start) };
    let mut output = output.map_err(|error| misuse(format!("no memory for a sum: {error}")))?;
    let stream: Arc<CudaStream> = device.cuda_stream();
    let values = values.slice(start..end);
    {
        let (from, _reading) = values.device_ptr(&stream);
        let (to, _writing) = output.device_ptr_mut(&stream);
        run(&Operands {
            values: from,
            output: to,
            bias: 0,
            residual: 0,
            tokens: (end - start).checked_div(features).unwrap_or(0),
            dtype,
        })?;
    }
    Ok(output)
}

fn misuse(what: String) -> CudaError {
    CudaError::ApiMisuse { what }
}
