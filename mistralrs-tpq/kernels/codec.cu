// encode, decode_accumulate, reduce_requantize, and place, which decodes what two-shot's owners sent.
//
// Grid: x covers the chunks of a row, one thread each (encoding `rd`, some each); y strides over the tokens. A thread keeps its
// column, so a site's tables stay in the first-level cache. A warp reads 512 consecutive bytes of 16-bit elements and writes 128
// of codes.
//
// | kernel | reads | writes | bit-equal to |
// |---|---|---|---|
// | tpq_encode_* | values, in place: outliers too | payload, header counts | Codec::encode |
// | tpq_decode_* | `ranks` payloads, in rank order | sum (+ bias) (+ residual) | Codec::decode_accumulate, one rounding |
// | tpq_requantize_* | `ranks` payloads | payload of the f32 sum | both, without a rounding between them |
// | tpq_place_* | `ranks` payloads, each of its own rows | all rows | Codec::decode_accumulate of each, one rounding |
//
// Bias and residual are added as the layers after an all-reduce do it: in f32, rounded to the dtype after each.
// A rank that reports NaN or infinity makes the output NaN, except with `none`, which carries them.

#include "codecs.cuh"
#include "rd.cuh"
#include "slots.cuh"

namespace tpq {

constexpr uint32_t THREADS = 128;

template <class T> struct ValueRows {
    static constexpr bool IS_SUM = false;
    const Call &call;

    TPQ_DEVICE const T *row(uint32_t token) const {
        return static_cast<const T *>(call.values) + static_cast<size_t>(token) * call.values_stride;
    }
    TPQ_DEVICE void chunk(uint32_t token, uint32_t c, uint32_t count, float (&x)[CHUNK]) const {
        load_chunk(row(token) + c * CHUNK, count, x);
    }
    TPQ_DEVICE float one(uint32_t token, uint32_t feature) const { return to_float(row(token)[feature]); }
};

// The sum over the ranks' payloads.
template <class Codec> struct Sums {
    static constexpr bool IS_SUM = true;
    const Call &call;
    const Slots &slots;

    TPQ_DEVICE const uint8_t *row(uint32_t rank, uint32_t token) const {
        const size_t from = (static_cast<size_t>(call.first_row) + token) * call.from_row_len;
        return call.payloads[rank] + slots.read + from;
    }
    TPQ_DEVICE void malformed(uint32_t rank) const { mark(&call.status->malformed_ranks, uint64_t{1} << rank); }

    TPQ_DEVICE void chunk(uint32_t token, uint32_t c, uint32_t count, float (&sum)[CHUNK]) const {
        for (uint32_t j = 0; j < CHUNK; ++j) {
            sum[j] = 0.0f;
        }
        for (uint32_t rank = 0; rank < call.ranks; ++rank) {
            if (!Codec::add_chunk(call.from, rank, row(rank, token), c, count, call.features, sum)) {
                malformed(rank);
            }
        }
    }
    TPQ_DEVICE float one(uint32_t token, uint32_t feature) const {
        float sum = 0.0f;
        for (uint32_t rank = 0; rank < call.ranks; ++rank) {
            if (!Codec::add_one(call.from, rank, row(rank, token), feature, sum)) {
                malformed(rank);
            }
        }
        return sum;
    }
};

// Rows that the ranks share out among them: payload r has those of rank r, all cut as evenly as can be.
template <class Codec> struct Slices {
    const Call &call;
    const Slots &slots;

    TPQ_DEVICE uint32_t start(uint32_t rank) const {
        return static_cast<uint32_t>(static_cast<uint64_t>(call.tokens) * rank / call.ranks);
    }
    TPQ_DEVICE void chunk(uint32_t token, uint32_t c, uint32_t count, float (&sum)[CHUNK]) const {
        // Close to token * ranks / tokens: a division, and a step or two for its rounding.
        uint32_t owner = static_cast<uint32_t>(static_cast<uint64_t>(token) * call.ranks / call.tokens);
        while (owner + 1 < call.ranks && start(owner + 1) <= token) {
            ++owner;
        }
        for (uint32_t j = 0; j < CHUNK; ++j) {
            sum[j] = 0.0f;
        }
        const size_t from = static_cast<size_t>(token - start(owner)) * call.from_row_len;
        const uint8_t *row = call.payloads[owner] + slots.read + from;
        if (!Codec::add_chunk(call.from, owner, row, c, count, call.features, sum)) {
            mark(&call.status->malformed_ranks, uint64_t{1} << owner);
        }
    }
};

TPQ_DEVICE Header *header_of(uint8_t *payload) { return reinterpret_cast<Header *>(payload) - 1; }
TPQ_DEVICE const Header *header_of(const uint8_t *payload) { return reinterpret_cast<const Header *>(payload) - 1; }

// Counts of all threads, added to the header of the payload and to the totals: rarely anything to add.
TPQ_DEVICE void report(const Call &call, const Slots &slots, Seen seen, uint32_t lane) {
    for (uint32_t lanes = 16; lanes > 0; lanes /= 2) {
        seen.clipped += shuffle_xor(seen.clipped, lanes);
        seen.nonfinite += shuffle_xor(seen.nonfinite, lanes);
    }
    Header *header = header_of(call.payload + slots.written);
    if (lane == 0 && seen.clipped > 0) {
        count(&header->clipped, seen.clipped);
        count(&call.status->clipped, static_cast<uint64_t>(seen.clipped));
    }
    if (lane == 0 && seen.nonfinite > 0) {
        count(&header->nonfinite, seen.nonfinite);
        count(&call.status->nonfinite, static_cast<uint64_t>(seen.nonfinite));
    }
}

TPQ_DEVICE void tag(const Call &call, const Slots &slots, uint32_t unit, uint32_t first_token) {
    if (unit == 0 && first_token == 0) {
        header_of(call.payload + slots.written)->tag = call.tag;
    }
}

template <class Codec, class Source>
TPQ_DEVICE void encode(const Call &call, const Slots &slots, const Source &source, uint32_t unit, uint32_t first_token,
                       uint32_t stride) {
    Seen seen;
    tag(call, slots, unit, first_token);
    for (uint32_t token = first_token; token < call.tokens; token += stride) {
        uint8_t *row = call.payload + slots.written + static_cast<size_t>(token) * call.to_row_len;
        Codec::write(call.to, call.to_rank, source, token, unit, call.features, row, seen);
    }
    // A sum beyond the range of f32 saturates, alike on all ranks; no rank's input was at fault.
    if (Source::IS_SUM) {
        seen.clipped += seen.nonfinite;
        seen.nonfinite = 0;
    }
    report(call, slots, seen, unit % 32);
}

// `none`: the payload is the values; only the count is missing.
template <class T>
TPQ_DEVICE void copy(const Call &call, uint32_t unit, uint32_t first_token, uint32_t stride) {
    const Slots slots = slots_of(call);
    Seen seen;
    tag(call, slots, unit, first_token);
    const uint32_t count = in_chunk(unit, call.features);
    for (uint32_t token = first_token; token < call.tokens; token += stride) {
        float x[CHUNK];
        const T *from = ValueRows<T>{call}.row(token) + unit * CHUNK;
        uint8_t *row = call.payload + slots.written + static_cast<size_t>(token) * call.to_row_len;
        T *to = reinterpret_cast<T *>(row) + unit * CHUNK;
        load_chunk(from, count, x);
        for (uint32_t j = 0; j < CHUNK; ++j) {
            seen.nonfinite += is_finite(x[j]) ? 0 : 1;
        }
        if (count == CHUNK && aligned(from, 16) && aligned(to, 16)) {
            for (uint32_t i = 0; i < CHUNK * sizeof(T) / 16; ++i) {
                reinterpret_cast<uint4 *>(to)[i] = reinterpret_cast<const uint4 *>(from)[i];
            }
            continue;
        }
        for (uint32_t j = 0; j < count; ++j) {
            to[j] = from[j];
        }
    }
    report(call, slots, seen, unit % 32);
}

// What the headers of the payloads say: the ranks with NaN or infinity. One thread of the grid notes that, and who sent
// something else than was expected, and passes the former on with what it writes.
TPQ_DEVICE uint64_t read_headers(const Call &call, const Slots &slots, bool notes) {
    uint64_t bad = 0;
    uint64_t mismatched = 0;
    for (uint32_t rank = 0; rank < call.ranks; ++rank) {
        const Header *header = header_of(call.payloads[rank] + slots.read);
        bad |= static_cast<uint64_t>(header->nonfinite > 0 ? 1 : 0) << rank;
        bad |= header->marks[0] | static_cast<uint64_t>(header->marks[1]) << 32;
        mismatched |= static_cast<uint64_t>(header->tag != call.from_tag ? 1 : 0) << rank;
    }
    if (notes) {
        if (bad != 0) {
            mark(&call.status->nonfinite_ranks, bad);
        }
        if (mismatched != 0) {
            mark(&call.status->mismatched_ranks, mismatched);
        }
        if (call.payload != nullptr) {
            Header *header = header_of(call.payload + slots.written);
            header->marks[0] = static_cast<uint32_t>(bad);
            header->marks[1] = static_cast<uint32_t>(bad >> 32);
            header->tag = call.tag;
        }
    }
    return bad;
}

template <class To, class Source>
TPQ_DEVICE void requantize(const Call &call, const Slots &slots, const Source &source, uint32_t unit, uint32_t token,
                           uint32_t stride) {
    if (unit == 0 && token == 0) {
        read_headers(call, slots, true);
    }
    encode<To>(call, slots, source, unit, token, stride);
}

template <class T, bool LOSSLESS, class Source>
TPQ_DEVICE void decode(const Call &call, const Slots &slots, const Source &source, uint32_t c, uint32_t first_token,
                       uint32_t stride) {
    const uint64_t bad = read_headers(call, slots, c == 0 && first_token == 0);
    const uint32_t count = in_chunk(c, call.features);
    if (count == 0) {
        return;
    }
    T *output = static_cast<T *>(call.output == nullptr ? call.payload + slots.written : call.output);
    float bias[CHUNK] = {};
    if (call.bias != nullptr) {
        load_chunk(static_cast<const T *>(call.bias) + c * CHUNK, count, bias);
    }
    for (uint32_t token = first_token; token < call.tokens; token += stride) {
        const size_t at = static_cast<size_t>(token) * call.values_stride + c * CHUNK;
        float residual[CHUNK] = {};
        if (call.residual != nullptr) {
            load_chunk(static_cast<const T *>(call.residual) + at, count, residual);
        }
        float sum[CHUNK];
        source.chunk(token, c, count, sum);
        T rounded[CHUNK];
        for (uint32_t j = 0; j < CHUNK; ++j) {
            rounded[j] = round_to<T>(!LOSSLESS && bad != 0 ? from_bits(NAN_BITS) : sum[j]);
            if (call.bias != nullptr) {
                rounded[j] = round_to<T>(add(to_float(rounded[j]), bias[j]));
            }
            if (call.residual != nullptr) {
                rounded[j] = round_to<T>(add(to_float(rounded[j]), residual[j]));
            }
        }
        store_chunk(output + at, count, rounded);
    }
}

} // namespace tpq

