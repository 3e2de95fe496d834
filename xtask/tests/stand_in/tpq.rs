//! Stand-in for `tpq`: the command line that the demo relies on, without an engine behind it.

use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments
            .iter()
            .position(|argument| argument == name)
            .unwrap_or_else(|| panic!("no {name}"));
        arguments[at + 1].clone()
    };
    match arguments[0].as_str() {
        "calibrate" => {
            for file in [
                value("--config"),
                value("--corpus"),
                format!("{}/config.json", value("--model")),
            ] {
                assert!(std::fs::metadata(&file).unwrap().len() > 0, "{file} is empty");
            }
            let out = value("--out");
            std::fs::create_dir_all(&out).unwrap();
            std::fs::write(format!("{out}/manifest.yaml"), "format: 1\n").unwrap();
        }
        "eval" => {
            let config = std::fs::read_to_string(value("--config")).unwrap();
            assert!(
                config.contains("kind: paper") && config.contains("manifest.yaml"),
                "{config}"
            );
            assert!(std::fs::metadata(value("--text")).unwrap().len() > 0);
            let same = std::env::var_os("STAND_IN_RANKS_DIFFER").is_none();
            println!("evaluated\n{{\"ppl_lossless\":11.5,\"ppl_quantized\":11.7,\"bits_per_value\":4.1875,\"bytes_per_rank\":1000,\"bytes_per_rank_bf16\":3820,\"ranks_bit_identical\":{same}}}");
        }
        "launch" => {
            let split = arguments.iter().position(|argument| argument == "--").unwrap();
            let error = Command::new(&arguments[split + 1]).args(&arguments[split + 2..]).exec();
            panic!("cannot start the server: {error}");
        }
        other => panic!("no command {other}"),
    }
}
