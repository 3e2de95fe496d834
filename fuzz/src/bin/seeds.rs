//! Writes the seeds that the crate's own encoders make, into `corpus/`.

#[path = "../../../mistralrs-tpq/tests/common/manifest.rs"]
mod small;

use std::path::Path;

use mistralrs_tpq::codec::{Codec, Dtype, Dynamic, Values};
use mistralrs_tpq::command::Command;
use mistralrs_tpq::wire::{
    handshake, ControlKind, ControlPrefix, FrameHeader, FrameKind, Hello, HelloField, Identity, Purpose, Refusal, Reply,
};

fn main() {
    hellos();
    frames();
    for (name, command) in [
        ("select", Command::Select(1)),
        ("gather", Command::GatherReport { choice: 0, logits: 3 }),
        ("restore", Command::RestoreLayers(Default::default())),
        ("shutdown", Command::Shutdown),
    ] {
        write("step", name, &serde_json::to_vec(&command).expect("JSON"));
    }
    for entry in std::fs::read_dir(root().join("../configs")).expect("configs") {
        let path = entry.expect("a file").path();
        if path.is_file() {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            write("config", &name, &std::fs::read(&path).expect("a configuration"));
        }
    }
    manifest();
}

fn hellos() {
    let hello = Hello {
        purpose: Purpose::Control,
        rank: 1,
        to: 0,
        world_size: 2,
        identity: Identity {
            dtype: Dtype::Bf16,
            model: [1; 32],
            manifest: [2; 32],
            codec: "paper".to_owned(),
            policy: "auto; encrypt".to_owned(),
        },
    };
    let refusal = Refusal {
        sender: 1,
        by: 0,
        field: HelloField::Manifest,
        expected: "01010101..".to_owned(),
        got: "none".to_owned(),
    };
    write("hello", "hello", &hello.encode());
    write("hello", "accepted", &Reply::Accepted(hello).encode());
    write("hello", "refused", &Reply::Refused(refusal).encode());
    write("hello", "handshake", &handshake(1, &[7; 48]));
}

fn frames() {
    for kind in [ControlKind::Message, ControlKind::Heartbeat, ControlKind::Goodbye] {
        write("frame", &format!("{kind:?}"), &ControlPrefix { kind, len: 5 }.encode());
    }
    let mut payload = vec![0; Dynamic::new(40).payload_len(2, Dtype::F32)];
    let values: Vec<f32> = (0..80_u8).map(|i| f32::from(i) - 40.0).collect();
    Dynamic::new(40).encode(0, Values::F32(&values), &mut payload);
    let header = FrameHeader {
        kind: FrameKind::OneShot,
        codec: 2,
        dtype: 0,
        flags: 0,
        rank: 1,
        sequence: 9,
        site: 7,
        tokens: 2,
        payload_len: payload.len() as u32,
        part: 0,
    };
    write("frame", "header", &header.encode());
    write("frame", "payload", &payload);
}

fn manifest() {
    let layer = |name: &str| {
        small::layer(name, &[3, 31], (1..=64_u8).map(f32::from).collect())
    };
    let layers = vec![layer("model.layers.0.mlp.down_proj"), layer("model.layers.0.self_attn.o_proj")];
    let folder = tempfile::tempdir().expect("a folder");
    let path = small::manifest(layers).write(folder.path()).expect("written");
    write("manifest", "seed", &std::fs::read(&path).expect("manifest"));
    let scales = std::fs::read(path.with_file_name("scales.safetensors"));
    write("scales", "seed", &scales.expect("scales"));
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = root().join("corpus").join(target);
    std::fs::create_dir_all(&folder).expect("the folder of the corpus");
    std::fs::write(folder.join(name), bytes).expect("a seed");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