#define TPQ_INDICES                                                                                                    \
    const uint32_t unit = blockIdx.x * blockDim.x + threadIdx.x;                                                       \
    const uint32_t token = blockIdx.y;                                                                                 \
    const uint32_t stride = gridDim.y;

// Bounds: threads of a block, and blocks of a processor where the compiler would choose more and spill.
#define TPQ_CODEC_DTYPE(codec, Codec, dtype, T, ...)                                                                   \
    TPQ_KERNEL(__VA_ARGS__) tpq_encode_##codec##_##dtype(TPQ_CONST tpq::Call call) {                                   \
        TPQ_INDICES                                                                                                    \
        const tpq::Slots slots = tpq::slots_of(call);                                                                  \
        tpq::encode<Codec>(call, slots, tpq::ValueRows<T>{call}, unit, token, stride);                                 \
    }                                                                                                                  \
    TPQ_KERNEL(__VA_ARGS__) tpq_decode_##codec##_##dtype(TPQ_CONST tpq::Call call) {                                   \
        TPQ_INDICES                                                                                                    \
        const tpq::Slots slots = tpq::slots_of(call);                                                                  \
        tpq::decode<T, false>(call, slots, tpq::Sums<Codec>{call, slots}, unit, token, stride);                        \
    }

#define TPQ_NONE_DTYPE(dtype, T)                                                                                       \
    TPQ_KERNEL(tpq::THREADS) tpq_encode_none_##dtype(TPQ_CONST tpq::Call call) {                                       \
        TPQ_INDICES                                                                                                    \
        tpq::copy<T>(call, unit, token, stride);                                                                       \
    }                                                                                                                  \
    TPQ_KERNEL(tpq::THREADS) tpq_decode_none_##dtype(TPQ_CONST tpq::Call call) {                                       \
        TPQ_INDICES                                                                                                    \
        const tpq::Slots slots = tpq::slots_of(call);                                                                  \
        tpq::decode<T, true>(call, slots, tpq::Sums<tpq::None<T>>{call, slots}, unit, token, stride);                  \
    }

