#!/usr/bin/env bash
# Runs on a machine with one GPU what docs/gpu-status.md lists as not run. Each part stands alone, ends by itself and appends
# JSON lines to results.jsonl: the rows of the benchmark, and one line {"part", "rc", "seconds"} for itself. A part that
# failed has its output in PART.log.
#
#   benches/gpu/run.sh [-o FOLDER] [PART...]      all parts, or: host kernels suite sanitize peer nccl graph tcp table lost engine serve
#
# Needs target/gpu/tpq and target/gpu/tests of pack.sh, and for `engine` and `serve` target/gpu/engine.tar.xz. Leaves the card's settings alone.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-target/gpu/out}
if [ "${1:-}" = -o ]; then
    out=$2
    shift 2
fi
mkdir -p "$out"
results=$out/results.jsonl
tpq=$PWD/target/gpu/tpq
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Seconds that a part may take: a limit for what hangs, not what it needs.
declare -A limit=([host]=60 [kernels]=240 [suite]=240 [sanitize]=280 [peer]=120 [nccl]=180 [graph]=180 [tcp]=120 [table]=120 [lost]=60 [engine]=240 [serve]=120)

# Where CUDA's libraries are Python's wheels (PyTorch's are), the loader is told. It looks for libnccl.so, and the wheel has
# libnccl.so.2 only.
for lib in $(python3 -c 'import nvidia; print(*nvidia.__path__)' 2>/dev/null | tr ' ' '\n' | sed 's,$,/*/lib,'); do
    [ -d "$lib" ] || continue
    export LD_LIBRARY_PATH=$work/lib:$lib:${LD_LIBRARY_PATH:-}
    if [ -e "$lib/libnccl.so.2" ]; then
        mkdir -p "$work/lib"
        ln -sf "$lib/libnccl.so.2" "$work/lib/libnccl.so"
    fi
done

# ranks N ARG...: `tpq ARG...` as N processes on this GPU. NCCL takes one GPU twice when it believes in several hosts, and then
# goes through sockets.
ranks() {
    local n=$1 base=$((20000 + RANDOM % 20000)) peers= rank pids=() rc=0 pid
    shift
    for ((rank = 0; rank < n; rank++)); do peers+=${peers:+,}127.0.0.1:$((base + rank)); done
    for ((rank = 0; rank < n; rank++)); do
        TPQ_RANK=$rank TPQ_PEERS=$peers NCCL_HOSTID=rank$rank NCCL_SOCKET_IFNAME=lo "$@" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || rc=$?; done
    return $rc
}

exchange() { # link, further arguments
    local link=$1 n
    shift
    for n in 2 4; do
        ranks $n "$tpq" bench exchange --device cuda --gpu-link "$link" --json --seconds 0.2 "$@" || return
    done
}

