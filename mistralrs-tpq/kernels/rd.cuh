// rd: features of 0 to 16 bits, a gain for each token. Bit for bit as src/codec/rd/row.rs; src/cuda/rd_layout.rs makes the tables.
//
// Encoding goes by the bytes of a row: eight codes of a plane, or parts of codes, are a unit. A feature whose code has two parts
// (6, 5 and 3 bits) is quantized once for each. Decoding goes by features, which know where the parts of their code are.
#pragma once

#include "codecs.cuh"

namespace tpq {

struct Rd {
    static constexpr uint16_t MAX_GAIN = (110 + 127) << 7;
    static constexpr float F32_MAX = 3.40282347e38f;
    // Kinds of features: their bits up to 8, this for 16.
    static constexpr uint32_t WORD = 9;
    // Parts of Table::codebook: levels by code from here on for 1 bit, then for 2, up to 5; thresholds from 2 bits on.
    static constexpr uint32_t LEVELS = 0;
    static constexpr uint32_t THRESHOLDS = 62;
    static constexpr uint32_t CLIPS = 88;

    static TPQ_DEVICE uint32_t half(uint32_t kind) { return 1u << (kind - 1); }
    static TPQ_DEVICE bool is_even(uint32_t kind) { return kind > 5; }

    static TPQ_DEVICE float level(const Table &t, uint32_t kind, uint32_t code) {
        if (!is_even(kind)) {
            return table(t.codebook + LEVELS + (1u << kind) - 2 + code);
        }
        const float size = add(static_cast<float>(code & (half(kind) - 1)), 0.5f);
        return code < half(kind) ? size : -size;
    }

    static TPQ_DEVICE uint32_t bits_at(const uint8_t *row, uint32_t bit, uint32_t width) {
        return row[bit / 8] >> (bit % 8) & ((1u << width) - 1);
    }

    // The code of a feature: its first part has the low bits.
    static TPQ_DEVICE uint32_t code_at(const uint8_t *row, uint32_t kind, uint32_t first, uint32_t second) {
        const uint32_t width = kind == 8 ? 8 : kind >= 4 ? 4 : kind >= 2 ? 2 : 1;
        uint32_t code = bits_at(row, first, width);
        if (kind == 3 || kind == 5 || kind == 6) {
            code |= bits_at(row, second, kind - width) << width;
        }
        return code;
    }

    static TPQ_DEVICE bool add_chunk(const Table &t, uint32_t rank, const uint8_t *row, uint32_t c, uint32_t count,
                                     uint32_t, float (&sum)[CHUNK]) {
        const uint16_t gain_bits = read_16(row);
        const float gain = from_bf16(gain_bits);
        const size_t at = static_cast<size_t>(rank) * t.stride + c * CHUNK;
        float steps[CHUNK];
        uint32_t firsts[CHUNK];
        uint32_t seconds[CHUNK];
        load_table(t.steps + at, steps);
        load_table(t.source + at, firsts);
        load_table(t.second + at, seconds);
        bool well_formed = gain_bits <= MAX_GAIN;
        for (uint32_t j = 0; j < CHUNK; ++j) {
            const uint32_t kind = firsts[j] >> 28;
            const uint32_t first = firsts[j] & 0x0fffffffu;
            if (kind == 0 || j >= count) {
                continue;
            }
            if (kind == WORD) {
                const float x = from_bf16(read_16(row + first / 8));
                sum[j] = add(sum[j], x);
                well_formed &= is_finite(x);
            } else {
                const float size = mul(steps[j], gain);
                sum[j] = add(sum[j], mul(level(t, kind, code_at(row, kind, first, seconds[j])), size));
            }
        }
        return well_formed;
    }

    // Squares are exact in f64. Lane l of a warp adds those of the features l, l + 32, ...; then the lanes are added in halves.
    template <class Source>
    static TPQ_DEVICE uint16_t gain_of(const Source &source, uint32_t token, uint32_t features, uint32_t lane,
                                       uint32_t &nonfinite) {
        double energy = 0.0;
        for (uint32_t feature = lane; feature < features; feature += 32) {
            const float x = source.one(token, feature);
            nonfinite += is_finite(x) ? 0 : 1;
            const double counted = is_finite(x) ? static_cast<double>(x) : 0.0;
            energy = add(energy, mul(counted, counted));
        }
        for (uint32_t lanes = 16; lanes > 0; lanes /= 2) {
            energy = add(energy, shuffle_xor(energy, lanes));
        }
        const uint16_t gain = to_finite_bf16(nearest_float(root(quotient(energy, static_cast<double>(features)))));
        if (from_bf16(gain) < F32_MIN_NORMAL) {
            return 0;
        }
        return gain < MAX_GAIN ? gain : MAX_GAIN;
    }

