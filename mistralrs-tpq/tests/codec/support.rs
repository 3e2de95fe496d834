//! Sites, tensors and round trips for the codec tests.

use half::{bf16, f16};
use mistralrs_tpq::codec::{
    Codec, Dtype, Dynamic, EncodeStats, EntropyTables, Level, NoCodec, Paper, PaperTables, Rd, RdEntropy, RdRank,
    RdTables, Shape, Values, CLASSES, SHAPE_LEN,
};
use proptest::prelude::*;

/// One reduce site: some rows, and a calibration for them.
#[derive(Debug, Clone)]
pub struct Site {
    pub values: Vec<f32>,
    pub ranges: Vec<Vec<f32>>,
    pub outliers: Vec<u32>,
}

impl Site {
    pub fn features(&self) -> usize {
        self.ranges[0].len()
    }

    pub fn tokens(&self) -> usize {
        self.values.len() / self.features()
    }

    pub fn paper(&self, level: Level) -> Paper {
        paper(self.ranges.clone(), self.outliers.clone()).with_level(level)
    }

    /// Every class in turn, with steps from the ranges.
    pub fn rd(&self) -> Rd {
        let rank = |ranges: &Vec<f32>| RdRank {
            bits: (0..ranges.len())
                .map(|i| CLASSES[(i * 7 + ranges.len()) % CLASSES.len()])
                .collect(),
            steps: ranges.iter().map(|range| (range / 8.0).clamp(1e-3, 2.0)).collect(),
        };
        let ranks: Vec<RdRank> = self.ranges.iter().map(rank).collect();
        Rd::new(RdTables::new(&ranks).unwrap())
    }

    /// Root mean squares from the ranges, at 3.5 bits.
    pub fn rd_entropy(&self) -> RdEntropy {
        let rank = |ranges: &Vec<f32>| ranges.iter().map(|range| f64::from(range.min(12.0)) / 4.0).collect();
        let rms: Vec<Vec<f64>> = self.ranges.iter().map(rank).collect();
        RdEntropy::new(EntropyTables::new(&normal_shape(), &rms, 3.5).unwrap())
    }

    /// In the order of `CodecKind::ALL`, then the codec of sums.
    pub fn codecs(&self, level: Level) -> [Box<dyn Codec>; 6] {
        [
            Box::new(NoCodec::new(self.features())),
            Box::new(self.paper(level)),
            Box::new(Dynamic::new(self.features()).with_level(level)),
            Box::new(self.rd().with_level(level)),
            Box::new(self.rd_entropy().with_level(level)),
            Box::new(Dynamic::wide(self.features()).with_level(level)),
        ]
    }

    /// Two rows with a special value here and there.
    pub fn patterned(features: usize, ranks: usize, outliers: usize, seed: u32) -> Self {
        const SPECIAL: [f32; 8] = [
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            1e-40,
            -0.0,
            0.0,
        ];
        let mut noise = Noise(seed);
        let mut value = || match noise.next() % 61 {
            0 => SPECIAL[noise.next() as usize % 8],
            _ => noise.next() as i32 as f32 / (1 << 28) as f32,
        };
        let values = (0..2 * features).map(|_| value()).collect();
        let ranges = (0..ranks)
            .map(|_| (0..features).map(|i| (i % 9) as f32).collect())
            .collect();
        let outliers = (0..outliers).map(|i| (i * features / outliers) as u32).collect();
        Self {
            values,
            ranges,
            outliers,
        }
    }
}

/// Magnitudes of a unit normal.
pub fn normal_shape() -> Vec<f32> {
    let mut mass = vec![0.0; SHAPE_LEN];
    for i in 0..300 {
        let y = (f64::from(i) + 0.5) / 50.0;
        Shape::spread(&mut mass, y - 0.01, y + 0.01, (-y * y / 2.0).exp());
    }
    mass.into_iter().map(|mass| mass as f32).collect()
}

/// Any bit pattern, with a good share of everyday magnitudes.
pub fn any_value() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -10.0f32..10.0,
        2 => any::<u32>().prop_map(f32::from_bits),
        1 => prop::sample::select(vec![
            0.0, -0.0, 7.5, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, -1e-39,
        ]),
    ]
}

pub fn any_range() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => 0.0f32..12.0,
        1 => prop::sample::select(vec![0.0, 1e-45, 1e-39, f32::MIN_POSITIVE, 8.3e-38, 1e-30, 1e30, f32::from_bits(0x7f00_0000)]),
    ]
}

pub fn site(ranks: usize, max_tokens: usize, value: impl Strategy<Value = f32> + Clone) -> impl Strategy<Value = Site> {
    (1usize..=200, 1..=max_tokens).prop_flat_map(move |(features, tokens)| {
        let all: Vec<u32> = (0..features as u32).collect();
        (
            prop::collection::vec(value.clone(), features * tokens),
            prop::collection::vec(prop::collection::vec(any_range(), features), ranks),
            prop_oneof![
                prop::sample::subsequence(all.clone(), 0..=features),
                prop::sample::subsequence(all, features / 64)
            ],
        )
            .prop_map(|(values, ranges, outliers)| Site {
                values,
                ranges,
                outliers,
            })
    })
}

