// Runs launches on the model of a GPU. Reads them from stdin and answers with the buffers as the kernel left them;
// tests/cuda.rs is the other end. Buffers have their exact size on the heap, so that the sanitizers see an access beyond one,
// or a misaligned one.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

// Time goes on by being asked for.
static uint64_t device_clock() {
    static uint64_t now;
    return now += 1000;
}

#include "device_model.hpp"

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
    kernel = find_kernel(name);
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
    return run_grid(backwards) ? 0 : 2;
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
