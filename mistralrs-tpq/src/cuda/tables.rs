//! A site's codec on the device.

use super::args::{Table, CHUNK};
use super::grid::DeviceCodec;
use super::memory::Buffer;
use super::{CudaError, Device, PaperLayout, RdLayout, SiteLayout};
use crate::codec::{Codec, Dtype, Dynamic};

/// The codec of a site, and its calibration where it has one.
#[derive(Debug)]
pub struct SiteTables {
    pub codec: DeviceCodec,
    pub features: usize,
    /// Chunks that encoding a row takes: of features, or what the calibration says.
    pub encode_units: usize,
    table: Table,
    /// Bytes of a row of `paper` and `rd`.
    calibrated_len: usize,
    /// What the addresses in `table` point into.
    _memory: Option<Buffer>,
}

impl SiteTables {
    /// `None` for a codec without kernels.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn new(device: &Device, codec: &dyn Codec) -> Result<Option<Self>, CudaError> {
        let Some(kind) = DeviceCodec::from_name(codec.name()) else {
            return Ok(None);
        };
        let mut tables = Self::uncalibrated(kind, codec.features());
        if let Some(paper) = codec.paper_tables() {
            tables.upload(device, &PaperLayout::new(paper))?;
        } else if let Some(rd) = codec.rd_tables() {
            let Some(layout) = RdLayout::new(rd) else {
                return Ok(None);
            };
            tables.upload(device, &layout)?;
        }
        Ok(Some(tables))
    }

    /// Of raw values.
    pub(super) fn raw(features: usize) -> Self {
        Self::uncalibrated(DeviceCodec::None, features)
    }

    fn uncalibrated(codec: DeviceCodec, features: usize) -> Self {
        Self {
            codec,
            features,
            encode_units: features.div_ceil(CHUNK),
            table: Table::default(),
            calibrated_len: 0,
            _memory: None,
        }
    }

    pub(super) fn table(&self) -> Table {
        self.table
    }

    /// Bytes of a row, as [`Codec::payload_len`].
    pub(super) fn row_len(&self, dtype: Dtype) -> usize {
        match self.codec {
            DeviceCodec::None => self.features * dtype.size(),
            DeviceCodec::Paper | DeviceCodec::Rd => self.calibrated_len,
            DeviceCodec::Dynamic => Dynamic::new(self.features).payload_len(1, dtype),
            DeviceCodec::Dynamic8 => Dynamic::wide(self.features).payload_len(1, dtype),
        }
    }

    /// All arrays in one allocation, each at a multiple of 256 bytes, as the kernels' loads of 16 bytes need it.
    fn upload(&mut self, device: &Device, layout: &dyn SiteLayout) -> Result<(), CudaError> {
        let mut bytes = Vec::new();
        let mut places = Vec::new();
        for (field, part) in layout.parts() {
            bytes.resize(bytes.len().next_multiple_of(256), 0);
            places.push((field, bytes.len() as u64));
            bytes.extend_from_slice(part);
        }
        let memory = Buffer::of(device, &bytes)?;
        self.encode_units = layout.units();
        self.calibrated_len = layout.row_len();
        self.table = layout.numbers();
        let fields = bytemuck::bytes_of_mut(&mut self.table);
        for (field, start) in places {
            fields[field..field + 8].copy_from_slice(&(memory.address() + start).to_le_bytes());
        }
        self._memory = Some(memory);
        Ok(())
    }
}
