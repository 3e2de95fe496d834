// none, paper and dynamic (of 4 and 8 bits): how a thread reads one chunk of a payload row and how it writes one. The order of the additions
// to an element is that of the ranks alone, so chunks may go to threads in any way.
#pragma once

#include "numbers.cuh"

namespace tpq {

struct Seen {
    uint32_t clipped = 0;
    uint32_t nonfinite = 0;
};

// ---- none ----

template <class T> struct None {
    static TPQ_DEVICE bool add_chunk(const Table &, uint32_t, const uint8_t *row, uint32_t c, uint32_t count,
                                     uint32_t, float (&sum)[CHUNK]) {
        float x[CHUNK];
        load_chunk(reinterpret_cast<const T *>(row) + c * CHUNK, count, x);
        for (uint32_t j = 0; j < CHUNK; ++j) {
            sum[j] = add(sum[j], x[j]);
        }
        return true;
    }
};

// ---- paper ----

struct Paper {
    static constexpr float LOWEST = -7.0f;
    static constexpr float HIGHEST = 7.0f;
    static constexpr float CLIP = 7.5f;

    // Adds feature `f`; false for an outlier that is not finite, which no encoder sends.
    static TPQ_DEVICE bool add_one(const Table &t, uint32_t rank, const uint8_t *row, uint32_t f, float &sum) {
        const uint32_t source = table(t.source + f);
        if ((source & OUTLIER) == 0) {
            const float step = table(t.steps + static_cast<size_t>(rank) * t.stride + f);
            sum = add(sum, mul(static_cast<float>(code_at(row, source)), step));
            return true;
        }
        const float x = from_bf16(read_16(row + plane_len(t.slots) + 2 * (source & ~OUTLIER)));
        sum = add(sum, x);
        return is_finite(x);
    }

    static TPQ_DEVICE bool add_chunk(const Table &t, uint32_t rank, const uint8_t *row, uint32_t c, uint32_t count,
                                     uint32_t, float (&sum)[CHUNK]) {
        const uint32_t patched = table(t.patched_features + c);
        const uint32_t word = read_codes(row, c, plane_len(t.slots));
        float steps[CHUNK];
        load_table(t.steps + static_cast<size_t>(rank) * t.stride + c * CHUNK, steps);
        bool well_formed = true;
        for (uint32_t j = 0; j < CHUNK; ++j) {
            if ((patched >> j & 1u) != 0) {
                well_formed &= add_one(t, rank, row, c * CHUNK + j, sum[j]);
            } else if (j < count) {
                sum[j] = add(sum[j], mul(static_cast<float>(code_in(word, j)), steps[j]));
            }
        }
        return well_formed;
    }

    // Units of work of a row: chunks of slots, then chunks of outliers.
    static TPQ_DEVICE uint32_t units(const Table &t, uint32_t) { return chunks_of(t.slots) + chunks_of(t.outlier_count); }

    static TPQ_DEVICE int code(float x, float inv_step, Seen &seen) {
        if (!is_finite(x)) {
            ++seen.nonfinite;
        } else if (inv_step == 0.0f ? x != 0.0f : magnitude(mul(x, inv_step)) > CLIP) {
            ++seen.clipped;
        }
        return quantize(x, inv_step, LOWEST, HIGHEST);
    }

    template <class Source>
    static TPQ_DEVICE void write(const Table &t, uint32_t rank, const Source &source, uint32_t token, uint32_t unit,
                                 uint32_t features, uint8_t *row, Seen &seen) {
        const uint32_t plane_units = chunks_of(t.slots);
        if (unit < plane_units) {
            write_plane(t, rank, source, token, unit, features, row, seen);
        } else if (unit < units(t, features)) {
            write_outliers(t, source, token, unit - plane_units, row + plane_len(t.slots), seen);
        }
    }

  private:
    template <class Source>
    static TPQ_DEVICE void write_plane(const Table &t, uint32_t rank, const Source &source, uint32_t token, uint32_t c,
                                       uint32_t features, uint8_t *row, Seen &seen) {
        const float *inv_steps = t.inv_steps + static_cast<size_t>(rank) * t.stride;
        const uint32_t patched = table(t.patched_slots + c);
        const uint32_t count = in_chunk(c, t.slots);
        float x[CHUNK];
        float inv[CHUNK];
        source.chunk(token, c, in_chunk(c, features), x);
        load_table(inv_steps + c * CHUNK, inv);
        uint32_t word = 0;
        for (uint32_t j = 0; j < CHUNK; ++j) {
            if ((patched >> j & 1u) != 0) {
                const uint32_t feature = table(t.slot_feature + c * CHUNK + j);
                x[j] = source.one(token, feature);
                inv[j] = table(inv_steps + feature);
            }
            word |= nibble(j < count ? code(x[j], inv[j], seen) : 0, j);
        }
        write_codes(row, c, plane_len(t.slots), word);
    }

    template <class Source>
    static TPQ_DEVICE void write_outliers(const Table &t, const Source &source, uint32_t token, uint32_t c,
                                          uint8_t *words, Seen &seen) {
        const uint32_t count = in_chunk(c, t.outlier_count);
        for (uint32_t j = 0; j < count; ++j) {
            const float x = source.one(token, table(t.outliers + c * CHUNK + j));
            const uint16_t bits = to_finite_bf16(x);
            write_16(words + 2 * (c * CHUNK + j), bits);
            if (!is_finite(x)) {
                ++seen.nonfinite;
            } else if ((to_bf16(x) & 0x7fffu) == 0x7f80u) {
                ++seen.clipped;
            }
        }
    }
};

// ---- dynamic ----

// Codes of a chunk, two to a byte or one.
struct Nibbles {
    uint32_t word = 0;

