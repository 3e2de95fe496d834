// A model of a GPU that runs the kernels' own source on the processor: the threads of a block are fibers that switch where a
// warp meets or a thread waits. Who includes it supplies device_clock(). One launch at a time in each thread.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <sched.h>
#include <setjmp.h>
#include <string>
#include <ucontext.h>
#include <vector>

#define TPQ_DEVICE inline
#define TPQ_KERNEL(...) extern "C" void
#define TPQ_CONST const

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct Dim {
    unsigned x, y;
};
static thread_local Dim gridDim, blockDim, blockIdx, threadIdx;

constexpr unsigned WARP = 32;
constexpr size_t STACK = 256 << 10;

struct Warp {
    uint32_t values[2][WARP];
    unsigned arrived = 0;
    unsigned round = 0;
};
struct Fiber {
    ucontext_t context;
    jmp_buf left;
    std::vector<char> stack;
    bool started = false;
    bool done = false;
};
static thread_local std::vector<Fiber> fibers;
static thread_local std::vector<Warp> warps;
static thread_local ucontext_t scheduler;
static thread_local jmp_buf scheduler_left;
static thread_local bool progress;
// Of the block: threads that wait for all others, and how often all have come.
static thread_local unsigned block_arrived, block_round;

// swapcontext() asks the kernel for the signal mask each time: of a row of `rd`, that was most of the time. The address sanitizer
// follows swapcontext() and not jumps from stack to stack.
#ifdef __SANITIZE_ADDRESS__
constexpr bool JUMPS = false;
#else
constexpr bool JUMPS = true;
#endif

__attribute__((noinline)) static void leave(Fiber &fiber) {
    if (!JUMPS) {
        swapcontext(&fiber.context, &scheduler);
    } else if (_setjmp(fiber.left) == 0) {
        _longjmp(scheduler_left, 1);
    }
}
__attribute__((noinline)) static void enter(Fiber &fiber) {
    if (!JUMPS || !fiber.started) {
        fiber.started = true;
        if (_setjmp(scheduler_left) == 0) {
            swapcontext(&scheduler, &fiber.context);
        }
    } else if (_setjmp(scheduler_left) == 0) {
        _longjmp(fiber.left, 1);
    }
}

static uint32_t exchange(uint32_t value, unsigned lanes) {
    const unsigned thread = threadIdx.x;
    Warp &warp = warps[thread / WARP];
    const unsigned round = warp.round;
    warp.values[round % 2][thread % WARP] = value;
    if (++warp.arrived == WARP) {
        warp.arrived = 0;
        ++warp.round;
        progress = true;
    }
    while (warp.round == round) {
        leave(fibers[thread]);
    }
    return warp.values[round % 2][(thread % WARP) ^ lanes];
}

