#!/usr/bin/env python3
"""Exchanges over rate-limited links: N network namespaces, one rank in each, and a table against the wire's floor.

    cargo build --release -p mistralrs-tpq --no-default-features --bin tpq
    sudo benches/links/run.py --ranks 2,4,8 --rate 1gbit [--tokens 128,512] [--gloo] [--json]
    benches/links/run.py --ranks 2 --rate loopback --tokens 1,8,64,512 --gloo

Each namespace hangs on a bridge, which has a namespace of its own, by a veth pair. `tc tbf` limits both directions, as a
switch port does. Linux, root, iproute2; with --gloo also a Python with torch (PYTHON names it). Leaves nothing behind. With
--rate loopback the ranks share this host's loopback, without namespaces or root.

The floor is the bytes that the busiest rank sends over the rate that a plain TCP stream reaches between two namespaces. cpu is
the share of the machine's cores in use in the middle of a row: near 100% the ranks wait for cores and not for the wire. core ms
is the same as time: what all ranks and the kernel for them spent on one exchange, on all cores together. An exchange takes at
least core ms over the number of cores, whatever the wire does.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
NAME = f"tpq{os.getpid()}"
# Two packets of Ethernet and a little.
STRICT_BURST = "4kb"


def sh(*command, **kwargs):
    return subprocess.run(command, check=True, **kwargs)


def inside(namespace, *command):
    return ["ip", "netns", "exec", namespace, *command] if namespace else list(command)


class Network:
    """`ranks` namespaces on one bridge; 10.77.0.(1 + rank)."""

    interface = "eth0"

    def __init__(self, ranks, rate, burst="128kb", congestion=None, strict=False):
        self.ranks = [f"{NAME}r{rank}" for rank in range(ranks)]
        self.switch = f"{NAME}sw"
        self.rate = rate
        self.burst = STRICT_BURST if strict else burst
        self.congestion = congestion
        self.strict = strict

    def __enter__(self):
        try:
            self.build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def build(self):
        sh("ip", "netns", "add", self.switch)
        sh(*inside(self.switch, "ip", "link", "add", "name", "br0", "type", "bridge"))
        sh(*inside(self.switch, "ip", "link", "set", "dev", "br0", "up"))
        for rank, namespace in enumerate(self.ranks):
            sh("ip", "netns", "add", namespace)
            if self.congestion:
                sh(*inside(namespace, "sysctl", "-q", "-w", f"net.ipv4.tcp_congestion_control={self.congestion}"))
            sh("ip", "link", "add", "name", "eth0", "netns", namespace, "type", "veth", "peer", "name", f"p{rank}", "netns", self.switch)
            sh(*inside(self.switch, "ip", "link", "set", f"p{rank}", "master", "br0", "up"))
            sh(*inside(namespace, "ip", "addr", "add", f"{self.address(rank)}/24", "dev", "eth0"))
            sh(*inside(namespace, "ip", "link", "set", "dev", "eth0", "up"))
            sh(*inside(namespace, "ip", "link", "set", "lo", "up"))
            if self.strict:
                sh(*inside(namespace, "ip", "link", "set", "dev", "eth0", "gso_max_segs", "1"))
            if self.rate != "none":
                # A host's queue holds a thousand packets of up to 64 KiB, a switch's about this. Where the host's own drops
                # one, its TCP may wait for half a second: with 1 MB there, eight ranks' 99th percentile was 560 to 800 ms.
                self.limit(namespace, "eth0", "8mb")
                self.limit(self.switch, f"p{rank}", "1mb")

    def limit(self, namespace, device, queue):
        shape = ["root", "tbf", "rate", self.rate, "burst", self.burst, "limit", queue]
        sh(*inside(namespace, "tc", "qdisc", "add", "dev", device, *shape))

    def address(self, rank):
        return f"10.77.0.{rank + 1}"

    def peers(self):
        return ",".join(f"{self.address(rank)}:{7700 + rank}" for rank in range(len(self.ranks)))

    def __exit__(self, *_):
        for namespace in [*self.ranks, self.switch]:
            subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL)


class Loopback(Network):
    """`ranks` processes on 127.0.0.1, unlimited."""

    interface = "lo"

    def __init__(self, ranks):
        self.ranks = [None] * ranks

    def build(self):
        pass

    def address(self, rank):
        return "127.0.0.1"

    def __exit__(self, *_):
        pass


def stream_rate(network):
    """Bytes a second of one TCP stream from rank 0 to rank 1, without its first quarter."""
    script = os.path.join(HERE, "stream.py")
    receiver = subprocess.Popen(
        inside(network.ranks[1], sys.executable, script, "receive"), stdout=subprocess.PIPE, text=True
    )
    time.sleep(0.3)
    sh(*inside(network.ranks[0], sys.executable, script, "send", network.address(1)))
    return float(receiver.communicate(timeout=120)[0])


def run_ranks(network, command_of, environment):
    """Runs a command in every namespace; rank 0's output."""
    processes = []
    for rank, namespace in enumerate(network.ranks):
        command = inside(namespace, *command_of(rank))
        out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, stdout=out, text=True, env={**os.environ, **environment(rank)}))
    try:
        text = processes[0].communicate(timeout=600)[0]
        codes = [process.wait(timeout=60) for process in processes]
    finally:
        # Those that still run where this script is told to end.
        for process in processes:
            process.kill()
    if any(codes):
        sys.exit(f"exit codes by rank: {codes}")
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


