#!/usr/bin/env python3
"""One rank of torch.distributed's Gloo all_reduce, BF16: TOKENS[,TOKENS...] FEATURES SECONDS; prints a row for
each number of tokens as `tpq bench --json` does.

RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT as torchrun sets them. Needs torch (PyPI); benches/links/run.py --gloo starts it.
"""

import json
import os
import sys
import time

import torch
import torch.distributed as dist


def main():
    features, seconds = int(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for tokens in map(int, sys.argv[1].split(",")):
        row = measure(tokens, features, seconds)
        if dist.get_rank() == 0:
            print(json.dumps(row), flush=True)
    # Taking Gloo's threads down ends a process now and then with "terminate called without an active exception".
    dist.barrier()
    time.sleep(0.2)
    os._exit(0)


def measure(tokens, features, seconds):
    tensor = torch.ones(tokens * features, dtype=torch.bfloat16)

    def once():
        start = time.perf_counter()
        dist.all_reduce(tensor)
        return time.perf_counter() - start

    once()
    times = torch.tensor([min(5000, max(5, int(seconds / min(once(), once()))))])
    dist.broadcast(times, 0)
    taken = sorted(once() for _ in range(int(times)))
    # The slowest rank's, as in tpq.
    quantiles = torch.tensor([taken[len(taken) // 2], taken[round((len(taken) - 1) * 0.99)]], dtype=torch.float64)
    dist.all_reduce(quantiles, op=dist.ReduceOp.MAX)
    ranks, size = dist.get_world_size(), tokens * features * 2
    sent = 2 * (ranks - 1) * size // ranks
    algbw = size * 8 / float(quantiles[0]) / 1e9
    return {
        "ranks": ranks, "tokens": tokens, "features": features, "dtype": "bf16", "codec": "none", "algorithm": "gloo",
        "bytes_sent_per_rank": sent, "bits_per_value": sent * 8 / (tokens * features),
        "us_median": float(quantiles[0]) * 1e6, "us_p99": float(quantiles[1]) * 1e6,
        "algbw_gbps": algbw, "busbw_gbps": algbw * 2 * (ranks - 1) / ranks, "wrong": 0,
    }


main()