    // Every lane of a warp must call this together: each warp finds the gain for itself, and the threads of a row share out its
    // units. NaN and infinity are counted by the row's first warp.
    template <class Source>
    static TPQ_DEVICE void write(const Table &t, uint32_t rank, const Source &source, uint32_t token, uint32_t thread,
                                 uint32_t features, uint8_t *row, Seen &seen) {
        uint32_t nonfinite = 0;
        const uint16_t gain = gain_of(source, token, features, thread % 32, nonfinite);
        seen.nonfinite += thread < 32 ? nonfinite : 0;
        if (thread == 0) {
            write_16(row, gain);
        }
        const float inv_gain = gain == 0 ? 0.0f : quotient(1.0f, from_bf16(gain));
        const RdShape *shape = t.shapes + rank;
        const uint32_t units = table(shape->units + RD_PLANES);
        for (uint32_t unit = thread; unit < units; unit += gridDim.x * blockDim.x) {
            uint32_t plane = 0;
            while (table(shape->units + plane + 1) <= unit) {
                ++plane;
            }
            const size_t jobs = static_cast<size_t>(rank) * t.job_stride + unit * CHUNK;
            const uint32_t first_unit = table(shape->units + plane);
            const uint32_t start = table(shape->bytes + plane);
            const uint32_t end = table(shape->bytes + plane + 1);
            write_unit(t, jobs, source, token, inv_gain, plane, row, start, unit - first_unit, end, seen);
        }
    }

  private:
    // Planes have 16, 8, 4, 2 and 1 bits of each code, so eight codes take as many bytes; then zeros up to the end of a row.
    template <class Source>
    static TPQ_DEVICE void write_unit(const Table &t, size_t jobs, const Source &source, uint32_t token, float inv_gain,
                                      uint32_t plane, uint8_t *row, uint32_t start, uint32_t unit, uint32_t end,
                                      Seen &seen) {
        const uint32_t width = plane == RD_ZEROS ? 8 : 16u >> plane;
        const uint32_t at = start + unit * width;
        if (plane == 0) {
            write_words(t, jobs, source, token, row + at, (end - at) / 2, seen);
            return;
        }
        uint64_t word = 0;
        if (plane < RD_ZEROS) {
            float inv_steps[CHUNK];
            uint32_t entries[CHUNK];
            load_table(t.inv_steps + jobs, inv_steps);
            load_table(t.slot_feature + jobs, entries);
            for (uint32_t j = 0; j < CHUNK; ++j) {
                const uint32_t code = code_of(t, source, token, entries[j], inv_gain, inv_steps[j], seen);
                const uint32_t part = code >> (entries[j] >> 28 & 7u) & ((1u << width) - 1);
                word |= static_cast<uint64_t>(part) << (j * width);
            }
        }
        write_bytes(row + at, end - at < width ? end - at : width, word);
    }

    static TPQ_DEVICE uint32_t feature_of(uint32_t entry) { return entry & 0x00ffffffu; }

    template <class Source>
    static TPQ_DEVICE uint32_t code_of(const Table &t, const Source &source, uint32_t token, uint32_t entry,
                                       float inv_gain, float inv_step, Seen &seen) {
        const uint32_t kind = entry >> 24 & 15u;
        if (kind == 0) {
            return 0;
        }
        float x = source.one(token, feature_of(entry));
        x = is_nan(x) ? 0.0f : x;
        const bool finite = is_finite(x);
        x = x < -F32_MAX ? -F32_MAX : x;
        x = x > F32_MAX ? F32_MAX : x;
        const float position = mul(mul(x, inv_gain), inv_step);
        const float size = magnitude(position);
        const bool counts = entry >> 31 != 0;
        seen.clipped += counts && finite && size > table(t.codebook + CLIPS + kind) ? 1 : 0;
        return nearest(t, kind, size) | (position < 0.0f ? half(kind) : 0);
    }

    // The index of the magnitude nearest to `size`.
    static TPQ_DEVICE uint32_t nearest(const Table &t, uint32_t kind, float size) {
        if (is_even(kind)) {
            const uint32_t highest = half(kind) - 1;
            return size >= static_cast<float>(highest) ? highest : static_cast<uint32_t>(size);
        }
        const float *thresholds = t.codebook + THRESHOLDS + half(kind) - kind;
        uint32_t index = 0;
        for (uint32_t step = half(kind) / 2; step > 0; step /= 2) {
            index += size >= table(thresholds + index + step - 1) ? step : 0;
        }
        return index;
    }

    template <class Source>
    static TPQ_DEVICE void write_words(const Table &t, size_t jobs, const Source &source, uint32_t token,
                                       uint8_t *words, uint32_t count, Seen &seen) {
        for (uint32_t j = 0; j < CHUNK && j < count; ++j) {
            const float x = source.one(token, feature_of(table(t.slot_feature + jobs + j)));
            write_16(words + 2 * j, to_finite_bf16(x));
            seen.clipped += is_finite(x) && (to_bf16(x) & 0x7fffu) == 0x7f80u ? 1 : 0;
        }
    }

    static TPQ_DEVICE void write_bytes(uint8_t *at, uint32_t count, uint64_t word) {
        if (count == 4 && aligned(at, 4)) {
            *reinterpret_cast<uint32_t *>(at) = static_cast<uint32_t>(word);
            return;
        }
        for (uint32_t i = 0; i < count; ++i) {
            at[i] = static_cast<uint8_t>(word >> (8 * i));
        }
    }
};

} // namespace tpq
