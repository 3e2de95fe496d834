//! The CUDA kernels, compiled for this processor from the same source and run with the same grid and blocks, against the
//! scalar specification: bit for bit, with odd rows, single tokens, misaligned buffers, NaN, infinities and subnormals.
//! What a device does differently from this model (scheduling, memory order, caches) is not tested here.

#[path = "cuda/barrier.rs"]
mod barrier;
#[path = "cuda/emulator.rs"]
mod emulator;
#[path = "cuda/site.rs"]
mod site;

use std::mem::offset_of;
use std::ops::Range;

use bytemuck::Zeroable;
use emulator::{Emulator, Pointer};
use half::{bf16, f16};
use mistralrs_tpq::codec::{Codec, Dtype, Dynamic, NoCodec};
use mistralrs_tpq::cuda::args::{Call, Header, Status, CHUNK, HEADER_LEN};
use mistralrs_tpq::cuda::{DeviceCodec, Launch};
use mistralrs_tpq::transport::MAX_RANKS;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use site::{finite, hostile, Elements, Site};

const FEATURES: [usize; 12] = [1, 2, 7, 8, 31, 33, 64, 129, 250, 1024, 1031, 2080];
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];
const CODECS: [DeviceCodec; 4] = [
    DeviceCodec::None,
    DeviceCodec::Paper,
    DeviceCodec::Dynamic,
    DeviceCodec::Rd,
];
/// What payloads of the same exchange have in common.
const TAG: u32 = 0x7a61;

/// A launch under construction: buffer 0 is the status.
struct Case {
    call: Call,
    buffers: Vec<Vec<u8>>,
    pointers: Vec<Pointer>,
}

impl Case {
    fn new(tokens: usize, features: usize) -> Self {
        let mut case = Self {
            call: Call {
                tokens: tokens as u32,
                features: features as u32,
                values_stride: features as u32,
                tag: TAG + 1,
                from_tag: TAG,
                ..Call::zeroed()
            },
            buffers: Vec::new(),
            pointers: Vec::new(),
        };
        case.point(offset_of!(Call, status), vec![0; size_of::<Status>()], 0);
        case
    }

    fn point(&mut self, field: usize, buffer: Vec<u8>, from: usize) -> usize {
        self.pointers.push((field, self.buffers.len(), from));
        self.buffers.push(buffer);
        self.buffers.len() - 1
    }

    /// A payload buffer: `gap` bytes, a header, the bytes.
    fn payload(&mut self, field: usize, gap: usize, header: Header, bytes: &[u8]) -> usize {
        let mut buffer = vec![0; gap];
        buffer.extend_from_slice(bytemuck::bytes_of(&header));
        buffer.extend_from_slice(bytes);
        self.point(field, buffer, gap + HEADER_LEN)
    }

    /// Half of the time with payloads that take turns with two slots.
    fn run(&mut self, emulator: &mut Emulator, launch: &Launch, rng: &mut ChaCha8Rng) {
        let backwards = rng.random_bool(0.5);
        let turn = rng.random_bool(0.5).then(|| rng.random_range(0..5));
        let slots = turn.map_or_else(Vec::new, |turn| self.in_two_slots(turn));
        emulator.run(
            launch,
            bytemuck::bytes_of(&self.call),
            &mut self.buffers,
            &self.pointers,
            backwards,
        );
        for slot in slots {
            slot.leave(&mut self.buffers);
        }
    }

    /// Puts the payloads into the slots that they have after `turn` barriers, with other bytes in the others.
    fn in_two_slots(&mut self, turn: u64) -> Vec<Slot> {
        let payloads = offset_of!(Call, payloads)..offset_of!(Call, payloads) + 8 * MAX_RANKS;
        let (written, read) = (turn as usize % 2, (turn + 1) as usize % 2);
        let of_field = |field| match field == offset_of!(Call, payload) {
            true => Some(written),
            false => payloads.contains(&field).then_some(read),
        };
        let used = self.pointers.iter();
        let used = used.filter_map(|(field, buffer, _)| Some((*buffer, of_field(*field)?)));
        let used: Vec<_> = used.collect();
        let longest = used.iter().map(|(buffer, _)| self.buffers[*buffer].len()).max();
        let slot_len = longest.unwrap_or(0).next_multiple_of(256);
        let place = |(buffer, turn): (usize, usize)| {
            let content = std::mem::replace(&mut self.buffers[buffer], vec![OTHER; 2 * slot_len]);
            let at = turn * slot_len..turn * slot_len + content.len();
            self.buffers[buffer][at.clone()].copy_from_slice(&content);
            Slot { buffer, at }
        };
        let slots = used.into_iter().map(place).collect();
        self.call.slot_len = slot_len as u64;
        self.point(offset_of!(Call, turn), turn.to_le_bytes().to_vec(), 0);
        slots
    }

