// Elements, rounding and codes, bit for bit as src/codec/scalar.rs.
#pragma once

#include "args.cuh"
#include "portable.cuh"

namespace tpq {

struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

constexpr float BF16_MAX = 3.3895313892515355e38f; // 0x7f7f as BF16
constexpr float F32_MIN_NORMAL = 1.17549435e-38f;
constexpr uint32_t NAN_BITS = 0x7fc00000u;

TPQ_DEVICE bool is_nan(float x) { return x != x; }
TPQ_DEVICE bool is_finite(float x) { return (bits_of(x) & 0x7f800000u) != 0x7f800000u; }
TPQ_DEVICE float magnitude(float x) { return from_bits(bits_of(x) & 0x7fffffffu); }

// Nearest, ties to even; NaN stays NaN.
TPQ_DEVICE uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of(x);
    if (is_nan(x)) {
        return static_cast<uint16_t>((bits >> 16) | 0x40u);
    }
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
TPQ_DEVICE float from_bf16(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

// Saturated to the finite range; NaN gives 0.
TPQ_DEVICE uint16_t to_finite_bf16(float x) {
    if (is_nan(x)) {
        return 0;
    }
    const uint16_t bits = to_bf16(x);
    return (bits & 0x7fffu) == 0x7f80u ? static_cast<uint16_t>((bits & 0x8000u) | 0x7f7fu) : bits;
}

TPQ_DEVICE float to_float(float x) { return x; }
TPQ_DEVICE float to_float(Bf16 x) { return from_bf16(x.bits); }
TPQ_DEVICE float to_float(F16 x) { return half_to_float(x.bits); }

template <class T> TPQ_DEVICE T round_to(float x);
template <> TPQ_DEVICE float round_to<float>(float x) { return x; }
template <> TPQ_DEVICE Bf16 round_to<Bf16>(float x) { return Bf16{to_bf16(x)}; }
template <> TPQ_DEVICE F16 round_to<F16>(float x) { return F16{float_to_half(x)}; }

// ---- 4-bit codes ----

constexpr int BIAS = 8;

// NaN gives 0, infinity saturates.
TPQ_DEVICE int quantize(float x, float inv_step, float lowest, float highest) {
    float position = mul(x, inv_step);
    position = position < lowest ? lowest : position;
    position = position > highest ? highest : position;
    return is_nan(position) ? 0 : nearest_int(position);
}

TPQ_DEVICE uint32_t nibble(int code, uint32_t j) { return static_cast<uint32_t>(code + BIAS) << (4 * j); }
TPQ_DEVICE int code_in(uint32_t word, uint32_t j) { return static_cast<int>((word >> (4 * j)) & 15u) - BIAS; }

TPQ_DEVICE uint32_t plane_len(uint32_t codes) { return (codes + 1) / 2; }
TPQ_DEVICE uint32_t chunks_of(uint32_t count) { return (count + CHUNK - 1) / CHUNK; }

TPQ_DEVICE bool aligned(const void *p, uintptr_t to) { return (reinterpret_cast<uintptr_t>(p) & (to - 1)) == 0; }

// The codes of chunk `c`: four bytes of a plane, fewer at its end; what is missing reads as zero bits.
TPQ_DEVICE uint32_t read_codes(const uint8_t *plane, uint32_t c, uint32_t len) {
    const uint8_t *at = plane + 4 * c;
    if (4 * c + 4 <= len && aligned(at, 4)) {
        return *reinterpret_cast<const uint32_t *>(at);
    }
    uint32_t word = 0;
    for (uint32_t i = 0; i < 4 && 4 * c + i < len; ++i) {
        word |= static_cast<uint32_t>(at[i]) << (8 * i);
    }
    return word;
}

TPQ_DEVICE void write_codes(uint8_t *plane, uint32_t c, uint32_t len, uint32_t word) {
    uint8_t *at = plane + 4 * c;
    if (4 * c + 4 <= len && aligned(at, 4)) {
        *reinterpret_cast<uint32_t *>(at) = word;
        return;
    }
    for (uint32_t i = 0; i < 4 && 4 * c + i < len; ++i) {
        at[i] = static_cast<uint8_t>(word >> (8 * i));
    }
}

TPQ_DEVICE int code_at(const uint8_t *plane, uint32_t slot) { return code_in(plane[slot / 2], slot % 2); }

// Rows of odd length put words at odd addresses.
TPQ_DEVICE uint16_t read_16(const uint8_t *at) {
    if (aligned(at, 2)) {
        return *reinterpret_cast<const uint16_t *>(at);
    }
    return static_cast<uint16_t>(at[0] | (at[1] << 8));
}
TPQ_DEVICE void write_16(uint8_t *at, uint16_t value) {
    if (aligned(at, 2)) {
        *reinterpret_cast<uint16_t *>(at) = value;
        return;
    }
    at[0] = static_cast<uint8_t>(value);
    at[1] = static_cast<uint8_t>(value >> 8);
}

// ---- eight elements at a time ----

TPQ_DEVICE void unpack(uint4 quad, const float *, float *x) {
    const uint32_t words[4] = {quad.x, quad.y, quad.z, quad.w};
    for (int i = 0; i < 4; ++i) {
        x[i] = from_bits(words[i]);
    }
}
template <class T> TPQ_DEVICE void unpack(uint4 quad, const T *, float *x) {
    const uint32_t words[4] = {quad.x, quad.y, quad.z, quad.w};
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = to_float(T{static_cast<uint16_t>(words[i])});
        x[2 * i + 1] = to_float(T{static_cast<uint16_t>(words[i] >> 16)});
    }
}

// `count` of 8 elements from `at`; the others are zero.
template <class T> TPQ_DEVICE void load_chunk(const T *at, uint32_t count, float (&x)[CHUNK]) {
    constexpr uint32_t PER_QUAD = 16 / sizeof(T);
    if (count == CHUNK && aligned(at, 16)) {
        for (uint32_t i = 0; i < CHUNK / PER_QUAD; ++i) {
            unpack(reinterpret_cast<const uint4 *>(at)[i], at, x + i * PER_QUAD);
        }
        return;
    }
    for (uint32_t j = 0; j < CHUNK; ++j) {
        x[j] = j < count ? to_float(at[j]) : 0.0f;
    }
}

TPQ_DEVICE void pack(const float *x, uint4 *at) {
    at[0] = uint4{bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])};
    at[1] = uint4{bits_of(x[4]), bits_of(x[5]), bits_of(x[6]), bits_of(x[7])};
}
template <class T> TPQ_DEVICE void pack(const T *x, uint4 *at) {
    uint32_t words[4];
    for (int i = 0; i < 4; ++i) {
        words[i] = x[2 * i].bits | (static_cast<uint32_t>(x[2 * i + 1].bits) << 16);
    }
    *at = uint4{words[0], words[1], words[2], words[3]};
}

template <class T> TPQ_DEVICE void store_chunk(T *at, uint32_t count, const T (&x)[CHUNK]) {
    if (count == CHUNK && aligned(at, 16)) {
        pack(x, reinterpret_cast<uint4 *>(at));
        return;
    }
    for (uint32_t j = 0; j < CHUNK && j < count; ++j) {
        at[j] = x[j];
    }
}

TPQ_DEVICE void load_table(const float *at, float (&x)[CHUNK]) {
    unpack(table_quad(at), at, x);
    unpack(table_quad(at + 4), at, x + 4);
}
TPQ_DEVICE void load_table(const uint32_t *at, uint32_t (&x)[CHUNK]) {
    for (uint32_t i = 0; i < CHUNK; i += 4) {
        const uint4 quad = table_quad(at + i);
        x[i] = quad.x;
        x[i + 1] = quad.y;
        x[i + 2] = quad.z;
        x[i + 3] = quad.w;
    }
}

// Elements of a chunk that exist.
TPQ_DEVICE uint32_t in_chunk(uint32_t c, uint32_t count) {
    const uint32_t first = c * CHUNK;
    return first >= count ? 0 : (count - first < CHUNK ? count - first : CHUNK);
}

} // namespace tpq
