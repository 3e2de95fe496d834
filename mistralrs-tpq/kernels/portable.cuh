// What the kernels need from their platform, so that one source is compiled by nvcc for the device and by any C++17
// compiler for the tests, where tests/cuda/emulator.cpp supplies the same names and runs the threads of a block as fibers.
//
// Every multiplication, addition and division goes through mul, add, quotient: rounded to nearest, never contracted,
// whatever the compiler's flags. Denormals are kept.
#pragma once

#ifdef __CUDACC__

#include <cstdint>
#include <cuda_fp16.h>

#define TPQ_DEVICE __device__ __forceinline__
#define TPQ_KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
#define TPQ_CONST __grid_constant__ const

namespace tpq {

TPQ_DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
TPQ_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
TPQ_DEVICE float quotient(float a, float b) { return __fdiv_rn(a, b); }
TPQ_DEVICE double mul(double a, double b) { return __dmul_rn(a, b); }
TPQ_DEVICE double add(double a, double b) { return __dadd_rn(a, b); }
TPQ_DEVICE double quotient(double a, double b) { return __ddiv_rn(a, b); }
TPQ_DEVICE double root(double x) { return __dsqrt_rn(x); }
TPQ_DEVICE float nearest_float(double x) { return __double2float_rn(x); }
TPQ_DEVICE int nearest_int(float x) { return __float2int_rn(x); }
TPQ_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
TPQ_DEVICE float from_bits(uint32_t bits) { return __uint_as_float(bits); }
TPQ_DEVICE float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
TPQ_DEVICE uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }

TPQ_DEVICE float shuffle_xor(float x, unsigned lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
TPQ_DEVICE uint32_t shuffle_xor(uint32_t x, unsigned lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
TPQ_DEVICE double shuffle_xor(double x, unsigned lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }

// Tables, which no kernel writes.
TPQ_DEVICE uint4 table_quad(const void *p) { return __ldg(static_cast<const uint4 *>(p)); }
TPQ_DEVICE float table(const float *p) { return __ldg(p); }
TPQ_DEVICE uint32_t table(const uint32_t *p) { return __ldg(p); }
TPQ_DEVICE uint8_t table(const uint8_t *p) { return __ldg(p); }

TPQ_DEVICE void count(uint32_t *at, uint32_t by) { atomicAdd(at, by); }
TPQ_DEVICE void count(uint64_t *at, uint64_t by) {
    atomicAdd(reinterpret_cast<unsigned long long *>(at), static_cast<unsigned long long>(by));
}
TPQ_DEVICE void mark(uint64_t *at, uint64_t mask) {
    atomicOr(reinterpret_cast<unsigned long long *>(at), static_cast<unsigned long long>(mask));
}

// Between devices and processes: after `observe` has returned what `publish` stored, everything before the `publish` is seen.
TPQ_DEVICE void publish(uint64_t *at, uint64_t value) {
    __threadfence_system();
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}
TPQ_DEVICE uint64_t observe(const uint64_t *at) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
}
TPQ_DEVICE uint64_t nanoseconds() {
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}
TPQ_DEVICE void pause() { __nanosleep(100); }
TPQ_DEVICE void all_threads() { __syncthreads(); }

} // namespace tpq

#endif
