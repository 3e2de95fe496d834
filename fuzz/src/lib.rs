//! What bytes from a peer, and files from a user, go through first. None of it may panic, hang, or allocate what a length claims.
//!
//! ```text
//! cargo run --release --bin smoke -- 10          stable toolchain: mutated seeds, 10 s for each target
//! cargo +nightly fuzz run hello --features libfuzzer -- -max_total_time=600
//! ```
//! `corpus/TARGET/` holds the seeds; `cargo run --bin seeds` writes those that the crate's own encoders make.

use std::path::Path;
use std::sync::LazyLock;

use mistralrs_tpq::codec::{Codec, Dtype, Dynamic, NoCodec};
use mistralrs_tpq::config::{Environment, Plan};
use mistralrs_tpq::manifest::{Digest, Manifest};
use mistralrs_tpq::wire::{ControlPrefix, FrameHeader, Hello, Prefix, Reply, DEFAULT_MESSAGE_LIMIT, PREFIX_LEN};

pub type Target = fn(&[u8]);

pub const TARGETS: [(&str, Target); 6] = [
    ("hello", hello),
    ("frame", frame),
    ("step", step),
    ("config", config),
    ("manifest", manifest),
    ("scales", scales),
];

/// A connection's first bytes, in both directions. What parses is the same when written and read again.
pub fn hello(data: &[u8]) {
    let (head, body) = data.split_at(PREFIX_LEN.min(data.len()));
    if let Ok(prefix) = Prefix::of_hello(head) {
        if let Ok(hello) = Hello::parse(&prefix, body) {
            let bytes = hello.encode();
            let prefix = Prefix::of_hello(&bytes[..PREFIX_LEN]).expect("its own prefix");
            assert_eq!(Hello::parse(&prefix, &bytes[PREFIX_LEN..]), Ok(hello.clone()));
            let _ = hello.refuse(&hello).map(|refusal| refusal.to_string());
        }
    }
    if let Ok(prefix) = Prefix::of_reply(head) {
        if let Ok(reply) = Reply::parse(&prefix, body) {
            let bytes = reply.encode();
            let prefix = Prefix::of_reply(&bytes[..PREFIX_LEN]).expect("its own prefix");
            assert_eq!(Reply::parse(&prefix, &bytes[PREFIX_LEN..]), Ok(reply));
        }
    }
}

/// A data frame's header and payload, and a control frame's prefix.
pub fn frame(data: &[u8]) {
    if let Ok(header) = FrameHeader::parse(data) {
        assert_eq!(FrameHeader::parse(&header.encode()), Ok(header));
    }
    if let Ok(prefix) = ControlPrefix::parse(data, DEFAULT_MESSAGE_LIMIT) {
        assert!(prefix.len as usize <= DEFAULT_MESSAGE_LIMIT);
    }
    let features = 1 + data.first().map_or(0, |byte| usize::from(byte % 67));
    let mut sum = vec![0.0; features * 3];
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for codec in [&Dynamic::new(features) as &dyn Codec, &NoCodec::new(features)] {
            let _ = codec.decode_accumulate(0, data, dtype, &mut sum);
        }
    }
}

/// A command of rank 0 on the step channel, after its tag.
pub fn step(data: &[u8]) {
    let _ = mistralrs_tpq::command::Command::parse(data);
}

pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Plan::parse(text, Path::new("tpq.yaml")) {
        Ok(plan) => {
            let _ = plan.topology(&Environment::default());
            let _ = plan.policy_digest();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// manifest.yaml beside scales that fit the seed.
pub fn manifest(data: &[u8]) {
    static SCALES: LazyLock<Vec<u8>> = LazyLock::new(|| seed("scales"));
    load(data, &SCALES);
}

/// scales.safetensors beside a manifest.yaml with its digest, which would refuse all but one file otherwise.
pub fn scales(data: &[u8]) {
    static PARTS: LazyLock<(String, String)> = LazyLock::new(|| {
        let text = String::from_utf8(seed("manifest")).expect("the seed is text");
        (text, Digest::of(&seed("scales")).to_string())
    });
    let yaml = PARTS.0.replace(&PARTS.1, &Digest::of(data).to_string());
    load(yaml.as_bytes(), data);
}

fn seed(target: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target).join("seed");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Not through the disk: writing two files took 99% of a run, 200 runs a second instead of tens of thousands.
fn load(yaml: &[u8], scales: &[u8]) {
    match Manifest::from_bytes(yaml, scales) {
        Ok(manifest) => {
            let _ = manifest.digest();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
