#!/usr/bin/env bash
# Runs the engine's side of an exchange between GPUs without a GPU: the unit tests of src/engine/device.rs, candle's custom op and CUDA
# graphs of it, on the stand-in for the driver and NCCL in tests/cuda/soft_gpu. Builds the engine as pack.sh --engine does (half an hour
# on two cores, two minutes after a change of this crate's).
#
#   benches/gpu/stand_in.sh [TEST...]
set -euo pipefail
cd "$(dirname "$0")/../.."
. benches/gpu/cuda.sh
engine_libraries
tests=$(test_binary engine,cuda,nccl --lib)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# candle opens handles of cuBLAS and cuRAND and uses them for products and random numbers, which no test has: empty functions. The
# same for what the stand-in has not of the driver and of NCCL, as the program's loader wants all names.
nm -D --undefined-only "$tests" | awk '{print $2}' > "$work/wanted"
empty() { # library, pattern, what its functions return
    sed 's/@.*//' "$work/wanted" | grep -E "$2" | sort -u | sed "s/.*/int &(void) { return $3; }/" > "$work/$1.c"
}
library() { # library
    echo "$1 { global: *; };" > "$work/$1.map"
    cc -w -shared -fPIC "$work/$1.c" -Wl,-soname,"$1",--version-script="$work/$1.map" -o "$work/$1"
}
for library in $(sed -n 's/.*@\(libcu\(blas\|blasLt\|rand\)\.so[.0-9]*\)$/\1/p' "$work/wanted" | sort -u); do
    # Functions are named after it: cublas, curand.
    empty "$library" "^${library:3:6}" 0
    library "$library"
done
c++ -std=c++17 -O2 -U_FORTIFY_SOURCE -ffp-contract=off -fno-strict-aliasing -fPIC -shared -pthread -I mistralrs-tpq/kernels \
    mistralrs-tpq/tests/cuda/soft_gpu/*.cpp -Wl,-soname,libcuda.so.1 -o "$work/libcuda.so.1"
empty rest '^(cu[A-Z]|nccl)' 801
nm -D --defined-only "$work/libcuda.so.1" | awk '{print $3}' > "$work/has"
grep -vwFf "$work/has" "$work/rest.c" > "$work/rest-of-it.c" || true
# First in the search for symbols, the driver's second half.
cc -w -shared -fPIC "$work/rest-of-it.c" -o "$work/librest.so"
ln -s libcuda.so.1 "$work/libnccl.so.2"
export LD_LIBRARY_PATH=$work:$toolkit/lib TPQ_SOFT_GPU_JITTER_US=${TPQ_SOFT_GPU_JITTER_US:-300}
LD_PRELOAD=$work/librest.so "$tests" --test-threads 1 "${@:-engine::device}"
