//! Compiles the CUDA kernels to PTX, with the feature `cuda` only: the driver makes machine code of it for the GPU at hand, so
//! one binary serves every GPU from sm_80 on.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    if let Err(error) = kernels() {
        println!("cargo:warning=the CUDA kernels were not built: {error}");
        std::process::exit(1);
    }
}

#[cfg(feature = "cuda")]
fn kernels() -> cudaforge::Result<()> {
    use std::path::PathBuf;

    const HEADERS: [&str; 6] = [
        "args.cuh",
        "portable.cuh",
        "numbers.cuh",
        "codecs.cuh",
        "rd.cuh",
        "slots.cuh",
    ];
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    cudaforge::KernelBuilder::new()
        .source_files(vec!["kernels/codec.cu", "kernels/barrier.cu"])
        .watch(HEADERS.map(|header| format!("kernels/{header}")))
        .out_dir(&out)
        // The least that BF16 models run on; nothing here uses what later ones have.
        .compute_cap_arch("80")
        .args(["-std=c++17", "-O3"])
        // Products and sums are rounded one by one, as the specification has them.
        .arg("--fmad=false")
        .build_ptx()?
        .write(out.join("kernels.rs"))
}
