#!/usr/bin/env bash
# Builds what run.sh needs on a machine with a GPU and without Rust or a network: target/gpu/tpq and target/gpu/tests, 10 MB in
# all. Needs nvcc (NVCC or PATH; `cargo xtask cuda-check` fetches one) and no GPU. The driver and NCCL are loaded when they run.
#
#   benches/gpu/pack.sh [--engine]      with --engine also target/gpu/engine.tar.xz (30 MB): tpq, mistralrs-server and unit tests, linked against
#                                       1 GB of CUDA's libraries that it fetches; half an hour on two cores
set -euo pipefail
cd "$(dirname "$0")/../.."
. benches/gpu/cuda.sh
mkdir -p target/gpu
build() { # features, where to
    cargo build --release -p mistralrs-tpq --bin tpq --no-default-features --features "$1" --target-dir target/gpu-build
    install -D -s target/gpu-build/release/tpq "$2"
    ls -l "$2"
}
build cuda,nccl target/gpu/tpq
tests=$(test_binary cuda,nccl --test gpu)
install -D -s "$tests" target/gpu/tests
if [ "${1:-}" = --engine ]; then
    engine_libraries
    cargo build --release -p mistralrs-tpq --bin tpq --bin mistralrs-server --no-default-features --features engine,cuda,nccl \
        --target-dir target/gpu-build
    for binary in tpq mistralrs-server; do
        install -D -s target/gpu-build/release/$binary target/gpu-build/packed/$binary
    done
    tests=$(test_binary engine,cuda,nccl --lib)
    install -D -s "$tests" target/gpu-build/packed/engine_tests
    # The first two have most of their code in common, 130 MB apart: with a window that long, 30 MB and not 43.
    XZ_OPT=--lzma2=preset=4,dict=192MiB tar -C target/gpu-build/packed -cJf target/gpu/engine.tar.xz tpq mistralrs-server engine_tests
    ls -l target/gpu/engine.tar.xz
fi
