#!/usr/bin/env python3
"""A real model under tensor parallelism over rate-limited links: `tpq bench engine` with a rank in each network namespace.

    cargo build --release -p mistralrs-tpq --bin tpq
    target/release/tpq make-model --preset llama-2-7b-4l --out model
    sudo benches/links/engine.py --ranks 2 --rates 1gbit,100mbit --model model --config tpq.yaml [--json]

The configuration needs `group: {insecure: true}`: the namespaces' addresses are not loopback. Linux, root, iproute2. Leaves
nothing behind.
"""

import argparse
import json
import os
import signal
import sys

from run import ROOT, Network, run_ranks, stream_rate


def rows_of(network, args):
    command = [args.tpq, "bench", "engine", "--json", "--cpu", "--config", args.config, "--model", args.model]
    command += ["--prompt", str(args.prompt), "--generate", str(args.generate), "--runs", str(args.runs)]
    # Ranks share the host's cores: more threads than cores each would only wait for one another.
    threads = str(max(1, (os.cpu_count() or 1) // len(network.ranks)))
    environment = lambda rank: {"TPQ_RANK": str(rank), "TPQ_PEERS": network.peers(), "RAYON_NUM_THREADS": threads}
    return run_ranks(network, lambda _: command, environment)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rates", default="1gbit,100mbit", help="as tc reads them, separated by commas")
    parser.add_argument("--model", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tpq", default=os.path.join(ROOT, "target", "release", "tpq"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not args.json:
        print(f"{'rate':8} {'codec':8} {'TTFT ms':>8} {'min..max':>13} {'in exchange':>11} {'share':>6} {'no waits':>8} {'none / it':>9} {'tok/s':>6} {'ms/token':>8}")
    for rate in args.rates.split(","):
        with Network(args.ranks, rate) as network:
            stream = stream_rate(network)
            rows = rows_of(network, args)
        baseline = next((row["prefill_exchange_met_ms"] for row in rows if row["codec"] == "none"), None)
        for row in rows:
            row["link"], row["stream_gbps"] = rate, stream * 8 / 1e9
            if args.json:
                print(json.dumps(row), flush=True)
                continue
            print(
                f"{rate:8} {row['codec']:8} {row['ttft_ms']:8.0f} {row['ttft_ms_min']:6.0f}..{row['ttft_ms_max']:.0f} {row['prefill_exchange_ms']:11.1f} "
                f"{row['prefill_exchange_share']:6.1%} {row['prefill_exchange_met_ms']:8.1f} {baseline / row['prefill_exchange_met_ms']:9.2f} {row['decode_tokens_per_s']:6.2f} {row['decode_exchange_ms']:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
