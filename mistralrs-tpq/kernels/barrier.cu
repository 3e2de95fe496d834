// Where the ranks of one host wait for each other between writing a payload and reading the others', without the host.
//
// A rank tells each other one how many barriers it has come to, by a store into the other's memory, and waits until all
// have told it at least as much. Counts are kept on the device, so a captured graph can be replayed. The store is a
// release and the load an acquire at system scope: what a rank wrote before its barrier, in earlier kernels of its stream
// too, is seen by what the others run after theirs.
//
// Payloads take turns with two slots: between barriers k and k + 1 a rank writes slot k mod 2 and reads the others' slot
// (k - 1) mod 2. So when all have come to barrier k + 1, nobody reads slot (k + 1) mod 2 any more, and its header is cleared
// for what is written there next.

#include "slots.cuh"

namespace tpq {

constexpr uint32_t BARRIER_THREADS = MAX_RANKS;

// Whether `rank` came in time. A rank that has given up tells nobody anything any more, so the others give up too: what it
// would send them is made from sums that it does not have.
TPQ_DEVICE bool meet(const Barrier &barrier, uint32_t rank) {
    if (observe(&barrier.status->absent_ranks) != 0) {
        return true;
    }
    const uint64_t count = barrier.reached[rank] + 1;
    barrier.reached[rank] = count;
    publish(barrier.inboxes[rank] + barrier.rank, count);
    const uint64_t start = nanoseconds();
    while (observe(barrier.inbox + rank) < count) {
        if (nanoseconds() - start > barrier.patience_ns) {
            return false;
        }
        pause();
    }
    return true;
}

} // namespace tpq

// One block, one thread for each rank. The own rank's thread meets itself: its inbox is one of `inboxes` too.
TPQ_KERNEL(tpq::BARRIER_THREADS) tpq_barrier(TPQ_CONST tpq::Barrier barrier) {
    const uint32_t rank = threadIdx.x;
    if (rank < barrier.ranks && !tpq::meet(barrier, rank)) {
        tpq::mark(&barrier.status->absent_ranks, uint64_t{1} << rank);
    }
    tpq::all_threads();
    if (rank == 0) {
        const uint64_t offset = tpq::slot_offset(barrier.reached[barrier.rank], barrier.slot_len);
        *reinterpret_cast<tpq::Header *>(barrier.headers + offset) = tpq::Header{};
    }
}
