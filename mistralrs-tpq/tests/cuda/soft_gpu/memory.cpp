// Memory of the stand-in: allocations that notice what is written behind them, page-locked memory, copies in a stream's order, and
// allocations that another process opens.

#include "world.hpp"

#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace soft {

template <class Map> static bool within(const Map &map, uint64_t at, size_t len, size_t (*size)(const typename Map::mapped_type &)) {
    auto after = map.upper_bound(at);
    if (after == map.begin()) {
        return false;
    }
    --after;
    return at - after->first <= size(after->second) && len <= size(after->second) - (at - after->first);
}
bool on_device(uint64_t at, size_t len) {
    std::lock_guard<std::mutex> lock(world().mutex);
    return within(world().device, at, len, +[](const Memory &memory) { return memory.len; });
}
static bool is_pinned(const void *at, size_t len) {
    std::lock_guard<std::mutex> lock(world().mutex);
    return within(world().pinned, reinterpret_cast<uint64_t>(at), len, +[](const size_t &size) { return size; });
}

constexpr size_t PAGE = 4096;
constexpr size_t ALIGNMENT = 256; // of an allocation's start, as the driver's
constexpr uint8_t FRESH = 0xa5;   // no allocation starts as zeros

static size_t up(size_t len, size_t to) { return (len + to - 1) / to * to; }

// Maps a file so that its end is followed by a page that faults.
static uint8_t *map(int file, size_t len) {
    void *room = mmap(nullptr, len + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED || mmap(room, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
        die("out of memory");
    }
    return static_cast<uint8_t *>(room);
}

// Of memory that is not page-locked the bytes are taken now, and get there in the stream's order.
static void copy_staged(Stream *stream, uint64_t to, const void *from, size_t len) {
    const auto *bytes = static_cast<const uint8_t *>(from);
    auto staged = std::make_shared<std::vector<uint8_t>>(bytes, bytes + len);
    stream->add([staged, to] { memcpy(reinterpret_cast<void *>(to), staged->data(), staged->size()); });
}

// Gives an allocation back that nothing uses any more.
static int release(uint64_t address) {
    std::lock_guard<std::mutex> lock(world().mutex);
    const auto found = world().device.find(address);
    NEED(found != world().device.end() && found->second.file >= 0, INVALID_VALUE);
    const Memory memory = found->second;
    const auto *end = reinterpret_cast<const uint8_t *>(address) + memory.len;
    for (size_t i = 0; i < up(memory.len, ALIGNMENT) - memory.len; ++i) {
        if (end[i] != FRESH) {
            die("a kernel or copy wrote behind an allocation");
        }
    }
    munmap(memory.mapped, memory.mapped_len + PAGE);
    close(memory.file);
    world().device.erase(found);
    return OK;
}

struct Handle {
    uint64_t pid;
    uint64_t file;
    uint64_t len;
    uint64_t reserved[5];
};

} // namespace soft

using namespace soft;

