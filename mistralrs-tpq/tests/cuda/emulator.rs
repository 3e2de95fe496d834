//! The other end of `emulator.cpp`: compiles the kernels for this processor once and runs launches there.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use mistralrs_tpq::cuda::Launch;

/// A field of the kernel's argument (its offset) that shall point to a buffer, from a byte on.
pub type Pointer = (usize, usize, usize);

pub struct Emulator {
    child: Child,
}

impl Emulator {
    pub fn start() -> Self {
        static BINARY: OnceLock<PathBuf> = OnceLock::new();
        let mut command = Command::new(BINARY.get_or_init(compile));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self {
            child: command.spawn().unwrap(),
        }
    }

    /// Runs a launch with the bytes of its argument; `buffers` become what the kernel left in them. `backwards`: threads of
    /// a block in reverse order.
    pub fn run(
        &mut self,
        launch: &Launch,
        argument: &[u8],
        buffers: &mut [Vec<u8>],
        pointers: &[Pointer],
        backwards: bool,
    ) {
        let mut request = Vec::new();
        let mut word = |value: usize| request.extend_from_slice(&(value as u32).to_le_bytes());
        let kernel = launch.kernel.name();
        word(kernel.len());
        request.extend_from_slice(kernel.as_bytes());
        let mut word = |value: usize| request.extend_from_slice(&(value as u32).to_le_bytes());
        word(launch.grid.0 as usize);
        word(launch.grid.1 as usize);
        word(launch.threads as usize);
        word(usize::from(backwards));
        word(argument.len());
        request.extend_from_slice(argument);
        request.extend_from_slice(&(buffers.len() as u32).to_le_bytes());
        for buffer in buffers.iter() {
            request.extend_from_slice(&(buffer.len() as u64).to_le_bytes());
            request.extend_from_slice(buffer);
        }
        request.extend_from_slice(&(pointers.len() as u32).to_le_bytes());
        for &(field, buffer, from) in pointers {
            request.extend_from_slice(&(field as u32).to_le_bytes());
            request.extend_from_slice(&(buffer as u32).to_le_bytes());
            request.extend_from_slice(&(from as u64).to_le_bytes());
        }
        self.child.stdin.as_mut().unwrap().write_all(&request).unwrap();
        let answer = self.child.stdout.as_mut().unwrap();
        let mut result = [0; 4];
        answer
            .read_exact(&mut result)
            .expect("the emulator ended: a sanitizer's report is above");
        match u32::from_le_bytes(result) {
            0 => {}
            1 => panic!("no kernel {kernel}"),
            _ => panic!("{kernel}: threads of a warp waited for one that had ended"),
        }
        for buffer in buffers {
            answer.read_exact(buffer).unwrap();
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let ended = self.child.wait().unwrap();
        assert!(std::thread::panicking() || ended.success(), "the emulator: {ended}");
    }
}

fn compile() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let binary = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-emulator-{}", std::process::id()));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    command
        .args("-std=c++17 -O1 -Wall -Wextra -Werror -ffp-contract=off -fno-strict-aliasing".split(' '))
        .args("-fsanitize=address,undefined -fno-sanitize-recover=undefined".split(' '))
        .arg("-I")
        .arg(root.join("kernels"))
        .arg(root.join("tests/cuda/emulator.cpp"))
        .arg("-o")
        .arg(&binary);
    let status = command.status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "these tests need a C++17 compiler with sanitizers (CXX or c++): {compiler}: {status:?}"
    );
    binary
}