    static TPQ_DEVICE uint32_t len(uint32_t codes) { return plane_len(codes); }
    static TPQ_DEVICE Nibbles read(const uint8_t *plane, uint32_t c, uint32_t len) {
        return Nibbles{read_codes(plane, c, len)};
    }
    TPQ_DEVICE int at(uint32_t j) const { return code_in(word, j); }
    TPQ_DEVICE void put(int code, uint32_t j) { word |= nibble(code, j); }
    TPQ_DEVICE void write(uint8_t *plane, uint32_t c, uint32_t len) const { write_codes(plane, c, len, word); }
};

struct Bytes {
    uint32_t words[2] = {0, 0};

    static TPQ_DEVICE uint32_t len(uint32_t codes) { return codes; }
    static TPQ_DEVICE Bytes read(const uint8_t *plane, uint32_t c, uint32_t len) {
        return Bytes{{read_codes(plane, 2 * c, len), read_codes(plane, 2 * c + 1, len)}};
    }
    TPQ_DEVICE int at(uint32_t j) const { return static_cast<int8_t>(words[j / 4] >> (8 * (j % 4))); }
    TPQ_DEVICE void put(int code, uint32_t j) {
        words[j / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(code)) << (8 * (j % 4));
    }
    TPQ_DEVICE void write(uint8_t *plane, uint32_t c, uint32_t len) const {
        write_codes(plane, 2 * c, len, words[0]);
        write_codes(plane, 2 * c + 1, len, words[1]);
    }
};

template <class Codes, uint32_t BITS> struct DynamicOf {
    static constexpr uint32_t GROUP = 32;
    // Neighbouring threads, a group among them: they find the group's extreme by shuffles.
    static constexpr uint32_t LANES = GROUP / CHUNK;
    static constexpr float LOWEST = -static_cast<float>(1 << (BITS - 1));
    static constexpr float HIGHEST = -LOWEST - 1.0f;
    static constexpr uint16_t MAX_SCALE = 0x7f7f - ((BITS - 1) << 7);

    static TPQ_DEVICE bool add_chunk(const Table &, uint32_t, const uint8_t *row, uint32_t c, uint32_t count,
                                     uint32_t features, float (&sum)[CHUNK]) {
        const uint16_t bits = read_16(row + Codes::len(features) + 2 * (c / LANES));
        const Codes codes = Codes::read(row, c, Codes::len(features));
        const float scale = from_bf16(bits);
        for (uint32_t j = 0; j < CHUNK; ++j) {
            if (j < count) {
                sum[j] = add(sum[j], mul(static_cast<float>(codes.at(j)), scale));
            }
        }
        return (bits & 0x7fffu) <= MAX_SCALE;
    }

    static TPQ_DEVICE uint32_t units(const Table &, uint32_t features) {
        return (features + GROUP - 1) / GROUP * LANES;
    }

    static TPQ_DEVICE float input(float x) {
        x = is_nan(x) ? 0.0f : x;
        x = x < -BF16_MAX ? -BF16_MAX : x;
        return x > BF16_MAX ? BF16_MAX : x;
    }

    static TPQ_DEVICE uint16_t scale_of(float extreme) {
        // A power of two: exact.
        const uint16_t bits = to_bf16(mul(extreme, 1.0f / LOWEST));
        return magnitude(from_bf16(bits)) < F32_MIN_NORMAL ? 0 : bits;
    }

    // Every lane of a warp must call this together, units beyond the row's included.
    template <class Source>
    static TPQ_DEVICE void write(const Table &, uint32_t, const Source &source, uint32_t token, uint32_t unit,
                                 uint32_t features, uint8_t *row, Seen &seen) {
        const uint32_t count = in_chunk(unit, features);
        float x[CHUNK] = {};
        if (count > 0) {
            source.chunk(token, unit, count, x);
        }
        float lowest = 0.0f;
        float highest = 0.0f;
        for (uint32_t j = 0; j < CHUNK; ++j) {
            seen.nonfinite += is_finite(x[j]) ? 0 : 1;
            x[j] = input(x[j]);
            lowest = x[j] < lowest ? x[j] : lowest;
            highest = x[j] > highest ? x[j] : highest;
        }
        for (uint32_t lanes = 1; lanes < LANES; lanes *= 2) {
            const float low = shuffle_xor(lowest, lanes);
            const float high = shuffle_xor(highest, lanes);
            lowest = low < lowest ? low : lowest;
            highest = high > highest ? high : highest;
        }
        if (count == 0) {
            return;
        }
        const uint16_t scale = scale_of(highest > -lowest ? highest : lowest);
        const float inv_scale = (scale & 0x7fffu) == 0 ? 0.0f : quotient(1.0f, from_bf16(scale));
        Codes codes;
        for (uint32_t j = 0; j < CHUNK; ++j) {
            codes.put(quantize(x[j], inv_scale, LOWEST, HIGHEST), j);
        }
        codes.write(row, unit, Codes::len(features));
        if (unit % LANES == 0) {
            write_16(row + Codes::len(features) + 2 * (unit / LANES), scale);
        }
    }
};

using Dynamic = DynamicOf<Nibbles, 4>;
// For sums of several ranks.
using Dynamic8 = DynamicOf<Bytes, 8>;

} // namespace tpq
