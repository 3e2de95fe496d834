//! Partial sums to measure with, cheap to make at any size and cheap to check.

use half::{bf16, f16};

use crate::calibrate::{entropy_tables, rd_tables, Curve, GainHistogram};
use crate::codec::{Codec, CodecKind, Dtype, Dynamic, NoCodec, Paper, PaperTables, Rd, RdEntropy, Values, ValuesMut};
use crate::config::defaults::RD_BITS;

/// Rows after which a tensor repeats itself: sums and bounds of that many rows check any number of them.
pub(super) const PERIOD: usize = 16;

/// Owned elements of one dtype.
#[derive(Debug, Clone, PartialEq)]
pub enum Tensor {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Tensor {
    /// `values`, repeated up to `len` elements.
    pub fn repeat(dtype: Dtype, values: &[f32], len: usize) -> Self {
        let values = values.iter().copied().cycle().take(len);
        match dtype {
            Dtype::F32 => Self::F32(values.collect()),
            Dtype::Bf16 => Self::Bf16(values.map(bf16::from_f32).collect()),
            Dtype::F16 => Self::F16(values.map(f16::from_f32).collect()),
        }
    }

    /// Little-endian elements; what is left over of the last one is dropped.
    pub fn from_bytes(dtype: Dtype, bytes: &[u8]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::Bf16 => Self::Bf16(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect()),
            Dtype::F16 => Self::F16(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
        }
    }

    pub fn values(&self) -> Values<'_> {
        match self {
            Self::F32(v) => Values::F32(v),
            Self::Bf16(v) => Values::Bf16(v),
            Self::F16(v) => Values::F16(v),
        }
    }

    pub fn values_mut(&mut self) -> ValuesMut<'_> {
        match self {
            Self::F32(v) => ValuesMut::F32(v),
            Self::Bf16(v) => ValuesMut::Bf16(v),
            Self::F16(v) => ValuesMut::F16(v),
        }
    }

    pub fn at(&self, index: usize) -> f32 {
        match self {
            Self::F32(v) => v[index],
            Self::Bf16(v) => v[index].to_f32(),
            Self::F16(v) => v[index].to_f32(),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(v) => bytemuck::cast_slice(v),
            Self::Bf16(v) => bytemuck::cast_slice(v),
            Self::F16(v) => bytemuck::cast_slice(v),
        }
    }
}

/// Up to 16 rows of `rank`'s partial sum: bell-shaped, every 64th feature ten times as large, as outliers are.
/// Rounded to `dtype`, so that every rank knows all inputs exactly.
pub fn rows(rank: usize, rows: usize, features: usize, dtype: Dtype) -> Vec<f32> {
    let mut state = (rank as u32 + 1).wrapping_mul(0x9E37_79B9);
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..rows.min(PERIOD) * features)
        .map(|i| {
            let x = uniform() + uniform() + uniform() + uniform();
            if (i % features).is_multiple_of(64) {
                x * 10.0
            } else {
                x
            }
        })
        .collect();
    let tensor = Tensor::repeat(dtype, &values, values.len());
    (0..values.len()).map(|i| tensor.at(i)).collect()
}

/// A codec of `features` features for `ranks` ranks whose inputs are [`rows`]. `None` where no tables can be made.
pub fn codec(kind: CodecKind, ranks: usize, features: usize) -> Option<Box<dyn Codec>> {
    Some(match kind {
        CodecKind::None => Box::new(NoCodec::new(features)),
        CodecKind::Dynamic => Box::new(Dynamic::new(features)),
        CodecKind::Paper => {
            let outliers = (0..features as u32).step_by(64).take(features / 64).collect();
            let range = |rank| {
                let rows = rows(rank, PERIOD, features, Dtype::F32);
                let largest = |i: usize| rows[i..].iter().step_by(features).fold(0.0_f32, |m, x| m.max(x.abs()));
                (0..features).map(largest).collect()
            };
            Box::new(Paper::new(
                PaperTables::new((0..ranks).map(range).collect(), outliers).ok()?,
            ))
        }
        CodecKind::Rd => {
            let curves: Vec<Curve> = (0..ranks).flat_map(|rank| observed(rank, features).curves()).collect();
            Box::new(Rd::new(rd_tables(&curves, features, RD_BITS).ok()?))
        }
        CodecKind::RdEntropy => {
            let ranks: Vec<GainHistogram> = (0..ranks).map(|rank| observed(rank, features)).collect();
            let curves: Vec<Curve> = ranks.iter().flat_map(GainHistogram::curves).collect();
            let shape = GainHistogram::shape(&ranks);
            Box::new(RdEntropy::new(entropy_tables(&curves, &shape, features, RD_BITS).ok()?))
        }
    })
}

fn observed(rank: usize, features: usize) -> GainHistogram {
    let mut histogram = GainHistogram::new(features);
    for row in rows(rank, PERIOD, features, Dtype::F32).chunks_exact(features) {
        histogram.observe_row(row);
    }
    histogram
}
