// A CUDA driver without a GPU: the part of libcuda.so that src/cuda uses, on the model of a GPU in ../device_model.hpp. Its
// streams are threads, so what the host does not wait for happens later, after a random time; memory is shared between
// processes as CUDA's IPC shares it. It refuses what NVIDIA's documentation forbids and a lenient stand-in would let pass:
// calls in a thread without a context, addresses beyond an allocation, a process opening its own handle, times of events
// without timing. ../../gpu.rs runs programs on it.

#include "driver.hpp"

#include <chrono>
#include <fcntl.h>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t device_clock() {
    return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

#include "../device_model.hpp"

namespace soft {

[[noreturn]] void die(const char *what) {
    fprintf(stderr, "soft GPU: %s\n", what);
    abort();
}

static uint64_t jitter_us() {
    static const char *text = getenv("TPQ_SOFT_GPU_JITTER_US");
    return text == nullptr ? 0 : strtoull(text, nullptr, 10);
}

static void sleep_a_while() {
    thread_local uint64_t state = device_clock() | 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    if (jitter_us() > 0 && state % 2 == 0) {
        usleep(static_cast<useconds_t>(state / 2 % jitter_us()));
    }
}

void Stream::run() {
    for (;;) {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&] { return !queue.empty() || ending; });
        if (queue.empty()) {
            return;
        }
        Work work = std::move(queue.front());
        lock.unlock();
        sleep_a_while();
        if (late && jitter_us() > 0) {
            usleep(5000);
        }
        work();
        lock.lock();
        queue.pop_front();
        changed.notify_all();
    }
}

void Stream::add(Work work) {
    std::lock_guard<std::mutex> lock(mutex);
    if (capture != nullptr) {
        capture->push_back(std::move(work));
        return;
    }
    queue.push_back(std::move(work));
    changed.notify_all();
}

void Stream::drain() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return queue.empty(); });
}

struct Context;

// Never destroyed: threads of streams outlive main.
struct World {
    std::mutex mutex;
    std::vector<std::pair<Context *, Stream *>> streams;
    struct Memory {
        size_t len;
        int file; // or -1: another process's
        uint8_t *mapped;
        size_t mapped_len;
    };
    std::map<uint64_t, Memory> device;
    std::map<uint64_t, size_t> pinned;
};
static World &world() {
    static World *world = new World;
    return *world;
}

constexpr int DEVICES = 8;

// One for each device. `legacy`: what is synchronous for the host runs here, in no order with streams that do not block.
struct Context {
    Stream *legacy = nullptr;
};
static thread_local Context *context;

static Stream *stream_of(void *handle) { return handle == nullptr ? context->legacy : static_cast<Stream *>(handle); }

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
    return within(world().device, at, len, +[](const World::Memory &memory) { return memory.len; });
}
static void drain_device() {
    std::vector<std::pair<Context *, Stream *>> streams;
    {
        std::lock_guard<std::mutex> lock(world().mutex);
        streams = world().streams;
    }
    for (const auto &stream : streams) {
        if (stream.first == context) {
            stream.second->drain();
        }
    }
    context->legacy->drain();
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

struct Handle {
    uint64_t pid;
    uint64_t file;
    uint64_t len;
    uint64_t reserved[5];
};

struct Event {
    struct State {
        std::mutex mutex;
        std::condition_variable changed;
        uint64_t recorded = 0, done = 0, at = 0;
    };
    std::shared_ptr<State> state = std::make_shared<State>();
    bool timed;
};

} // namespace soft

using namespace soft;

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

#define NEED_CONTEXT                                                                                                   \
    if (context == nullptr) {                                                                                          \
        return INVALID_CONTEXT;                                                                                        \
    }
#define NEED(condition, result)                                                                                        \
    if (!(condition)) {                                                                                                \
        return result;                                                                                                 \
    }

