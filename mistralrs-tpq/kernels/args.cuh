// What a launch is told. src/cuda/args.rs has the same structures; tests/cuda checks their sizes against these.
#pragma once

#include <cstdint>

namespace tpq {

constexpr uint32_t MAX_RANKS = 64;
// Consecutive features that one thread handles at a time: 16 bytes of a 16-bit dtype, 4 bytes of codes.
constexpr uint32_t CHUNK = 8;
// Bit of Table::source: the rest is the index of an outlier, not a slot.
constexpr uint32_t OUTLIER = 0x80000000u;

// Before each payload, 32 bytes, so that a payload is aligned as its slot is.
struct Header {
    uint32_t nonfinite;
    uint32_t clipped;
    // Of a sum: the ranks (bit r for rank r, low word first) whose partial sums had NaN or infinity.
    uint32_t marks[2];
    // What the payload is of, as Call::tag of its writer.
    uint32_t tag;
    uint32_t reserved[3];
};

// Written by kernels, read by the host whenever it likes.
struct Status {
    uint64_t clipped;
    uint64_t nonfinite;
    // Ranks (bit r for rank r) whose partial sum had NaN or infinity, and whose payload no encoder sends.
    uint64_t nonfinite_ranks;
    uint64_t malformed_ranks;
    // Ranks whose payload is of another exchange than this rank's.
    uint64_t mismatched_ranks;
    // Ranks that did not come to a barrier in time.
    uint64_t absent_ranks;
};

// Planes of a row of `rd`, in its order: 16, 8, 4, 2 and 1 bits of a code.
constexpr uint32_t RD_PLANES = 6;
// The last of them: what fills up the row.
constexpr uint32_t RD_ZEROS = 5;

// One rank's rows of `rd`.
struct RdShape {
    uint32_t units[RD_PLANES + 1]; // the first unit of each plane, of 8 codes or 8 bytes of zeros; then how many units
    uint32_t bytes[RD_PLANES + 1]; // the first byte of each plane; then of the next row
};

// Calibration of one site for `paper` or `rd`; all zero for the other codecs. Rows of `steps` are `stride` entries apart, a multiple
// of CHUNK, and padded with zeros. `paper` reads the first seven pointers; `rd` has rows for each rank in all of its tables.
struct Table {
    const float *steps;
    const float *inv_steps;
    // Of each feature: the slot with its code, or OUTLIER | index.
    const uint32_t *source;
    // Of each slot: the feature whose code it holds.
    const uint32_t *slot_feature;
    const uint32_t *outliers;
    // Bit j of byte c: feature 8 c + j is not in the slot of its own index; the same for slots.
    const uint8_t *patched_features;
    const uint8_t *patched_slots;
    // `rd`, by feature: `source` is its kind << 28 | the first bit of its code in a row, `second` that of the code's second part.
    // By entry, eight to a unit, rows `job_stride` apart: `inv_steps`, and `slot_feature`: the feature | its kind << 24 | how far
    // down its code is to be shifted << 28 | whether it counts when it is clipped << 31.
    const uint32_t *second;
    const RdShape *shapes;
    const float *codebook;
    uint32_t stride;
    uint32_t slots;
    uint32_t outlier_count;
    uint32_t job_stride;
};

// One launch of encode, decode_accumulate or reduce_requantize. Each reads the fields it needs.
struct Call {
    Table from; // codec of the payloads that are read
    Table to;   // codec of the payload that is written
    const void *values;
    void *output;         // or null: the sum of raw values is a payload itself
    const void *bias;     // features, or null
    const void *residual; // as output, or null
    uint8_t *payload;     // after its header
    Status *status;
    // Where payloads take turns with two slots, the barriers that this rank has passed: a payload is written to slot `*turn` mod 2,
    // those that are read are in the other one. The addresses here are of slot 0. Counted on the device, so that a captured graph
    // finds its slots whenever it is replayed. Null: there is one slot, and slot_len is zero.
    const uint64_t *turn;
    uint64_t slot_len; // from slot 0 to slot 1
    const uint8_t *payloads[MAX_RANKS];
    uint32_t tokens;
    uint32_t features;
    uint32_t values_stride; // elements between rows of values, output and residual
    uint32_t from_row_len;
    uint32_t to_row_len;
    uint32_t ranks;
    uint32_t to_rank; // row of `to`
    uint32_t first_row; // of the payloads that are read: their rows from here on are those of this call
    uint32_t tag;       // written to the header of `payload`
    uint32_t from_tag;  // expected in the headers of `payloads`
};

// One launch of barrier. All counts are of barriers since the ranks met, so they never repeat.
struct Barrier {
    uint64_t *reached;             // by rank: how far this rank has got with each of them
    uint64_t *inbox;               // by rank: what each of them has told this rank
    uint64_t *inboxes[MAX_RANKS];  // the inbox of each rank, in its own memory
    Status *status;
    uint8_t *headers;  // of this rank's payloads: that of slot 0
    uint64_t slot_len; // as Call's
    uint64_t patience_ns;
    uint32_t rank;
    uint32_t ranks;
};

} // namespace tpq
