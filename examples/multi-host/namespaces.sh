#!/usr/bin/env bash
# Two hosts on one: network namespaces a (10.0.0.1) and b (10.0.0.2) with a cable between them and no way out.
#
#   namespaces.sh A.sh B.sh CHECK.sh
#
# Runs A.sh on a and B.sh on b, each in its own folder. When http://127.0.0.1:1234/health answers on a, runs CHECK.sh there,
# then ends all. Its exit code is CHECK.sh's, or 1 when a host ended before. B.sh may be /dev/null: then there is no host b.
# RATE=1gbit limits the cable. WAIT=120 is how many seconds the hosts may take. Linux with user namespaces; needs no root.
set -euo pipefail

if [[ ${1:-} != --inside ]]; then
    [[ $# == 3 ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
    # Everything in it, processes included, is gone when it ends.
    exec unshare --user --map-root-user --net --mount --pid --fork --kill-child --mount-proc "$0" --inside "$@"
fi
shift
a=$(realpath "$1") b=$(realpath "$2") check=$(realpath "$3")

mount -t tmpfs tmpfs /run
mkdir /run/netns
ip netns add a
ip netns add b
ip link add eth0 netns a type veth peer name eth0 netns b
for host in "a 10.0.0.1/24" "b 10.0.0.2/24"; do
    read -r name address <<<"$host"
    ip -n "$name" address add "$address" dev eth0
    ip -n "$name" link set lo up
    ip -n "$name" link set eth0 up
    if [[ -n ${RATE:-} ]]; then
        ip netns exec "$name" tc qdisc add dev eth0 root tbf rate "$RATE" burst 256kb latency 50ms
    fi
done

on() { # HOST SCRIPT
    cd "$(dirname "$2")" && exec ip netns exec "$1" bash -euo pipefail "$2"
}

(on a "$a") &
host_a=$!
host_b=
if [[ $b != /dev/null ]]; then
    (on b "$b") &
    host_b=$!
fi
deadline=$((SECONDS + ${WAIT:-120}))
until ip netns exec a curl --silent --fail --max-time 2 --output /dev/null http://127.0.0.1:1234/health; do
    for host in $host_a $host_b; do
        kill -0 "$host" 2>/dev/null || { echo "a host ended before it served" >&2; exit 1; }
    done
    ((SECONDS < deadline)) || { echo "not serving after ${WAIT:-120} s" >&2; exit 1; }
    sleep 0.2
done
(on a "$check") || { code=$?; echo "the check ended with $code" >&2; exit "$code"; }
# Rank 0 ends the group; the other host then ends by itself.
kill -TERM "$host_a"
for host in $host_a $host_b; do
    wait "$host" || true
done
