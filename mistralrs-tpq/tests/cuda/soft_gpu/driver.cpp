// A CUDA driver without a GPU: the part of libcuda.so that src/cuda uses, on the model of a GPU in ../device_model.hpp. Its
// streams are threads, so what the host does not wait for happens later, after a random time; memory is shared between
// processes as CUDA's IPC shares it. It refuses what NVIDIA's documentation forbids and a lenient stand-in would let pass:
// calls in a thread without a context, addresses beyond an allocation, a process opening its own handle, times of events
// without timing. ../../gpu.rs runs programs on it.

#include "world.hpp"

#include <chrono>
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

bool Stream::captures() {
    std::lock_guard<std::mutex> lock(mutex);
    return capture != nullptr;
}

void Stream::drain() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return queue.empty(); });
}

constexpr int DEVICES = 8;

thread_local Context *context;

void drain_device() {
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
    NEED(!stream_of(stream)->captures(), CAPTURE_UNSUPPORTED);
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

int cuStreamBeginCapture_v2(void *stream, int) {
    NEED_CONTEXT
    std::lock_guard<std::mutex> lock(stream_of(stream)->mutex);
    NEED(stream != nullptr && stream_of(stream)->capture == nullptr, CAPTURE_UNSUPPORTED);
    stream_of(stream)->capture = new std::vector<Work>;
    return OK;
}
int cuStreamIsCapturing(void *stream, int *status) {
    NEED_CONTEXT
    std::lock_guard<std::mutex> lock(stream_of(stream)->mutex);
    *status = stream_of(stream)->capture == nullptr ? 0 : 1;
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