pub fn any_site() -> impl Strategy<Value = Site> {
    site(2, 3, any_value().boxed())
}

pub fn finite_site(ranks: usize) -> impl Strategy<Value = Site> {
    site(
        ranks,
        2,
        any_value().prop_map(|x| if x.is_finite() { x } else { 1.0 }).boxed(),
    )
}

pub fn paper(ranges: Vec<Vec<f32>>, outliers: Vec<u32>) -> Paper {
    Paper::new(PaperTables::new(ranges, outliers).unwrap())
}

/// Owned elements of one dtype.
pub enum Tensor {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Tensor {
    pub fn new(dtype: Dtype, values: &[f32]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(values.to_vec()),
            Dtype::Bf16 => Self::Bf16(values.iter().copied().map(bf16::from_f32).collect()),
            Dtype::F16 => Self::F16(values.iter().copied().map(f16::from_f32).collect()),
        }
    }

    pub fn values(&self) -> Values<'_> {
        match self {
            Self::F32(v) => Values::F32(v),
            Self::Bf16(v) => Values::Bf16(v),
            Self::F16(v) => Values::F16(v),
        }
    }

    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(v) => v.clone(),
            Self::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Self::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
        }
    }

    pub fn le_bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::Bf16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// Encodes twice, over different garbage: equal results show that every byte is written and nothing else decides them.
pub fn encode(codec: &dyn Codec, rank: usize, input: &Tensor) -> (Vec<u8>, EncodeStats) {
    let values = input.values();
    let tokens = values.len().checked_div(codec.features()).unwrap_or(0);
    let mut payloads = [0x00, 0xff].map(|garbage| vec![garbage; codec.payload_len(tokens, values.dtype())]);
    let stats = [
        codec.encode(rank, values, &mut payloads[0]),
        codec.encode(rank, values, &mut payloads[1]),
    ];
    assert_eq!(stats[0], stats[1]);
    let [first, second] = payloads;
    assert_eq!(first, second);
    (first, stats[0])
}

pub fn round_trip(codec: &dyn Codec, values: &[f32]) -> (Vec<f32>, EncodeStats) {
    let (payload, stats) = encode(codec, 0, &Tensor::new(Dtype::F32, values));
    let mut sum = vec![0.0; values.len()];
    codec.decode_accumulate(0, &payload, Dtype::F32, &mut sum).unwrap();
    (sum, stats)
}

pub fn assert_same_bits(scalar: &dyn Codec, best: &dyn Codec, rank: usize, input: &Tensor, seed: u32) {
    let dtype = input.values().dtype();
    let (payload, stats) = encode(scalar, rank, input);
    assert_eq!(
        (&payload, stats),
        (&encode(best, rank, input).0, encode(best, rank, input).1),
        "{} {dtype:?}",
        best.name()
    );
    let mut noise = Noise(seed);
    let before: Vec<f32> = (0..input.values().len())
        .map(|i| {
            if i % 5 == 0 {
                -0.0
            } else {
                noise.next() as i32 as f32 / 65536.0
            }
        })
        .collect();
    let zeros = vec![0.0; before.len()];
    for codec in [scalar, best] {
        let (mut first, mut added) = (before.clone(), zeros.clone());
        codec.decode_first(rank, &payload, dtype, &mut first).unwrap();
        scalar.decode_accumulate(rank, &payload, dtype, &mut added).unwrap();
        assert_eq!(
            bits(&first),
            bits(&added),
            "{} {dtype:?}, as the first term",
            codec.name()
        );
    }
    let (mut one, mut two) = (before.clone(), before);
    scalar.decode_accumulate(rank, &payload, dtype, &mut one).unwrap();
    best.decode_accumulate(rank, &payload, dtype, &mut two).unwrap();
    assert_eq!(bits(&one), bits(&two), "{} {dtype:?}", best.name());
}

/// A small linear congruential generator; its low bits are weak, so it gives the high ones.
pub struct Noise(pub u32);

impl Noise {
    pub fn next(&mut self) -> u32 {
        let mut out = 0;
        for _ in 0..2 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            out = out << 16 | self.0 >> 16;
        }
        out
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

pub fn f32_bits(words: &str) -> Vec<f32> {
    words
        .split(' ')
        .map(|word| f32::from_bits(u32::from_str_radix(word, 16).unwrap()))
        .collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The codecs of a site on the specification, each with itself on every other level of this processor.
pub fn on_other_levels(site: &Site) -> impl Iterator<Item = (Box<dyn Codec>, Box<dyn Codec>)> + '_ {
    Level::all()
        .skip(1)
        .flat_map(|level| site.codecs(Level::scalar()).into_iter().zip(site.codecs(level)))
}
