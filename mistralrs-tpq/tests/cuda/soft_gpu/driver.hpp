// What the driver's stand-in has for NCCL's.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace soft {

using Work = std::function<void()>;

// Does what it is given one after the other, in a thread of its own.
struct Stream {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Work> queue; // the first one runs
    bool ending = false;
    std::vector<Work> *capture = nullptr;
    const bool late; // beside random times, so that what should have waited for it shows

    explicit Stream(bool late = false) : late(late) { std::thread([this] { run(); }).detach(); }
    void run();
    void add(Work work);
    bool captures();
    void drain();
};

bool on_device(uint64_t at, size_t len);
[[noreturn]] void die(const char *what);

} // namespace soft