class Cores:
    """How busy the machine's cores are, the kernel's work for packets included, without the first and last part of a run."""

    def __enter__(self):
        self.samples, self.stop = [self.ticks()], threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.stop.wait(0.05):
            self.samples.append(self.ticks())

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def busy(self):
        first, last = (self.samples[int((len(self.samples) - 1) * part)] for part in (0.4, 0.9))
        busy, ticks = (after - before for after, before in zip(last, first))
        return busy / max(ticks, 1)

    @staticmethod
    def ticks():
        with open("/proc/stat") as stat:
            ticks = [int(word) for word in stat.readline().split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def tpq_rows(network, tokens, args):
    peers, size = network.peers(), str(tokens * args.features * 2)
    base = [args.tpq, "bench", "exchange", "--json", "--insecure", "--min-bytes", size, "--max-bytes", size]
    # The network's, whatever it is: to be compared.
    base += ["--congestion-control", "system"] if args.congestion else []
    base += ["--gather-bits", str(args.gather_bits), "--features", str(args.features), "--seconds", str(args.seconds)]
    cases = [["--codec", "none"]]
    for codec in args.codec.split(","):
        cases += [["--codec", codec, "--algorithm", algorithm] for algorithm in args.algorithm.split(",")]
    rows = []
    for case in cases:
        with Cores() as cores:
            found = run_ranks(network, lambda _: base + case, lambda rank: {"TPQ_RANK": str(rank), "TPQ_PEERS": peers})
        busy, count = cores.busy(), os.cpu_count() or 1
        rows += [{**row, "cpu_busy": busy, "core_us": busy * count * row["us_median"]} for row in found]
    return rows


def gloo_rows(network, args):
    script = os.path.join(ROOT, "benches", "peers", "gloo.py")
    command = [os.environ.get("PYTHON", sys.executable), script, args.tokens, str(args.features), str(args.seconds)]
    environment = lambda rank: {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(network.ranks)),
        "MASTER_ADDR": network.address(0),
        "MASTER_PORT": "7900",
        "GLOO_SOCKET_IFNAME": network.interface,
        "OMP_NUM_THREADS": "1",
    }
    return run_ranks(network, lambda _: command, environment)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--rate", default="1gbit", help="as tc reads it, none (namespaces without a limit) or loopback")
    parser.add_argument(
        "--burst",
        default="128kb",
        help="what a link that was idle sends at once; with less than 70kb the kernel cuts a sender's 64 KiB packets, at twice the CPU time",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="time that a link was idle is lost, as on a real one: packets of 1500 bytes, at several times the CPU time",
    )
    parser.add_argument("--congestion", help="TCP's congestion control in the namespaces, such as cubic; default: the host's, which tpq replaces where it is bbr")
    parser.add_argument("--tokens", default="512", help="rows of a message, separated by commas")
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--algorithm", default="auto,one_shot,two_shot,ring,doubling")
    parser.add_argument("--codec", default="paper,dynamic")
    parser.add_argument("--gather-bits", type=int, default=8, help="of the second stage, 4 or 8")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row")
    parser.add_argument("--gloo", action="store_true", help="also torch.distributed's Gloo, BF16")
    parser.add_argument("--tpq", default=os.path.join(ROOT, "target", "release", "tpq"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if os.geteuid() != 0 and args.rate != "loopback":
        sys.exit("network namespaces need root")
    # So that the namespaces go when the script is told to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for ranks in map(int, args.ranks.split(",")):
        with Loopback(ranks) if args.rate == "loopback" else Network(
            ranks, args.rate, args.burst, args.congestion, args.strict
        ) as network:
            rate = stream_rate(network)
            rows = [row for tokens in args.tokens.split(",") for row in tpq_rows(network, int(tokens), args)]
            rows += gloo_rows(network, args) if args.gloo else []
        baselines = {row["tokens"]: row["us_median"] for row in rows if row["codec"] == "none" and row["algorithm"] != "gloo"}
        gloo = {row["tokens"]: row["us_median"] for row in rows if row["algorithm"] == "gloo"}
        if not args.json:
            print(f"\n{ranks} ranks, {args.rate}: a TCP stream reaches {rate * 8 / 1e9:.3f} Gbit/s")
            print(f"{'tokens':>6} {'codec':9} {'algorithm':10} {'bits/value':>10} {'median us':>10} {'p99 us':>10} {'floor us':>9} {'x floor':>8} {'none / it':>9} {'Gloo / it':>9} {'wrong':>5} {'cpu':>4} {'core ms':>7}")
        for row in rows:
            row["floor_us"] = row["bytes_sent_per_rank"] / rate * 1e6
            row["link"], row["stream_gbps"] = args.rate, rate * 8 / 1e9
            if args.json:
                print(json.dumps(row))
                continue
            print(
                f"{row['tokens']:6} {row['codec']:9} {row['algorithm']:10} {row['bits_per_value']:10.3f} {row['us_median']:10.0f} {row['us_p99']:10.0f} "
                f"{row['floor_us']:9.0f} {row['us_median'] / row['floor_us']:8.3f} {baselines[row['tokens']] / row['us_median']:9.2f} {gloo.get(row['tokens'], 0) / row['us_median']:9.2f} {row['wrong']:5} {row.get('cpu_busy', 0):4.0%} {row.get('core_us', 0) / 1e3:7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
