// Runs the kernels' own source on the processor: the threads of a block are fibers that switch where a warp meets.
// Reads launches from stdin and answers with the buffers as the kernel left them; tests/cuda.rs is the other end.
// Buffers have their exact size on the heap, so that the sanitizers see an access beyond one, or a misaligned one.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <string>
#include <vector>
#include <ucontext.h>

#define TPQ_DEVICE inline
#define TPQ_KERNEL(threads) extern "C" void
#define TPQ_CONST const

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct Dim {
    unsigned x, y;
};
static Dim gridDim, blockDim, blockIdx, threadIdx;

constexpr unsigned WARP = 32;
constexpr size_t STACK = 256 << 10;

struct Warp {
    uint32_t values[2][WARP];
    unsigned arrived = 0;
    unsigned round = 0;
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
};
static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static ucontext_t scheduler;
static bool progress;

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
        swapcontext(&fibers[thread].context, &scheduler);
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
template <class T> static inline T table(const T *at) { return *at; }
static inline uint4 table_quad(const void *at) { return *static_cast<const uint4 *>(at); }
template <class T> static inline void count(T *at, T by) { *at += by; }
static inline void mark(uint64_t *at, uint64_t mask) { *at |= mask; }
static inline void publish(uint64_t *at, uint64_t value) { *at = value; }
static inline uint64_t observe(const uint64_t *at) { return *at; }
static inline uint64_t nanoseconds() {
    static uint64_t now;
    return now += 1000;
}
static inline void pause() {}

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

static const Kernel *kernel;
alignas(16) static char argument[sizeof(tpq::Call)];
static_assert(sizeof(tpq::Barrier) <= sizeof argument, "every argument has room");

static void start(int thread) {
    kernel->run(argument);
    fibers[thread].done = true;
    progress = true;
}

static bool run_block(bool backwards) {
    const unsigned threads = blockDim.x;
    warps.assign(threads / WARP, Warp{});
    fibers.resize(threads);
    for (unsigned i = 0; i < threads; ++i) {
        Fiber &fiber = fibers[i];
        fiber.done = false;
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
                swapcontext(&scheduler, &fiber.context);
                left += fiber.done ? 0 : 1;
            }
        }
        if (left > 0 && !progress) {
            return false; // some thread of a warp never came: on a device, undefined
        }
    }
    return true;
}

static void read_exact(void *to, size_t len) {
    if (fread(to, 1, len, stdin) != len) {
        exit(2);
    }
}
template <class T> static T read_value() {
    T value;
    read_exact(&value, sizeof value);
    return value;
}

static uint32_t serve(std::vector<std::pair<uint8_t *, size_t>> &buffers) {
    std::string name(read_value<uint32_t>(), ' ');
    read_exact(&name[0], name.size());
    gridDim.x = read_value<uint32_t>();
    gridDim.y = read_value<uint32_t>();
    blockDim.x = read_value<uint32_t>();
    const bool backwards = read_value<uint32_t>() != 0;
    kernel = nullptr;
    for (const auto &entry : KERNELS) {
        if (name == entry.name) {
            kernel = &entry;
        }
    }
    const size_t size = read_value<uint32_t>();
    if (size > sizeof argument || (kernel != nullptr && size != kernel->argument)) {
        exit(3);
    }
    read_exact(argument, size);
    for (uint32_t left = read_value<uint32_t>(); left > 0; --left) {
        const size_t len = read_value<uint64_t>();
        uint8_t *data = static_cast<uint8_t *>(malloc(len));
        read_exact(data, len);
        buffers.push_back({data, len});
    }
    for (uint32_t left = read_value<uint32_t>(); left > 0; --left) {
        const size_t field = read_value<uint32_t>();
        const uint32_t buffer = read_value<uint32_t>();
        const uint64_t address = reinterpret_cast<uint64_t>(buffers.at(buffer).first) + read_value<uint64_t>();
        memcpy(argument + field, &address, sizeof address);
    }
    if (kernel == nullptr) {
        return 1;
    }
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
            if (!run_block(backwards)) {
                return 2;
            }
        }
    }
    return 0;
}

int main() {
    for (int c; (c = getchar()) != EOF;) {
        ungetc(c, stdin);
        std::vector<std::pair<uint8_t *, size_t>> buffers;
        const uint32_t result = serve(buffers);
        fwrite(&result, sizeof result, 1, stdout);
        for (const auto &buffer : buffers) {
            fwrite(buffer.first, 1, buffer.second, stdout);
            free(buffer.first);
        }
        fflush(stdout);
    }
    return 0;
}
