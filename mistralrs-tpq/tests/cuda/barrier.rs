//! The barrier between ranks of one host, one rank's launch at a time: what it waits for, what it tells, when it gives up.
//! That the ranks' launches meet, and what memory they then see, only a device can show.

use std::mem::offset_of;

use bytemuck::Zeroable;
use mistralrs_tpq::cuda::args::{Barrier, Status, HEADER_LEN};
use mistralrs_tpq::cuda::Launch;

use crate::emulator::Emulator;

const RANK: usize = 1;
const PATIENCE_NS: u64 = 50_000;

/// What a rank's barrier left.
struct Left {
    status: Status,
    reached: Vec<u64>,
    /// What it has told each rank.
    sent: Vec<u64>,
    /// Of its two slots, whether the header is zeros now.
    cleared: [bool; 2],
}

const SLOT_LEN: usize = 256;

/// Runs rank 1's barrier after the others have told it `told`; `reached` counts the barriers before it.
fn run(told: &[u64], reached: &[u64], status: Status) -> Left {
    let ranks = told.len();
    let barrier = Barrier {
        patience_ns: PATIENCE_NS,
        rank: RANK as u32,
        ranks: ranks as u32,
        slot_len: SLOT_LEN as u64,
        ..Barrier::zeroed()
    };
    let bytes = |words: &[u64]| bytemuck::cast_slice(words).to_vec();
    let mut buffers = vec![bytes(reached), bytemuck::bytes_of(&status).to_vec()];
    let mut pointers = vec![
        (offset_of!(Barrier, reached), 0, 0),
        (offset_of!(Barrier, status), 1, 0),
        (offset_of!(Barrier, inbox), 2 + RANK, 0),
    ];
    for rank in 0..ranks {
        pointers.push((offset_of!(Barrier, inboxes) + 8 * rank, buffers.len(), 0));
        // Its own inbox is the one it reads.
        buffers.push(if rank == RANK {
            bytes(told)
        } else {
            bytes(&vec![0; ranks])
        });
    }
    let argument = bytemuck::bytes_of(&barrier);
    let slots = buffers.len();
    pointers.push((offset_of!(Barrier, headers), slots, 0));
    buffers.push(vec![0xee; SLOT_LEN + HEADER_LEN]);
    Emulator::start().run(&Launch::barrier(), argument, &mut buffers, &pointers, false);
    let words = |buffer: &[u8]| -> Vec<u64> { buffer.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect() };
    let is_zero = |at: usize| buffers[slots][at..at + HEADER_LEN].iter().all(|byte| *byte == 0);
    Left {
        status: bytemuck::pod_read_unaligned(&buffers[1]),
        reached: words(&buffers[0]),
        sent: buffers[2..slots].iter().map(|inbox| words(inbox)[RANK]).collect(),
        cleared: [is_zero(0), is_zero(SLOT_LEN)],
    }
}

#[test]
fn a_rank_tells_all_others_and_goes_on_when_all_have_told_it() {
    // One is ahead by a barrier already; what this rank tells itself it waits for too.
    let left = run(&[5, 4, 6, 5], &[4; 4], Status::default());
    assert_eq!(left.status, Status::default());
    assert_eq!(left.reached, [5; 4]);
    assert_eq!(left.sent, [5; 4]);
}

#[test]
fn the_header_of_the_payload_that_is_written_next_is_cleared() {
    for (before, cleared) in [(4, [false, true]), (5, [true, false])] {
        let left = run(&[before + 1; 3], &[before; 3], Status::default());
        assert_eq!(left.cleared, cleared);
    }
}

#[test]
fn a_rank_that_does_not_come_in_time_is_named() {
    let left = run(&[1, 0, 0], &[0; 3], Status::default());
    assert_eq!(left.status.absent_ranks, 0b100);
    assert_eq!(left.sent[0], 1);
}

#[test]
fn a_rank_that_has_given_up_tells_nobody_that_it_came() {
    let failed = Status {
        absent_ranks: 0b100,
        ..Status::default()
    };
    let left = run(&[9, 0, 9], &[3; 3], failed);
    assert_eq!(left.status, failed);
    assert_eq!(left.reached, [3; 3]);
    assert_eq!((left.sent[0], left.sent[2]), (0, 0));
}