extern "C" {

int cuMemAlloc_v2(uint64_t *address, size_t len) {
    NEED_CONTEXT
    NEED(len > 0, INVALID_VALUE);
    const size_t mapped_len = up(len, PAGE);
    const int file = memfd_create("soft-gpu", MFD_CLOEXEC);
    NEED(file >= 0 && ftruncate(file, static_cast<off_t>(mapped_len)) == 0, OUT_OF_MEMORY);
    uint8_t *mapped = map(file, mapped_len);
    memset(mapped, FRESH, mapped_len);
    // At the end of its pages, so that what is beyond it faults, or is found changed when it is freed.
    *address = reinterpret_cast<uint64_t>(mapped + mapped_len - up(len, ALIGNMENT));
    std::lock_guard<std::mutex> lock(world().mutex);
    world().device[*address] = {len, file, mapped, mapped_len};
    return OK;
}
int cuMemFree_v2(uint64_t address) {
    NEED_CONTEXT
    drain_device();
    return release(address);
}
int cuMemAllocAsync(uint64_t *address, size_t len, void *) { return cuMemAlloc_v2(address, len); }
int cuMemFreeAsync(uint64_t address, void *stream) {
    NEED_CONTEXT
    NEED(on_device(address, 0), INVALID_VALUE);
    // A graph keeps what was allocated in it.
    if (!stream_of(stream)->captures()) {
        stream_of(stream)->add([address] {
            if (release(address) != OK) {
                die("memory was freed twice");
            }
        });
    }
    return OK;
}
int cuMemHostAlloc(void **at, size_t len, unsigned) {
    NEED_CONTEXT
    *at = aligned_alloc(PAGE, up(len, PAGE));
    NEED(*at != nullptr, OUT_OF_MEMORY);
    memset(*at, FRESH, len);
    std::lock_guard<std::mutex> lock(world().mutex);
    world().pinned[reinterpret_cast<uint64_t>(*at)] = len;
    return OK;
}
int cuMemFreeHost(void *at) {
    NEED_CONTEXT
    std::lock_guard<std::mutex> lock(world().mutex);
    NEED(world().pinned.erase(reinterpret_cast<uint64_t>(at)) == 1, INVALID_VALUE);
    free(at);
    return OK;
}

// "The function will return once the pageable buffer has been copied to the staging memory, but the DMA to final destination
// may not have completed": CUDA's API synchronization behavior.
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t len) {
    NEED_CONTEXT
    NEED(on_device(to, len), INVALID_VALUE);
    copy_staged(context->legacy, to, from, len);
    return OK;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t len) {
    NEED_CONTEXT
    NEED(on_device(from, len), INVALID_VALUE);
    context->legacy->add([=] { memcpy(to, reinterpret_cast<const void *>(from), len); });
    context->legacy->drain();
    return OK;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t len, void *stream) {
    NEED_CONTEXT
    NEED(on_device(to, len), INVALID_VALUE);
    if (is_pinned(from, len)) {
        stream_of(stream)->add([=] { memcpy(reinterpret_cast<void *>(to), from, len); });
        return OK;
    }
    copy_staged(stream_of(stream), to, from, len);
    return OK;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t len, void *stream) {
    NEED_CONTEXT
    NEED(on_device(from, len), INVALID_VALUE);
    stream_of(stream)->add([=] { memcpy(to, reinterpret_cast<const void *>(from), len); });
    if (!is_pinned(to, len)) {
        stream_of(stream)->drain();
    }
    return OK;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t len, void *stream) {
    NEED_CONTEXT
    NEED(on_device(to, len) && on_device(from, len), INVALID_VALUE);
    stream_of(stream)->add([=] { memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), len); });
    return OK;
}
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t len, void *stream) {
    NEED_CONTEXT
    NEED(on_device(at, len), INVALID_VALUE);
    stream_of(stream)->add([=] { memset(reinterpret_cast<void *>(at), value, len); });
    return OK;
}

int cuIpcGetMemHandle(Handle *handle, uint64_t address) {
    NEED_CONTEXT
    std::lock_guard<std::mutex> lock(world().mutex);
    const auto found = world().device.find(address);
    NEED(found != world().device.end() && found->second.file >= 0, INVALID_VALUE);
    *handle = {static_cast<uint64_t>(getpid()), static_cast<uint64_t>(found->second.file), found->second.len, {}};
    return OK;
}
int cuIpcOpenMemHandle_v2(uint64_t *address, Handle handle, unsigned) {
    NEED_CONTEXT
    NEED(handle.pid != static_cast<uint64_t>(getpid()), INVALID_CONTEXT);
    const std::string path = "/proc/" + std::to_string(handle.pid) + "/fd/" + std::to_string(handle.file);
    const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
    NEED(file >= 0, INVALID_HANDLE);
    const size_t mapped_len = up(handle.len, PAGE);
    uint8_t *mapped = map(file, mapped_len);
    close(file);
    *address = reinterpret_cast<uint64_t>(mapped + mapped_len - up(handle.len, ALIGNMENT));
    std::lock_guard<std::mutex> lock(world().mutex);
    world().device[*address] = {handle.len, -1, mapped, mapped_len};
    return OK;
}
int cuIpcCloseMemHandle(uint64_t address) {
    NEED_CONTEXT
    std::lock_guard<std::mutex> lock(world().mutex);
    const auto found = world().device.find(address);
    NEED(found != world().device.end() && found->second.file < 0, INVALID_VALUE);
    munmap(found->second.mapped, found->second.mapped_len + PAGE);
    world().device.erase(found);
    return OK;
}

} // extern "C"
