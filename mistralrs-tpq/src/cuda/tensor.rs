//! A partial sum in device memory of this crate's own: for measurements and tests, where there is no candle.

#![allow(unsafe_code)]

use super::device::driver;
use super::group::Operands;
use super::memory::Buffer;
use super::{CudaError, Device, DeviceReducer};
use crate::codec::{Codec, Dtype};
use crate::exchange::{Communicator, ExchangeStats, Site};

/// `[tokens, features]`, row-major. Freeing it waits for what the device still does with it.
#[derive(Debug)]
pub struct DeviceTensor {
    buffer: Buffer,
    tokens: usize,
    features: usize,
    dtype: Dtype,
}

impl DeviceTensor {
    /// From little-endian elements, `tokens * features` of them; of zeros where there are none.
    ///
    /// # Errors
    /// No memory, or bytes that do not fit the shape.
    pub fn new(
        device: &Device,
        (tokens, features): (usize, usize),
        dtype: Dtype,
        bytes: &[u8],
    ) -> Result<Self, CudaError> {
        let len = tokens * features * dtype.size();
        let buffer = match bytes.len() {
            0 => Buffer::zeroed(device, len)?,
            given if given == len => Buffer::of(device, bytes)?,
            given => {
                return Err(CudaError::ApiMisuse {
                    what: format!("{given} bytes for a tensor of {len}"),
                })
            }
        };
        Ok(Self {
            buffer,
            tokens,
            features,
            dtype,
        })
    }

    /// Its elements, little-endian, once the stream is done with it.
    ///
    /// # Errors
    /// What the device reports.
    pub fn read(&self, device: &Device) -> Result<Vec<u8>, CudaError> {
        device.stream().synchronize().map_err(driver("go on"))?;
        let mut bytes = vec![0; self.tokens * self.features * self.dtype.size()];
        // SAFETY: as long as the tensor, which nothing writes any more.
        let copied = unsafe { cudarc::driver::result::memcpy_dtoh_sync(&mut bytes, self.buffer.address()) };
        copied.map_err(driver("copy from the GPU"))?;
        Ok(bytes)
    }
}

impl DeviceReducer {
    /// As [`DeviceReducer::all_reduce`], of tensors of one shape and dtype.
    ///
    /// # Errors
    /// As there, and tensors that differ.
    pub fn all_reduce_tensor(
        &mut self,
        communicator: &Communicator,
        site: &Site,
        codec: (usize, &dyn Codec),
        values: &DeviceTensor,
        output: &mut DeviceTensor,
    ) -> Result<ExchangeStats, CudaError> {
        let shape = |tensor: &DeviceTensor| (tensor.tokens, tensor.features, tensor.dtype);
        if shape(values) != shape(output) || values.features != codec.1.features() {
            return Err(CudaError::ApiMisuse {
                what: "values, sum and codec are of different shapes".to_owned(),
            });
        }
        let operands = Operands {
            values: values.buffer.address(),
            output: output.buffer.address(),
            bias: 0,
            residual: 0,
            tokens: values.tokens,
            dtype: values.dtype,
        };
        // SAFETY: two tensors of the shape; what frees them waits for the device, and only the stream writes them.
        unsafe { self.all_reduce(communicator, site, codec, &operands) }
    }
}
