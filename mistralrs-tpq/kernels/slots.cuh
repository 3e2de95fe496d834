// Where payloads are that take turns with two slots: Call::turn.
#pragma once

#include "args.cuh"
#include "portable.cuh"

namespace tpq {

TPQ_DEVICE uint64_t slot_offset(uint64_t turn, uint64_t slot_len) { return turn % 2 * slot_len; }

// Of a launch: what it reads was written before the last barrier, what it writes is read after the next one.
struct Slots {
    uint64_t read;
    uint64_t written;
};

TPQ_DEVICE Slots slots_of(const Call &call) {
    const uint64_t turn = call.turn == nullptr ? 0 : *call.turn;
    return {slot_offset(turn + 1, call.slot_len), slot_offset(turn, call.slot_len)};
}

} // namespace tpq