namespace tpq {

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline float mul(float a, float b) { return a * b; }
static inline float add(float a, float b) { return a + b; }
static inline float quotient(float a, float b) { return a / b; }
static inline double mul(double a, double b) { return a * b; }
static inline double add(double a, double b) { return a + b; }
static inline double quotient(double a, double b) { return a / b; }
static inline double root(double x) { return sqrt(x); }
static inline float nearest_float(double x) { return static_cast<float>(x); }
static inline int nearest_int(float x) { return static_cast<int>(nearbyintf(x)); }

// IEEE half precision, nearest with ties to even, in integers: _Float16 is not in every compiler.
static inline float half_to_float(uint16_t bits) {
    const uint32_t sign = (bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 31u;
    const uint32_t fraction = bits & 0x3ffu;
    if (exponent == 31) {
        return from_bits(sign | 0x7f800000u | (fraction << 13));
    }
    const float size = exponent == 0 ? ldexpf(fraction, -24) : ldexpf(fraction | 0x400u, static_cast<int>(exponent) - 25);
    return from_bits(sign | bits_of(size));
}
static inline uint16_t float_to_half(float x) {
    const uint16_t sign = static_cast<uint16_t>((bits_of(x) >> 16) & 0x8000u);
    const float size = fabsf(x);
    if (x != x) {
        return 0x7fffu;
    }
    if (size >= 65520.0f) {
        return sign | 0x7c00u;
    }
    int exponent;
    frexpf(size, &exponent);
    const int unit = size == 0.0f || exponent < -13 ? -24 : exponent - 11;
    const uint32_t units = static_cast<uint32_t>(nearbyintf(ldexpf(size, -unit)));
    // A carry into the next power of two is right as it is: the fraction overflows into the exponent.
    return static_cast<uint16_t>(sign | (unit == -24 ? units : units - 0x400u + ((unit + 25u) << 10)));
}

static inline float shuffle_xor(float x, unsigned lanes) { return from_bits(exchange(bits_of(x), lanes)); }
static inline uint32_t shuffle_xor(uint32_t x, unsigned lanes) { return exchange(x, lanes); }
static inline double shuffle_xor(double x, unsigned lanes) {
    uint32_t words[2];
    memcpy(words, &x, sizeof x);
    words[0] = exchange(words[0], lanes);
    words[1] = exchange(words[1], lanes);
    memcpy(&x, words, sizeof x);
    return x;
}
template <class T> static inline T table(const T *at) { return *at; }
static inline uint4 table_quad(const void *at) { return *static_cast<const uint4 *>(at); }
template <class T> static inline void count(T *at, T by) { __atomic_fetch_add(at, by, __ATOMIC_RELAXED); }
static inline void mark(uint64_t *at, uint64_t mask) { __atomic_fetch_or(at, mask, __ATOMIC_RELAXED); }
static inline void publish(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
static inline uint64_t observe(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline uint64_t nanoseconds() { return device_clock(); }
// Threads of a warp go on independently: the others of the block may be what this one waits for.
static inline void pause() {
    progress = true;
    leave(fibers[threadIdx.x]);
}
static inline void all_threads() {
    const unsigned round = block_round;
    if (++block_arrived == blockDim.x) {
        block_arrived = 0;
        ++block_round;
        progress = true;
    }
    while (block_round == round) {
        leave(fibers[threadIdx.x]);
    }
}

} // namespace tpq

#include "barrier.cu"
#include "codec.cu"

// A kernel and the bytes of its argument.
template <class T> static void run(void (*kernel)(const T), const void *argument) {
    kernel(*static_cast<const T *>(argument));
}
template <class T> static constexpr size_t argument_size(void (*)(const T)) { return sizeof(T); }

struct Kernel {
    const char *name;
    size_t argument;
    void (*run)(const void *);
};
static const Kernel KERNELS[] = {
#define ENTRY(name) {#name, argument_size(name), [](const void *argument) { run(name, argument); }},
#include "kernels.inc"
};

static thread_local const Kernel *kernel;
alignas(16) static thread_local char argument[sizeof(tpq::Call)];
static_assert(sizeof(tpq::Barrier) <= sizeof argument, "every argument has room");

static void start(int thread) {
    kernel->run(argument);
    fibers[thread].done = true;
    progress = true;
    if (JUMPS) {
        _longjmp(scheduler_left, 1);
    }
}

static bool run_block(bool backwards) {
    const unsigned threads = blockDim.x;
    warps.assign(threads / WARP, Warp{});
    block_arrived = 0;
    fibers.resize(threads);
    for (unsigned i = 0; i < threads; ++i) {
        Fiber &fiber = fibers[i];
        fiber.done = fiber.started = false;
        fiber.stack.resize(STACK);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, reinterpret_cast<void (*)()>(start), 1, static_cast<int>(i));
    }
    for (unsigned left = threads; left > 0;) {
        left = 0;
        progress = false;
        for (unsigned i = 0; i < threads; ++i) {
            threadIdx.x = backwards ? threads - 1 - i : i;
            Fiber &fiber = fibers[threadIdx.x];
            if (!fiber.done) {
                enter(fiber);
                left += fiber.done ? 0 : 1;
            }
        }
        if (left > 0 && !progress) {
            return false; // some thread of a warp, or of the block, never came: on a device, undefined
        }
        if (left > 0) {
            sched_yield();
        }
    }
    return true;
}

// Whether all blocks ran to their end.
static bool run_grid(bool backwards) {
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
            if (!run_block(backwards)) {
                return false;
            }
        }
    }
    return true;
}

static const Kernel *find_kernel(const std::string &name) {
    for (const auto &entry : KERNELS) {
        if (name == entry.name) {
            return &entry;
        }
    }
    return nullptr;
}
