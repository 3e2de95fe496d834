#!/usr/bin/env bash
# What a binary of the engine with CUDA is linked against, for a machine without CUDA: NVIDIA's libraries from PyPI's wheels (1 GB),
# and an empty libcuda with the names of cuda.h, which only a driver has in full. It must not be on the loader's path.
#
#   benches/gpu/libraries.sh TOOLKIT FOLDER      FOLDER/home is then a CUDA_HOME for the linker
set -euo pipefail
toolkit=$1
folder=$2
if [ ! -d "$folder/nvidia" ]; then
    rm -rf "$folder.unfinished"
    python3 -m pip install --quiet --no-deps --target "$folder.unfinished" \
        'nvidia-cublas==13.0.*' 'nvidia-curand==10.4.0.*' 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-nccl-cu13'
    rm -rf "$folder"
    mv "$folder.unfinished" "$folder"
fi
lib=$folder/home/lib
rm -rf "$lib"
mkdir -p "$lib"
# Wheels have libX.so.N alone, the linker looks for libX.so.
for path in "$toolkit"/lib/lib*.so.* "$folder"/nvidia/*/lib/lib*.so.*; do
    name=$(basename "$path")
    ln -sf "$path" "$lib/${name%%.so.*}.so"
done
grep -oE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+)?(_ptsz|_ptds)?\b' "$toolkit/include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' |
    cc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -x c - -o "$lib/libcuda.so"
