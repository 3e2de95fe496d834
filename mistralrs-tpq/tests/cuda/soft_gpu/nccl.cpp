// The part of libnccl.so that src/cuda/nccl.rs uses, between processes through shared memory. As the real one it waits for
// ranks that do not come until it is aborted, and aborting it waits until no graph has its transfers any more; a send that no
// receive of its length meets is an error: there it hangs.

#include "driver.hpp"

#include <atomic>
#include <cstring>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

namespace soft {

constexpr int MAX_RANKS = 8;
constexpr size_t CAPACITY = 64 << 10;

// Bytes from one rank to another.
struct Channel {
    std::atomic<uint64_t> written{0};
    std::atomic<uint64_t> read{0};
    uint8_t bytes[CAPACITY];

    size_t put(const uint8_t *from, size_t len) {
        const uint64_t at = written.load(std::memory_order_relaxed);
        const size_t count = std::min<size_t>(len, CAPACITY - (at - read.load(std::memory_order_acquire)));
        for (size_t i = 0; i < count; ++i) {
            bytes[(at + i) % CAPACITY] = from[i];
        }
        written.store(at + count, std::memory_order_release);
        return count;
    }
    size_t take(uint8_t *to, size_t len) {
        const uint64_t at = read.load(std::memory_order_relaxed);
        const size_t count = std::min<size_t>(len, written.load(std::memory_order_acquire) - at);
        for (size_t i = 0; i < count; ++i) {
            to[i] = bytes[(at + i) % CAPACITY];
        }
        read.store(at + count, std::memory_order_release);
        return count;
    }
};

struct Shared {
    std::atomic<int> joined{0};
    Channel channels[MAX_RANKS][MAX_RANKS];
};

struct Communicator {
    Shared *shared;
    int rank, ranks;
    std::atomic<bool> aborted{false};
    // Shared with the work of streams and graphs.
    std::shared_ptr<int> used = std::make_shared<int>(0);
};

struct Transfer {
    bool sends;
    uint8_t *at;
    uint64_t len;
    int peer;
    uint64_t done = 0; // of the length's eight bytes and then the others
    uint64_t announced = 0;

    bool finished() const { return done == sizeof len + len; }

    // Whether it got on.
    bool advance(Communicator &own) {
        Channel &channel = sends ? own.shared->channels[own.rank][peer] : own.shared->channels[peer][own.rank];
        const uint64_t before = done;
        if (done < sizeof len) {
            auto *word = reinterpret_cast<uint8_t *>(sends ? &len : &announced) + done;
            done += sends ? channel.put(word, sizeof len - done) : channel.take(word, sizeof len - done);
            if (!sends && done == sizeof len && announced != len) {
                die("NCCL: a send meets a receive of another length");
            }
        }
        if (done >= sizeof len) {
            uint8_t *rest = at + (done - sizeof len);
            const uint64_t left = sizeof len + len - done;
            done += sends ? channel.put(rest, left) : channel.take(rest, left);
        }
        return done != before;
    }
};

// All at once, but those between two ranks in their order.
static void run(Communicator &own, std::vector<Transfer> transfers) {
    for (bool left = true; left && !own.aborted;) {
        left = false;
        bool moved = false;
        bool busy[2][MAX_RANKS] = {};
        for (Transfer &transfer : transfers) {
            bool &taken = busy[transfer.sends][transfer.peer];
            if (transfer.finished() || taken) {
                continue;
            }
            moved |= transfer.advance(own);
            taken = !transfer.finished();
            left = true;
        }
        if (!moved) {
            sched_yield();
        }
    }
}

struct Group {
    int depth = 0;
    Communicator *communicator = nullptr;
    Stream *stream = nullptr;
    std::vector<Transfer> transfers;
};
static thread_local Group group;

} // namespace soft

using namespace soft;

enum { SUCCESS = 0, SYSTEM = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, UINT8 = 1 };

struct Id {
    uint64_t pid;
    uint64_t file;
    uint64_t reserved[14];
};

extern "C" {

const char *ncclGetErrorString(int) { return "soft NCCL refused"; }

int ncclGetUniqueId(Id *id) {
    const int file = memfd_create("soft-nccl", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) {
        return SYSTEM;
    }
    *id = {static_cast<uint64_t>(getpid()), static_cast<uint64_t>(file), {}};
    return SUCCESS;
}

int ncclCommInitRank(Communicator **communicator, int ranks, Id id, int rank) {
    if (ranks > MAX_RANKS || rank >= ranks) {
        return INVALID_ARGUMENT;
    }
    const std::string path = "/proc/" + std::to_string(id.pid) + "/fd/" + std::to_string(id.file);
    const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
    void *mapped = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || mapped == MAP_FAILED) {
        return SYSTEM;
    }
    close(file);
    auto *made = new Communicator{static_cast<Shared *>(mapped), rank, ranks};
    ++made->shared->joined;
    while (made->shared->joined < ranks) {
        usleep(1000);
    }
    *communicator = made;
    return SUCCESS;
}

int ncclGroupStart() {
    ++group.depth;
    return SUCCESS;
}

int ncclGroupEnd() {
    if (--group.depth > 0 || group.communicator == nullptr) {
        return SUCCESS;
    }
    auto *communicator = group.communicator;
    auto transfers = std::make_shared<std::vector<Transfer>>(std::move(group.transfers));
    const auto used = communicator->used;
    group.stream->add([communicator, transfers, used] { run(*communicator, *transfers); });
    group = Group{};
    return SUCCESS;
}

static int transfer(bool sends, uint64_t at, size_t len, int kind, int peer, Communicator *communicator, void *stream) {
    if (kind != UINT8 || peer < 0 || peer >= communicator->ranks || !on_device(at, len)) {
        return INVALID_ARGUMENT;
    }
    ncclGroupStart();
    group.communicator = communicator;
    group.stream = static_cast<Stream *>(stream);
    group.transfers.push_back({sends, reinterpret_cast<uint8_t *>(at), len, peer});
    return ncclGroupEnd();
}

int ncclSend(uint64_t from, size_t len, int kind, int peer, Communicator *communicator, void *stream) {
    return transfer(true, from, len, kind, peer, communicator, stream);
}

int ncclRecv(uint64_t to, size_t len, int kind, int peer, Communicator *communicator, void *stream) {
    return transfer(false, to, len, kind, peer, communicator, stream);
}

// In place only: what is sent is this rank's part of what is received.
int ncclAllGather(uint64_t from, uint64_t to, size_t len, int kind, Communicator *communicator, void *stream) {
    const auto part = [&](int rank) { return to + static_cast<uint64_t>(rank) * len; };
    if (from != part(communicator->rank)) {
        return INVALID_USAGE;
    }
    ncclGroupStart();
    int outcome = SUCCESS;
    for (int peer = 0; peer < communicator->ranks; ++peer) {
        if (peer != communicator->rank) {
            outcome |= ncclSend(from, len, kind, peer, communicator, stream);
            outcome |= ncclRecv(part(peer), len, kind, peer, communicator, stream);
        }
    }
    ncclGroupEnd();
    return outcome;
}

int ncclCommGetAsyncError(Communicator *, int *state) {
    *state = SUCCESS;
    return SUCCESS;
}

int ncclCommAbort(Communicator *communicator) {
    communicator->aborted = true;
    while (communicator->used.use_count() > 1) {
        usleep(1000);
    }
    return SUCCESS;
}

} // extern "C"