#define TPQ_REQUANTIZE(from, From, to, To)                                                                             \
    TPQ_KERNEL(tpq::THREADS) tpq_requantize_##from##_##to(TPQ_CONST tpq::Call call) {                                  \
        TPQ_INDICES                                                                                                    \
        const tpq::Slots slots = tpq::slots_of(call);                                                                  \
        tpq::requantize<To>(call, slots, tpq::Sums<From>{call, slots}, unit, token, stride);                           \
    }

#define TPQ_PLACE(codec, Codec, LOSSLESS, dtype, T)                                                                    \
    TPQ_KERNEL(tpq::THREADS) tpq_place_##codec##_##dtype(TPQ_CONST tpq::Call call) {                                   \
        TPQ_INDICES                                                                                                    \
        const tpq::Slots slots = tpq::slots_of(call);                                                                  \
        tpq::decode<T, LOSSLESS>(call, slots, tpq::Slices<Codec>{call, slots}, unit, token, stride);                   \
    }

#define TPQ_PLACE_DTYPE(dtype, T)                                                                                      \
    TPQ_PLACE(none, tpq::None<T>, true, dtype, T)                                                                      \
    TPQ_PLACE(dynamic, tpq::Dynamic, false, dtype, T)                                                                  \
    TPQ_PLACE(dynamic8, tpq::Dynamic8, false, dtype, T)

