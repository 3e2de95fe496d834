//! One reduce site in the tests: a codec, the same codec's device tables, and inputs that hurt.

use half::{bf16, f16};
use mistralrs_tpq::codec::{Codec, Dtype, Dynamic, NoCodec, Paper, PaperTables, Rd, RdRank, RdTables, Values, CLASSES};
use mistralrs_tpq::cuda::args::{Table, CHUNK};
use mistralrs_tpq::cuda::{DeviceCodec, PaperLayout, RdLayout, SiteLayout};
use rand::seq::index::sample;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::emulator::Pointer;

pub struct Site {
    pub codec: Box<dyn Codec>,
    /// Features that go as BF16; of `rd`, the last rank's.
    pub outliers: usize,
    /// Chunks that encoding a row takes.
    pub units: usize,
    layout: Option<Box<dyn SiteLayout>>,
}

impl Site {
    pub fn new(kind: DeviceCodec, features: usize, ranks: usize, rng: &mut ChaCha8Rng) -> Self {
        match kind {
            DeviceCodec::None => Self::uncalibrated(Box::new(NoCodec::new(features))),
            DeviceCodec::Paper => Self::paper(features, ranks, rng),
            DeviceCodec::Rd => Self::rd(features, ranks, rng),
            _ => Self::uncalibrated(Box::new(Dynamic::new(features))),
        }
    }

    fn uncalibrated(codec: Box<dyn Codec>) -> Self {
        Self {
            outliers: 0,
            units: codec.features().div_ceil(CHUNK),
            codec,
            layout: None,
        }
    }

    fn paper(features: usize, ranks: usize, rng: &mut ChaCha8Rng) -> Self {
        let count = rng.random_range(0..=features.min(features / 16 + 2));
        let mut outliers: Vec<u32> = sample(rng, features, count).iter().map(|o| o as u32).collect();
        outliers.sort_unstable();
        let range = |rng: &mut ChaCha8Rng| match rng.random_range(0..10) {
            0 => 0.0,
            1 => 1e-38,
            _ => rng.random_range(0.01f32..4.0),
        };
        let ranges = (0..ranks)
            .map(|_| (0..features).map(|_| range(rng)).collect())
            .collect();
        let tables = PaperTables::new(ranges, outliers).unwrap();
        let layout = PaperLayout::new(&tables);
        Self {
            outliers: count,
            units: layout.units(),
            codec: Box::new(Paper::new(tables)),
            layout: Some(Box::new(layout)),
        }
    }

    /// Any classes, so that rows of ranks differ in length and the shorter ones are filled up.
    fn rd(features: usize, ranks: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut rank = || {
            let few = rng.random_range(1..=CLASSES.len());
            let bits: Vec<u8> = (0..features).map(|_| CLASSES[rng.random_range(0..few)]).collect();
            let step = |rng: &mut ChaCha8Rng| match rng.random_range(0..10) {
                0 => 1e-20,
                1 => 900.0,
                _ => rng.random_range(0.01f32..2.0),
            };
            let steps = (0..features).map(|_| step(rng)).collect();
            RdRank { bits, steps }
        };
        let ranks: Vec<RdRank> = (0..ranks).map(|_| rank()).collect();
        let words = ranks[ranks.len() - 1].bits.iter().filter(|bits| **bits == 16).count();
        let tables = RdTables::new(&ranks).unwrap();
        let layout = RdLayout::new(&tables).unwrap();
        Self {
            outliers: words,
            units: layout.units(),
            codec: Box::new(Rd::new(tables)),
            layout: Some(Box::new(layout)),
        }
    }

    pub fn row_len(&self, dtype: Dtype) -> usize {
        self.codec.payload_len(1, dtype)
    }

    /// The table whose field `at` of a call this is: its numbers, its buffers, and where they are to be written.
    pub fn table(&self, at: usize, buffers: &mut Vec<Vec<u8>>, pointers: &mut Vec<Pointer>) -> Table {
        let Some(layout) = &self.layout else {
            return Table::default();
        };
        for (field, bytes) in layout.parts() {
            pointers.push((at + field, buffers.len(), 0));
            buffers.push(bytes.to_vec());
        }
        layout.numbers()
    }
}

/// Elements of one dtype, as the three kinds of slices need them.
#[derive(Clone)]
pub enum Elements {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Elements {
    pub fn of(dtype: Dtype, values: &[f32]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(values.to_vec()),
            Dtype::Bf16 => Self::Bf16(values.iter().map(|x| bf16::from_f32(*x)).collect()),
            Dtype::F16 => Self::F16(values.iter().map(|x| f16::from_f32(*x)).collect()),
        }
    }

    pub fn values(&self) -> Values<'_> {
        match self {
            Self::F32(v) => Values::F32(v),
            Self::Bf16(v) => Values::Bf16(v),
            Self::F16(v) => Values::F16(v),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(v) => bytemuck::cast_slice(v),
            Self::Bf16(v) => bytemuck::cast_slice(v),
            Self::F16(v) => bytemuck::cast_slice(v),
        }
    }

    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(v) => v.clone(),
            Self::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Self::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

/// Finite values of all sizes, ties between codes among them.
pub fn finite(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    let extremes = [
        0.0,
        -0.0,
        1e-45,
        -1e-40,
        6e-8,
        65504.0,
        -3.0e38,
        3.4e38,
        1e30,
        f32::MIN_POSITIVE,
    ];
    (0..count)
        .map(|_| match rng.random_range(0..16) {
            0 => extremes[rng.random_range(0..extremes.len())],
            1 => rng.random_range(-16i32..16) as f32 * 0.25,
            _ => rng.random_range(-4.0f32..4.0),
        })
        .collect()
}

/// As [`finite`], a few of them NaN or infinite.
pub fn hostile(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    let mut values = finite(rng, count);
    for x in &mut values {
        match rng.random_range(0..20) {
            0 => *x = f32::NAN,
            1 => *x = f32::INFINITY,
            2 => *x = f32::NEG_INFINITY,
            _ => {}
        }
    }
    values
}
