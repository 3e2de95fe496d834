# Sourced at the repository's root by what builds with CUDA and has no GPU: nvcc, and what the engine is linked against.
toolkit=$PWD/target/cuda-toolkit/nvidia/cu13
if [ -z "${NVCC:-}" ] && [ -x "$toolkit/bin/nvcc" ]; then
    export NVCC=$toolkit/bin/nvcc
    PATH=$toolkit/bin:$PATH
fi
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}

# cudarc links what it finds below CUDA_HOME; the engine's build scripts run one nvcc for each physical core.
engine_libraries() {
    benches/gpu/libraries.sh "$toolkit" "$PWD/target/cuda-libraries"
    export CUDA_HOME=$PWD/target/cuda-libraries/home CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}
}

# test_binary FEATURES TARGET...: builds a test program and prints its path, which cargo prints last, between parentheses.
test_binary() {
    local features=$1
    shift
    cargo test --release -p mistralrs-tpq "$@" --no-run --no-default-features --features "$features" --target-dir target/gpu-build 2>&1 |
        tee /dev/stderr | sed -n 's/.*Executable.*(\(.*\))/\1/p'
}
