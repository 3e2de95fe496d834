// What a process has of the stand-in's devices, and how calls answer.
#pragma once

#include "driver.hpp"

#include <map>

namespace soft {

// One for each device. `legacy`: what is synchronous for the host runs here, in no order with streams that do not block.
struct Context {
    Stream *legacy = nullptr;
};
extern thread_local Context *context;

struct Memory {
    size_t len;
    int file; // or -1: another process's
    uint8_t *mapped;
    size_t mapped_len;
};

// Never destroyed: threads of streams outlive main.
struct World {
    std::mutex mutex;
    std::vector<std::pair<Context *, Stream *>> streams;
    std::map<uint64_t, Memory> device;
    std::map<uint64_t, size_t> pinned;
};
inline World &world() {
    static World *world = new World;
    return *world;
}

inline Stream *stream_of(void *handle) { return handle == nullptr ? context->legacy : static_cast<Stream *>(handle); }

// Until all of the context's streams have done what they were given.
void drain_device();

enum Result {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    CAPTURE_UNSUPPORTED = 900,
};

} // namespace soft

#define NEED_CONTEXT                                                                                                   \
    if (context == nullptr) {                                                                                          \
        return INVALID_CONTEXT;                                                                                        \
    }
#define NEED(condition, result)                                                                                        \
    if (!(condition)) {                                                                                                \
        return result;                                                                                                 \
    }