    fn status(&self) -> Status {
        bytemuck::pod_read_unaligned(&self.buffers[0])
    }

    fn header(&self, buffer: usize) -> Header {
        bytemuck::pod_read_unaligned(&self.buffers[buffer][..HEADER_LEN])
    }
}

/// What is in a slot beside the payload, and in the other slot.
const OTHER: u8 = 0xee;

/// A payload among other bytes.
struct Slot {
    buffer: usize,
    at: Range<usize>,
}

impl Slot {
    /// Puts it back to where it is alone.
    fn leave(self, buffers: &mut [Vec<u8>]) {
        let mut bytes = std::mem::take(&mut buffers[self.buffer]);
        buffers[self.buffer] = bytes[self.at.clone()].to_vec();
        bytes.drain(self.at);
        assert!(bytes.iter().all(|byte| *byte == OTHER), "written outside of the slot");
    }
}

fn each_case(mut check: impl FnMut(usize, usize, &mut ChaCha8Rng)) {
    let mut rng = ChaCha8Rng::seed_from_u64(0x7071);
    for features in FEATURES {
        for tokens in [1, 3] {
            check(features, tokens, &mut rng);
        }
    }
}

#[test]
fn encode_writes_the_specifications_payload_and_counts() {
    let mut emulator = Emulator::start();
    each_case(|features, tokens, rng| {
        for (kind, dtype) in CODECS.into_iter().flat_map(|kind| DTYPES.map(|dtype| (kind, dtype))) {
            let site = Site::new(kind, features, 2, rng);
            let input = Elements::of(dtype, &hostile(rng, tokens * features));
            let mut expected = vec![0; site.codec.payload_len(tokens, dtype)];
            let seen = site.codec.encode(1, input.values(), &mut expected);

            let mut case = Case::new(tokens, features);
            let misaligned = dtype.size() * rng.random_range(0..2);
            let mut bytes = vec![0; misaligned];
            bytes.extend_from_slice(input.bytes());
            case.point(offset_of!(Call, values), bytes, misaligned);
            let out = case.payload(
                offset_of!(Call, payload),
                0,
                Header::default(),
                &vec![0xa5; expected.len()],
            );
            case.call.to = site.table(offset_of!(Call, to), &mut case.buffers, &mut case.pointers);
            case.call.to_row_len = site.row_len(dtype) as u32;
            case.call.to_rank = 1;
            let mut launch = Launch::encode(kind, dtype, site.units, tokens);
            if kind == DeviceCodec::Rd && rng.random_bool(0.3) {
                // As with many tokens.
                launch = Launch {
                    grid: (1, 1),
                    ..Launch::encode(kind, dtype, site.units, 100_000)
                };
            }
            case.run(&mut emulator, &launch, rng);

            let what = format!("{kind:?} {dtype:?} {tokens} x {features}");
            assert_eq!(case.buffers[out][HEADER_LEN..], expected, "{what}");
            let (header, status) = (case.header(out), case.status());
            assert_eq!(
                (status.clipped, status.nonfinite),
                (seen.clipped, seen.nonfinite),
                "{what}"
            );
            assert_eq!(u64::from(header.clipped), seen.clipped, "{what}");
            assert_eq!(u64::from(header.nonfinite), seen.nonfinite, "{what}");
            assert_eq!(header.tag, TAG + 1, "{what}");
        }
    });
}

/// The header of a payload without NaN.
fn plain() -> Header {
    Header {
        tag: TAG,
        ..Header::default()
    }
}

