#!/usr/bin/env bash
# Builds what run.sh needs on a machine with a GPU and without Rust or a network: target/gpu/tpq and target/gpu/tests, 10 MB in
# all. Needs nvcc (NVCC or PATH; `cargo xtask cuda-check` fetches one) and no GPU. The driver and NCCL are loaded when they run.
#
#   benches/gpu/pack.sh [--engine]      with --engine also target/gpu/engine.tar.xz (29 MB): tpq and mistralrs-server, linked against
#                                       1 GB of CUDA's libraries that it fetches; half an hour on two cores
set -euo pipefail
cd "$(dirname "$0")/../.."
toolkit=$PWD/target/cuda-toolkit/nvidia/cu13
if [ -z "${NVCC:-}" ] && [ -x "$toolkit/bin/nvcc" ]; then
    export NVCC=$toolkit/bin/nvcc
    PATH=$toolkit/bin:$PATH
fi
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
mkdir -p target/gpu
build() { # features, where to
    cargo build --release -p mistralrs-tpq --bin tpq --no-default-features --features "$1" --target-dir target/gpu-build
    install -D -s target/gpu-build/release/tpq "$2"
    ls -l "$2"
}
build cuda,nccl target/gpu/tpq
# The path that cargo prints last, between parentheses.
tests=$(cargo test --release -p mistralrs-tpq --test gpu --no-run --no-default-features --features cuda,nccl --target-dir target/gpu-build \
    2>&1 | tee /dev/stderr | sed -n 's/.*Executable.*(\(.*\))/\1/p')
install -D -s "$tests" target/gpu/tests
if [ "${1:-}" = --engine ]; then
    libraries=$PWD/target/cuda-libraries
    benches/gpu/libraries.sh "$toolkit" "$libraries"
    # cudarc links what it finds below CUDA_HOME; the engine's build scripts run one nvcc for each physical core.
    export CUDA_HOME=$libraries/home CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}
    cargo build --release -p mistralrs-tpq --bin tpq --bin mistralrs-server --no-default-features --features engine,cuda,nccl \
        --target-dir target/gpu-build
    for binary in tpq mistralrs-server; do
        install -D -s target/gpu-build/release/$binary target/gpu-build/packed/$binary
    done
    # The two have most of their code in common, 130 MB apart: with a window that long, 29 MB and not 43.
    XZ_OPT=--lzma2=preset=4,dict=192MiB tar -C target/gpu-build/packed -cJf target/gpu/engine.tar.xz tpq mistralrs-server
    ls -l target/gpu/engine.tar.xz
fi