TPQ_CODEC_DTYPE(paper, tpq::Paper, f32, float, tpq::THREADS)
TPQ_CODEC_DTYPE(paper, tpq::Paper, bf16, tpq::Bf16, tpq::THREADS)
TPQ_CODEC_DTYPE(paper, tpq::Paper, f16, tpq::F16, tpq::THREADS)
TPQ_CODEC_DTYPE(dynamic, tpq::Dynamic, f32, float, tpq::THREADS)
TPQ_CODEC_DTYPE(dynamic, tpq::Dynamic, bf16, tpq::Bf16, tpq::THREADS)
TPQ_CODEC_DTYPE(dynamic, tpq::Dynamic, f16, tpq::F16, tpq::THREADS)
TPQ_CODEC_DTYPE(rd, tpq::Rd, f32, float, tpq::THREADS, 6)
TPQ_CODEC_DTYPE(rd, tpq::Rd, bf16, tpq::Bf16, tpq::THREADS, 6)
TPQ_CODEC_DTYPE(rd, tpq::Rd, f16, tpq::F16, tpq::THREADS, 6)
TPQ_NONE_DTYPE(f32, float)
TPQ_NONE_DTYPE(bf16, tpq::Bf16)
TPQ_NONE_DTYPE(f16, tpq::F16)
TPQ_REQUANTIZE(paper, tpq::Paper, dynamic, tpq::Dynamic)
TPQ_REQUANTIZE(paper, tpq::Paper, dynamic8, tpq::Dynamic8)
TPQ_REQUANTIZE(dynamic, tpq::Dynamic, dynamic, tpq::Dynamic)
TPQ_REQUANTIZE(dynamic, tpq::Dynamic, dynamic8, tpq::Dynamic8)
TPQ_REQUANTIZE(rd, tpq::Rd, dynamic, tpq::Dynamic)
TPQ_REQUANTIZE(rd, tpq::Rd, dynamic8, tpq::Dynamic8)
TPQ_PLACE_DTYPE(f32, float)
TPQ_PLACE_DTYPE(bf16, tpq::Bf16)
TPQ_PLACE_DTYPE(f16, tpq::F16)