/// Payloads of all ranks, at odd addresses where `dtype` and codec allow it, and the f32 sum the specification gives.
fn payloads(case: &mut Case, site: &Site, dtype: Dtype, ranks: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let (tokens, features) = (case.call.tokens as usize, case.call.features as usize);
    let mut sum = vec![0.0; tokens * features];
    for rank in 0..ranks {
        let input = Elements::of(dtype, &finite(rng, tokens * features));
        let mut payload = vec![0; site.codec.payload_len(tokens, dtype)];
        site.codec.encode(rank, input.values(), &mut payload);
        site.codec.decode_accumulate(rank, &payload, dtype, &mut sum).unwrap();
        let gap = 4 * rng.random_range(0..4);
        case.payload(offset_of!(Call, payloads) + 8 * rank, gap, plain(), &payload);
    }
    case.call.from = site.table(offset_of!(Call, from), &mut case.buffers, &mut case.pointers);
    case.call.from_row_len = site.row_len(dtype) as u32;
    case.call.ranks = ranks as u32;
    sum
}

fn same(got: &Elements, expected: &Elements, what: &str) {
    for (i, (got, expected)) in got.to_f32().into_iter().zip(expected.to_f32()).enumerate() {
        let equal = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
        assert!(equal, "{what}, element {i}: got {got:e}, expected {expected:e}");
    }
}