extern "C" {

int cuInit(unsigned) { return OK; }
int cuDeviceGet(int *device, int ordinal) {
    NEED(ordinal >= 0 && ordinal < DEVICES, INVALID_DEVICE);
    *device = ordinal;
    return OK;
}
int cuDeviceGetCount(int *count) {
    *count = DEVICES;
    return OK;
}
int cuDeviceGetName(char *name, int len, int) {
    snprintf(name, static_cast<size_t>(len), "soft GPU");
    return OK;
}
int cuDeviceGetAttribute(int *value, int, int) {
    *value = 1;
    return OK;
}
int cuDevicePrimaryCtxRetain(void **retained, int device) {
    static Context *primaries = new Context[DEVICES];
    std::lock_guard<std::mutex> lock(world().mutex);
    if (primaries[device].legacy == nullptr) {
        primaries[device].legacy = new Stream(true);
    }
    *retained = &primaries[device];
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
int cuCtxSetCurrent(void *set) {
    context = static_cast<Context *>(set);
    return OK;
}
int cuCtxGetCurrent(void **current) {
    *current = context;
    return OK;
}
int cuCtxSynchronize() {
    NEED_CONTEXT
    drain_device();
    return OK;
}
int cuGetErrorName(int, const char **text) {
    *text = "CUDA_ERROR";
    return OK;
}
int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }

int cuStreamCreate(void **stream, unsigned) {
    NEED_CONTEXT
    auto *made = new Stream;
    std::lock_guard<std::mutex> lock(world().mutex);
    world().streams.push_back({context, made});
    *stream = made;
    return OK;
}
int cuStreamDestroy_v2(void *stream) {
    NEED_CONTEXT
    Stream *ended = stream_of(stream);
    {
        std::lock_guard<std::mutex> lock(world().mutex);
        auto &streams = world().streams;
        for (size_t i = 0; i < streams.size(); ++i) {
            if (streams[i].second == ended) {
                streams.erase(streams.begin() + static_cast<long>(i));
                break;
            }
        }
    }
    // What it was given is still done, and the host does not wait for it.
    std::lock_guard<std::mutex> lock(ended->mutex);
    ended->ending = true;
    ended->changed.notify_all();
    return OK;
}
int cuStreamSynchronize(void *stream) {
    NEED_CONTEXT
    NEED(stream_of(stream)->capture == nullptr, CAPTURE_UNSUPPORTED);
    stream_of(stream)->drain();
    return OK;
}
int cuStreamWaitEvent(void *stream, void *event, unsigned) {
    NEED_CONTEXT
    auto state = static_cast<Event *>(event)->state;
    const uint64_t target = state->recorded;
    stream_of(stream)->add([state, target] {
        std::unique_lock<std::mutex> lock(state->mutex);
        state->changed.wait(lock, [&] { return state->done >= target; });
    });
    return OK;
}

int cuEventCreate(void **event, unsigned flags) {
    NEED_CONTEXT
    *event = new Event;
    static_cast<Event *>(*event)->timed = (flags & 2) == 0;
    return OK;
}
int cuEventDestroy_v2(void *event) {
    NEED_CONTEXT
    delete static_cast<Event *>(event);
    return OK;
}
int cuEventRecord(void *event, void *stream) {
    NEED_CONTEXT
    auto state = static_cast<Event *>(event)->state;
    std::unique_lock<std::mutex> lock(state->mutex);
    const uint64_t target = ++state->recorded;
    lock.unlock();
    stream_of(stream)->add([state, target] {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->done = std::max(state->done, target);
        state->at = device_clock();
        state->changed.notify_all();
    });
    return OK;
}
int cuEventQuery(void *event) {
    NEED_CONTEXT
    auto state = static_cast<Event *>(event)->state;
    std::lock_guard<std::mutex> lock(state->mutex);
    return state->done >= state->recorded ? OK : NOT_READY;
}
int cuEventSynchronize(void *event) {
    NEED_CONTEXT
    auto state = static_cast<Event *>(event)->state;
    std::unique_lock<std::mutex> lock(state->mutex);
    state->changed.wait(lock, [&] { return state->done >= state->recorded; });
    return OK;
}
int cuEventElapsedTime_v2(float *ms, void *start, void *end) {
    const auto *from = static_cast<Event *>(start), *to = static_cast<Event *>(end);
    NEED(from->timed && to->timed && from->state->recorded > 0 && to->state->recorded > 0, INVALID_HANDLE);
    NEED(cuEventQuery(start) == OK && cuEventQuery(end) == OK, NOT_READY);
    *ms = static_cast<float>(static_cast<double>(to->state->at - from->state->at) / 1e6);
    return OK;
}
int cuEventElapsedTime(float *ms, void *start, void *end) { return cuEventElapsedTime_v2(ms, start, end); }

int cuModuleLoadData(void **module, const void *image) {
    NEED_CONTEXT
    static char only;
    NEED(image != nullptr, INVALID_VALUE);
    *module = &only;
    return OK;
}
int cuModuleUnload(void *) { return OK; }
int cuModuleGetFunction(void **function, void *, const char *name) {
    NEED_CONTEXT
    const Kernel *found = find_kernel(name);
    NEED(found != nullptr, NOT_FOUND);
    *function = const_cast<Kernel *>(found);
    return OK;
}
int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned, void *stream, void **parameters, void **) {
    NEED_CONTEXT
    const auto *launched = static_cast<const Kernel *>(function);
    NEED(grid_x > 0 && grid_y > 0 && grid_y <= 65535 && grid_z == 1, INVALID_VALUE);
    NEED(block_x > 0 && block_x <= 1024 && block_y == 1 && block_z == 1, INVALID_VALUE);
    const auto *bytes = static_cast<const uint8_t *>(parameters[0]);
    auto copied = std::make_shared<std::vector<uint8_t>>(bytes, bytes + launched->argument);
    stream_of(stream)->add([launched, copied, grid_x, grid_y, block_x] {
        gridDim = {grid_x, grid_y};
        blockDim = {block_x, 1};
        kernel = launched;
        memcpy(argument, copied->data(), copied->size());
        if (!run_grid(device_clock() % 2 == 0)) {
            die("threads of a warp waited for one that had ended");
        }
    });
    return OK;
}

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
    std::lock_guard<std::mutex> lock(world().mutex);
    const auto found = world().device.find(address);
    NEED(found != world().device.end() && found->second.file >= 0, INVALID_VALUE);
    const World::Memory memory = found->second;
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

int cuStreamBeginCapture_v2(void *stream, int) {
    NEED_CONTEXT
    std::lock_guard<std::mutex> lock(stream_of(stream)->mutex);
    NEED(stream != nullptr && stream_of(stream)->capture == nullptr, CAPTURE_UNSUPPORTED);
    stream_of(stream)->capture = new std::vector<Work>;
    return OK;
}
int cuStreamEndCapture(void *stream, void **graph) {
    NEED_CONTEXT
    std::lock_guard<std::mutex> lock(stream_of(stream)->mutex);
    *graph = stream_of(stream)->capture;
    stream_of(stream)->capture = nullptr;
    return OK;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    *executable = new std::vector<Work>(*static_cast<std::vector<Work> *>(graph));
    return OK;
}
int cuGraphLaunch(void *executable, void *stream) {
    NEED_CONTEXT
    for (const Work &work : *static_cast<std::vector<Work> *>(executable)) {
        stream_of(stream)->add(work);
    }
    return OK;
}
int cuGraphDestroy(void *graph) {
    delete static_cast<std::vector<Work> *>(graph);
    return OK;
}
int cuGraphExecDestroy(void *executable) { return cuGraphDestroy(executable); }

} // extern "C"