part_host() {
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader |
        sed 's/\(.*\), \(.*\), \(.*\)/{"gpu":"\1","driver":"\2","memory":"\3","date":"'"$(date -u +%F)"'"}/'
}
# 8 Mi values and more, one token, and shapes that no access of 16 bytes fits; extremes and NaN are in every input.
part_kernels() {
    "$tpq" bench codec --device cuda --json --tokens 2048,8192,1 --features 4096 --dtype bf16,f32,f16 --ranks 2 || return
    "$tpq" bench codec --device cuda --json --tokens 2048 --features 4096 --dtype bf16 --ranks 8 || return
    "$tpq" bench codec --device cuda --json --tokens 3,17 --features 1031 --dtype bf16,f32,f16 --ranks 3
}
# Exchanges over every link, lost ranks, NaN: tests/gpu.rs, which cuda-check runs without a GPU.
part_suite() {
    TPQ_TEST_BINARY=$tpq target/gpu/tests --test-threads 1 || return
}
part_sanitize() {
    local tool
    for tool in memcheck racecheck; do
        compute-sanitizer --tool $tool --error-exitcode 9 "$tpq" bench codec --device cuda --json --tokens 3 \
            --features 1031 --dtype bf16 --ranks 2 || return
    done
    # The barrier and the second stage, with all ranks under the tool.
    ranks 2 compute-sanitizer --tool memcheck --error-exitcode 9 "$tpq" bench exchange --device cuda --gpu-link peer --json \
        --seconds 0 --min-bytes 8192 --max-bytes 65536 --algorithm one_shot,two_shot
}
part_peer() { exchange peer --algorithm one_shot,two_shot --max-bytes 4194304 --factor 8; }
part_nccl() { exchange nccl --algorithm one_shot,two_shot --max-bytes 4194304 --factor 8; }
# Decode steps: short messages.
part_graph() {
    exchange peer --graph --algorithm one_shot,two_shot --max-bytes 262144 --factor 8 &&
        exchange nccl --graph --algorithm one_shot,two_shot --max-bytes 262144 --factor 8
}
part_tcp() { exchange tcp --algorithm one_shot,two_shot --max-bytes 4194304 --factor 8; }
part_table() {
    ranks 2 "$tpq" bench exchange --device cuda --gpu-link peer --json --seconds 0.1 --factor 4 \
        --algorithm one_shot,two_shot --write-table "$out/gpu-link.yaml"
}
# One of two ranks is killed; the other must end with an error that names it, and not hang.
part_lost() {
    local base=$((20000 + RANDOM % 20000)) peers survivor victim started rc
    peers=127.0.0.1:$base,127.0.0.1:$((base + 1))
    run() { TPQ_RANK=$1 TPQ_PEERS=$peers "$tpq" bench exchange --device cuda --gpu-link peer --seconds 30 --max-bytes 65536; }
    run 0 2> "$work/survivor" & survivor=$!
    TPQ_RANK=1 TPQ_PEERS=$peers "$tpq" bench exchange --device cuda --gpu-link peer --seconds 30 --max-bytes 65536 & victim=$!
    sleep 8
    kill -KILL $victim
    started=$SECONDS
    wait $survivor
    rc=$?
    cat "$work/survivor" >&2
    printf '{"survivor_rc":%d,"ended_after_s":%d}\n' $rc $((SECONDS - started))
    [ $rc -ne 0 ] && grep -q 'rank 1' "$work/survivor"
}
unpack() {
    if ! tar -C "$work" -xJf target/gpu/engine.tar.xz && ! python3 -m tarfile -e target/gpu/engine.tar.xz "$work"; then
        echo "no target/gpu/engine.tar.xz: benches/gpu/pack.sh --engine" >&2
        return 3
    fi
}
# Tensors of candle's on this GPU; then two processes on it run the demo model, and the ranks' logits must be bit-identical.
part_engine() {
    local link
    unpack || return
    "$work/engine_tests" engine::device --test-threads 1 >&2 || return
    for link in peer nccl tcp host; do
        printf 'version: 1\ncodec: {kind: dynamic}\nexchange: {gpu_link: %s}\n' $link > "$work/tpq.yaml"
        NCCL_SOCKET_IFNAME=lo "$work/tpq" bench engine --config "$work/tpq.yaml" -n 2 -m examples/demo-model --prompt 64 \
            --generate 8 --runs 3 --json || return
        NCCL_SOCKET_IFNAME=lo "$work/tpq" eval --config "$work/tpq.yaml" -n 2 -m examples/demo-model --text README.md \
            --max-tokens 512 --json | tee "$work/eval" || return
        grep -q '"ranks_bit_identical":true' "$work/eval" || return
    done
}
# The same model as a server: eight requests one by one, then at once.
part_serve() {
    local port=$((20000 + RANDOM % 20000)) server rc
    unpack || return
    printf 'version: 1\ncodec: {kind: dynamic}\n' > "$work/tpq.yaml"
    "$work/tpq" launch -n 2 -- "$work/mistralrs-server" --tpq-config "$work/tpq.yaml" --paged-ctxt-len 8192 --port $port \
        plain -m examples/demo-model >&2 &
    server=$!
    python3 benches/gpu/ask.py $port
    rc=$?
    kill -INT $server
    wait $server
    return $rc
}

parts=("$@")
[ $# -eq 0 ] && parts=(host kernels suite sanitize peer nccl graph tcp table lost engine serve)
failed=0
for part in "${parts[@]}"; do
    if ! declare -F "part_$part" > /dev/null; then
        echo "there is no part $part" >&2
        exit 2
    fi
    started=$SECONDS
    # `timeout` ends the group of processes that the part has started.
    export -f exchange ranks unpack "part_$part"
    export tpq work out
    timeout --kill-after=5 "${limit[$part]}" bash -c "part_$part" > "$work/rows" 2> "$out/$part.log"
    rc=$?
    grep '^{' "$work/rows" | sed "s/^{/{\"part\":\"$part\",/" | tee -a "$results"
    grep -v '^{' "$work/rows" >> "$out/$part.log"
    printf '{"part":"%s","rc":%d,"seconds":%d}\n' "$part" $rc $((SECONDS - started)) | tee -a "$results"
    if [ $rc -ne 0 ]; then
        failed=1
        tail -n 15 "$out/$part.log" >&2
    fi
done
exit $failed