fn elements(dtype: Dtype, bytes: &[u8]) -> Elements {
    match dtype {
        Dtype::F32 => Elements::F32(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::Bf16 => Elements::Bf16(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect()),
        Dtype::F16 => Elements::F16(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
    }
}

#[test]
fn decode_gives_the_specifications_sum_with_bias_and_residual() {
    let mut emulator = Emulator::start();
    each_case(|features, tokens, rng| {
        for (kind, dtype) in CODECS.into_iter().flat_map(|kind| DTYPES.map(|dtype| (kind, dtype))) {
            let ranks = [1, 2, 4][rng.random_range(0..3)];
            let site = Site::new(kind, features, ranks, rng);
            let mut case = Case::new(tokens, features);
            let sum = payloads(&mut case, &site, dtype, ranks, rng);
            let mut expected = Elements::of(dtype, &sum);
            let mut addend = |field, rows: usize, case: &mut Case, rng: &mut ChaCha8Rng| {
                if rng.random_bool(0.5) {
                    let addend = Elements::of(dtype, &finite(rng, rows * features));
                    case.point(field, addend.bytes().to_vec(), 0);
                    let addend = addend.to_f32();
                    let sums = expected.to_f32();
                    let sums: Vec<f32> = sums.iter().zip(addend.iter().cycle()).map(|(a, b)| a + b).collect();
                    expected = Elements::of(dtype, &sums);
                }
            };
            addend(offset_of!(Call, bias), 1, &mut case, rng);
            addend(offset_of!(Call, residual), tokens, &mut case, rng);
            let out = vec![0xa5; tokens * features * dtype.size()];
            let out = case.point(offset_of!(Call, output), out, 0);
            case.run(&mut emulator, &Launch::decode(kind, dtype, features, tokens), rng);

            let what = format!("{kind:?} {dtype:?} {tokens} x {features}, {ranks} ranks");
            same(&elements(dtype, &case.buffers[out]), &expected, &what);
            assert_eq!(case.status(), Status::default(), "{what}");
        }
    });
}

/// The codec of a sum.
fn of_sum(codec: DeviceCodec, features: usize) -> Box<dyn Codec> {
    match codec {
        DeviceCodec::None => Box::new(NoCodec::new(features)),
        DeviceCodec::Dynamic => Box::new(Dynamic::new(features)),
        _ => Box::new(Dynamic::wide(features)),
    }
}

#[test]
fn requantize_is_the_sum_and_then_the_encoder_without_a_rounding_between() {
    let mut emulator = Emulator::start();
    each_case(|features, tokens, rng| {
        use DeviceCodec::{Dynamic, Dynamic8, Paper, Rd};
        for (from, to) in [
            (Paper, Dynamic),
            (Paper, Dynamic8),
            (Dynamic, Dynamic),
            (Dynamic, Dynamic8),
            (Rd, Dynamic),
            (Rd, Dynamic8),
        ] {
            let ranks = [2, 3][rng.random_range(0..2)];
            let (site, second) = (Site::new(from, features, ranks, rng), of_sum(to, features));
            // The payloads have more rows than this rank sums up: those before and after are other ranks'.
            let rows = tokens + 2;
            let mut case = Case::new(rows, features);
            let sum = payloads(&mut case, &site, Dtype::Bf16, ranks, rng);
            (case.call.tokens, case.call.first_row) = (tokens as u32, 1);
            let sum = Elements::F32(sum[features..(tokens + 1) * features].to_vec());
            let mut expected = vec![0; second.payload_len(tokens, Dtype::F32)];
            let seen = second.encode(1, sum.values(), &mut expected);
            let out = case.payload(
                offset_of!(Call, payload),
                0,
                Header::default(),
                &vec![0xa5; expected.len()],
            );
            case.call.to_row_len = second.payload_len(1, Dtype::F32) as u32;
            let units = features.div_ceil(CHUNK);
            case.run(&mut emulator, &Launch::requantize(from, to, units, tokens), rng);

            let what = format!("{from:?} to {to:?}, {tokens} x {features}, {ranks} ranks");
            assert_eq!(case.buffers[out][HEADER_LEN..], expected, "{what}");
            let header = case.header(out);
            // No rank's input was at fault when a sum is beyond the range of f32: that counts as clipped.
            assert_eq!(u64::from(header.clipped), seen.clipped + seen.nonfinite, "{what}");
            assert_eq!((header.nonfinite, header.marks), (0, [0; 2]), "{what}");
            assert_eq!(header.tag, TAG + 1, "{what}");
            assert_eq!(case.status().mismatched_ranks, 0, "{what}");
        }
    });
}

#[test]
fn place_puts_each_ranks_rows_where_they_belong_for_any_rows_and_ranks() {
    let mut emulator = Emulator::start();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for (tokens, ranks) in [(1, 1), (1, 4), (3, 2), (5, 3), (7, 8), (16, 4), (33, 7)] {
        for codec in [DeviceCodec::None, DeviceCodec::Dynamic, DeviceCodec::Dynamic8] {
            for dtype in DTYPES {
                let features = [1, 31, 64, 250][rng.random_range(0..4)];
                let host = of_sum(codec, features);
                let mut case = Case::new(tokens, features);
                let mut sums = vec![0.0; tokens * features];
                for rank in 0..ranks {
                    let (start, end) = (tokens * rank / ranks, tokens * (rank + 1) / ranks);
                    let own = Elements::of(dtype, &finite(&mut rng, (end - start) * features));
                    let mut payload = vec![0; host.payload_len(end - start, dtype)];
                    host.encode(rank, own.values(), &mut payload);
                    let sums = &mut sums[start * features..end * features];
                    host.decode_accumulate(rank, &payload, dtype, sums).unwrap();
                    case.payload(offset_of!(Call, payloads) + 8 * rank, 0, plain(), &payload);
                }
                case.call.ranks = ranks as u32;
                case.call.from_row_len = host.payload_len(1, dtype) as u32;
                let out = vec![0xa5; tokens * features * dtype.size()];
                let out = case.point(offset_of!(Call, output), out, 0);
                case.run(&mut emulator, &Launch::place(codec, dtype, features, tokens), &mut rng);
                let what = format!("{codec:?} {dtype:?} {tokens} x {features}, {ranks} ranks");
                same(&elements(dtype, &case.buffers[out]), &Elements::of(dtype, &sums), &what);
                assert_eq!(case.status(), Status::default(), "{what}");
            }
        }
    }
}

#[test]
fn a_rank_that_reports_nan_makes_every_output_nan_and_is_named() {
    let mut emulator = Emulator::start();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (tokens, features) = (2, 37);
    let site = Site::new(DeviceCodec::Paper, features, 3, &mut rng);
    let mut case = Case::new(tokens, features);
    payloads(&mut case, &site, Dtype::F32, 3, &mut rng);
    // Buffers 1 to 3 are the payloads; the header ends where the pointer points to.
    let (_, buffer, at) = case.pointers[3];
    case.buffers[buffer][at - HEADER_LEN..][..4].copy_from_slice(&1u32.to_le_bytes());
    let out = case.point(offset_of!(Call, output), vec![0; tokens * features * 4], 0);
    let launch = Launch::decode(DeviceCodec::Paper, Dtype::F32, features, tokens);
    case.run(&mut emulator, &launch, &mut rng);
    assert_eq!(case.status().nonfinite_ranks, 0b100);
    let sums = elements(Dtype::F32, &case.buffers[out]).to_f32();
    assert!(sums.iter().all(|x| x.is_nan()));
}

#[test]
fn payloads_that_no_encoder_sends_are_reported_by_rank() {
    let mut emulator = Emulator::start();
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    // Two bytes of a row that are a BF16: the last outlier of `paper`, the last scale of `dynamic`, the gain and the first feature of
    // 16 bits of `rd`.
    let cases = [
        (DeviceCodec::Paper, -2, 0x7f80_u16),
        (DeviceCodec::Dynamic, -2, 0x7f80),
        (DeviceCodec::Rd, 0, 0x8000),
        (DeviceCodec::Rd, 0, 0x7681),
        (DeviceCodec::Rd, 2, 0xff80),
    ];
    for (kind, at, bits) in cases {
        let features = 65;
        let site = std::iter::repeat_with(|| Site::new(kind, features, 2, &mut rng))
            .find(|site| site.outliers > 0 || kind == DeviceCodec::Dynamic)
            .unwrap();
        let mut case = Case::new(1, features);
        payloads(&mut case, &site, Dtype::Bf16, 2, &mut rng);
        // Pointer 0 is to the status, then one for each rank's payload.
        let (_, buffer, start) = case.pointers[2];
        let row = &mut case.buffers[buffer][start..];
        let at = if at < 0 { row.len() - 2 } else { at as usize };
        row[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        let (row, mut sum) = (row.to_vec(), vec![0.0; features]);
        let refused = site.codec.decode_accumulate(1, &row, Dtype::Bf16, &mut sum);
        assert!(refused.is_err(), "{kind:?}");
        case.point(offset_of!(Call, output), vec![0; features * 2], 0);
        case.run(&mut emulator, &Launch::decode(kind, Dtype::Bf16, features, 1), &mut rng);
        assert_eq!(case.status().malformed_ranks, 0b10, "{kind:?}");
    }
}

#[test]
fn marks_of_a_sum_and_a_payload_of_another_exchange_reach_every_rank() {
    let mut emulator = Emulator::start();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (tokens, features, ranks) = (2, 40, 3);
    let site = Site::new(DeviceCodec::Dynamic, features, ranks, &mut rng);
    let mut case = Case::new(tokens, features);
    payloads(&mut case, &site, Dtype::F32, ranks, &mut rng);
    for (rank, header) in [
        (
            0,
            Header {
                marks: [0, 1 << 8],
                ..plain()
            },
        ),
        (
            2,
            Header {
                tag: TAG + 9,
                ..plain()
            },
        ),
    ] {
        let (_, buffer, at) = case.pointers[1 + rank];
        case.buffers[buffer][at - HEADER_LEN..][..HEADER_LEN].copy_from_slice(bytemuck::bytes_of(&header));
    }
    let second = of_sum(DeviceCodec::Dynamic8, features);
    let out = case.payload(
        offset_of!(Call, payload),
        0,
        Header::default(),
        &vec![0; second.payload_len(tokens, Dtype::F32)],
    );
    case.call.to_row_len = second.payload_len(1, Dtype::F32) as u32;
    let launch = Launch::requantize(
        DeviceCodec::Dynamic,
        DeviceCodec::Dynamic8,
        features.div_ceil(8),
        tokens,
    );
    case.run(&mut emulator, &launch, &mut rng);
    assert_eq!(case.header(out).marks, [0, 1 << 8]);
    let status = case.status();
    assert_eq!((status.nonfinite_ranks, status.mismatched_ranks), (1 << 40, 0b100));
}

#[test]
fn a_sum_of_raw_values_written_as_a_payload_has_a_header_with_the_marks() {
    let mut emulator = Emulator::start();
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let (tokens, features, ranks) = (3, 33, 2);
    let site = Site::new(DeviceCodec::None, features, ranks, &mut rng);
    let mut case = Case::new(tokens, features);
    let sum = payloads(&mut case, &site, Dtype::Bf16, ranks, &mut rng);
    let (_, buffer, at) = case.pointers[2];
    case.buffers[buffer][at - HEADER_LEN..][..4].copy_from_slice(&3u32.to_le_bytes());
    let len = tokens * features * 2;
    let out = case.payload(offset_of!(Call, payload), 0, Header::default(), &vec![0xa5; len]);
    let launch = Launch::decode(DeviceCodec::None, Dtype::Bf16, features, tokens);
    case.run(&mut emulator, &launch, &mut rng);
    let got = elements(Dtype::Bf16, &case.buffers[out][HEADER_LEN..]);
    same(&got, &Elements::of(Dtype::Bf16, &sum), "raw sum");
    let header = case.header(out);
    assert_eq!((header.tag, header.marks, header.nonfinite), (TAG + 1, [0b10, 0], 0));
    assert_eq!(case.status().nonfinite_ranks, 0b10);
}
