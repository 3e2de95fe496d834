//! A site's codec on the device.

use super::args::Table;
use super::grid::DeviceCodec;
use super::memory::Buffer;
use super::{CudaError, Device, PaperLayout};
use crate::codec::{Codec, Dtype, Dynamic, PaperTables};

/// The codec of a site, and its calibration where it has one.
#[derive(Debug)]
pub struct SiteTables {
    pub codec: DeviceCodec,
    pub features: usize,
    pub outliers: usize,
    table: Table,
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
        let (table, memory) = match codec.paper_tables() {
            None => (Table::default(), None),
            Some(tables) => {
                let (table, memory) = upload(device, tables)?;
                (table, Some(memory))
            }
        };
        Ok(Some(Self {
            codec: kind,
            features: codec.features(),
            outliers: table.outlier_count as usize,
            table,
            _memory: memory,
        }))
    }

    /// Of raw values.
    pub(super) fn raw(features: usize) -> Self {
        Self {
            codec: DeviceCodec::None,
            features,
            outliers: 0,
            table: Table::default(),
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
            DeviceCodec::Paper => (self.features - self.outliers).div_ceil(2) + 2 * self.outliers,
            DeviceCodec::Dynamic => Dynamic::new(self.features).payload_len(1, dtype),
            DeviceCodec::Dynamic8 => Dynamic::wide(self.features).payload_len(1, dtype),
        }
    }
}

/// All arrays in one allocation, each at a multiple of 256 bytes, as the kernels' loads of 16 bytes need it.
fn upload(device: &Device, tables: &PaperTables) -> Result<(Table, Buffer), CudaError> {
    let layout = PaperLayout::new(tables);
    let mut bytes = Vec::new();
    let mut starts = [0; 7];
    let parts = layout.parts();
    for (start, (_, part)) in starts.iter_mut().zip(parts) {
        bytes.resize(bytes.len().next_multiple_of(256), 0);
        *start = bytes.len() as u64;
        bytes.extend_from_slice(part);
    }
    let memory = Buffer::of(device, &bytes)?;
    let mut table = Table {
        stride: layout.stride as u32,
        slots: layout.slots() as u32,
        outlier_count: layout.outliers.len() as u32,
        ..Table::default()
    };
    let fields = bytemuck::bytes_of_mut(&mut table);
    for ((field, _), start) in layout.parts().into_iter().zip(starts) {
        fields[field..field + 8].copy_from_slice(&(memory.address() + start).to_le_bytes());
    }
    Ok((table, memory))
}
