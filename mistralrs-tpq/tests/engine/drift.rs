//! Drift while serving: calibrated on one kind of text, fed another, over two ranks in real processes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use serde_json::Value;

use crate::common::process::{succeed, tpq, Process, SERVER};
use crate::common::{model, ports::free_ports, turn, within};
use crate::recovery::{process_of, wait_for_health};
use crate::runs::{request, Server, COMPLETIONS, LIMIT};

const COMMON: [&str; 7] = ["-n", "2", "--dtype", "f32", "--cpu", "--json", "--model"];
const GROUP: &str = "{connect_timeout_s: 60, timeout_s: 20}";
/// Of a prompt: some 50 tokens.
const BYTES: usize = 150;
const PROMPT: &str = "fn main() {\n    let ";

/// The domain that is served. Ranges are calibrated on tables of numbers.
const AWAY: [&str; 3] = ["src/codec/scalar.rs", "src/exchange/mod.rs", "src/manifest/mod.rs"];
/// The same, held out.
const UNSEEN: [&str; 2] = ["tests/config.rs", "tests/wire.rs"];

#[test]
fn a_new_domain_is_reported_within_200_tokens_relearned_without_a_lost_request_and_forgotten_when_a_rank_comes_back() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [home, away] = [("home", numbers(folder)), ("away", text(folder, "away", &AWAY))].map(|(name, text)| {
        let manifest = calibrate(folder, name, &text);
        (manifest, std::fs::read_to_string(text).unwrap())
    });
    let learned = folder.join("learned");
    let recalibrate = format!(
        "policy: recalibrate, learn_tokens: 1024, write_manifest: {}",
        learned.display()
    );
    let server = serve(folder, &home.0, &recalibrate);
    let before = server.complete(PROMPT, 16);

    for prompt in prompts(&home.1).take(8) {
        server.complete(prompt, 8);
    }
    assert_eq!(
        metric(&server, "tpq_drift_detected_total{layers=\"*\"}"),
        0.0,
        "the calibrated domain"
    );
    let (mut tokens, mut reported) = (0, None);
    for prompt in prompts(&away.1) {
        tokens += fed(&server, prompt);
        if reported.is_none() && metric(&server, "tpq_drift_detected_total{layers=\"*\"}") > 0.0 {
            reported = Some(tokens);
            break;
        }
    }
    let reported = reported.unwrap_or_else(|| server.process.fail("no drift was reported"));
    println!("reported {reported} tokens after the shift");
    assert!(reported <= 200, "{reported} tokens");

    // A client that is being answered when the ranks switch loses nothing.
    let switches = || metric(&server, "tpq_drift_switches_total{layers=\"*\"}");
    std::thread::scope(|scope| {
        let long = scope.spawn(|| stream(&server, 600));
        for prompt in prompts(&away.1).cycle().take(100) {
            server.complete(prompt, 4);
            if switches() > 0.0 {
                break;
            }
        }
        assert_eq!(long.join().unwrap().last().map(String::as_str), Some("[DONE]"));
    });
    assert_eq!(switches(), 1.0);
    assert!(
        metric(&server, "tpq_sums_compared_total") > 100.0,
        "sums of both ranks were compared"
    );
    assert!(within(LIMIT, || learned.join("manifest.yaml").is_file()));
    compare(folder, &home.0, &away.0, &learned);

    // All ranks go back to the manifest together.
    kill(process_of(&server, 1), Signal::SIGKILL).unwrap();
    within(Duration::from_secs(20), || {
        server.http.get("/health").is_ok_and(|health| health.status != 200)
    });
    wait_for_health(&server);
    assert_eq!(server.complete(PROMPT, 16), before);
    let log = server.process.stdout() + &server.process.stderr();
    assert_eq!(log.matches("partial sums are not as calibrated").count(), 1, "{log}");
    assert!(!log.contains("panicked at"), "{log}");
}

#[test]
fn under_fallback_a_new_domain_goes_with_dynamic_until_the_calibrated_one_is_back() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [home, away] = [numbers(folder), text(folder, "away", &AWAY)];
    let manifest = calibrate(folder, "home", &home);
    let server = serve(folder, &manifest, "policy: fallback");
    server.complete(PROMPT, 1);
    let calibrated = with_bits(&server);
    let feed_until = |text: &Path, phase: &str| {
        let (text, mut tokens) = (std::fs::read_to_string(text).unwrap(), 0);
        let there = |_: &u64| metric(&server, &format!("tpq_drift_phase{{layers=\"*\",phase=\"{phase}\"}}")) == 1.0;
        let reached = prompts(&text).take(100).find_map(|prompt| {
            tokens += fed(&server, prompt);
            Some(tokens).filter(there)
        });
        reached.unwrap_or_else(|| server.process.fail(&format!("not {phase} after {tokens} tokens")))
    };
    let fell_back = feed_until(&away, "fallback");
    let meanwhile = with_bits(&server);
    let recovered = feed_until(&home, "calm");
    println!("fell back after {fell_back} tokens, back after {recovered}; {calibrated:?}, meanwhile {meanwhile:?}");
    assert!(fell_back <= 300, "{fell_back} tokens");
    let back = with_bits(&server);
    for (bits, expected) in [(calibrated.1, 4.19), (meanwhile.1, 4.5), (back.1, 4.19)] {
        assert!((bits - expected).abs() < 0.05, "{bits} bits, expected {expected}");
    }
    assert_eq!(back.0, calibrated.0);
    assert_eq!(metric(&server, "tpq_drift_switches_total{layers=\"*\"}"), 0.0);
    let log = server.process.stdout() + &server.process.stderr();
    assert!(!log.contains("panicked at"), "{log}");
}

/// Divergence from lossless logits on held-out text, with the ranges of each.
fn compare(folder: &Path, stale: &Path, fresh: &Path, learned: &Path) {
    let config = |name: &str, manifest: PathBuf| model::config(folder, name, &rd(&manifest), GROUP);
    let mut eval = tpq();
    eval.arg("eval").args(COMMON).arg(model::demo());
    eval.args(["--max-tokens", "2048", "--text"])
        .arg(text(folder, "unseen", &UNSEEN));
    eval.arg("--config")
        .arg(config("fresh", fresh.to_owned()))
        .arg("--also");
    eval.arg(config("learned", learned.join("manifest.yaml")));
    eval.arg(config("stale", stale.to_owned()));
    let finished = succeed(eval, LIMIT);
    let rows = finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let kl: Vec<f64> = rows.map(|row| row["kl"].as_f64().unwrap()).collect();
    let [fresh, learned, stale] = kl[..] else {
        panic!("{}", finished.stdout)
    };
    println!("KL: fresh {fresh:.5}, learned while serving {learned:.5}, before {stale:.5}");
    assert!(learned <= 1.5 * fresh, "learned {learned}, fresh {fresh}");
    assert!(
        stale > 1.5 * fresh,
        "there was nothing to mend: before {stale}, fresh {fresh}"
    );
}

fn calibrate(folder: &Path, name: &str, text: &Path) -> PathBuf {
    let out = folder.join(format!("manifest-{name}"));
    let mut command = tpq();
    command.arg("calibrate").args(COMMON).arg(model::demo());
    command
        .args(["--sequences", "32", "--tokens", "128", "--corpus"])
        .arg(text);
    command.arg("--out").arg(&out);
    succeed(command, LIMIT);
    out.join("manifest.yaml")
}

fn serve(folder: &Path, manifest: &Path, drift: &str) -> Server {
    let config = model::config(folder, "serve", &rd(manifest), GROUP);
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}drift: {{{drift}}}\n")).unwrap();
    let port = free_ports(1)[0];
    let mut command = tpq();
    command
        .args(["launch", "--restart=5", "-n", "2", "--", SERVER, "--tpq-config"])
        .arg(&config);
    command
        .args(["--port", &port.to_string(), "--cpu", "plain", "-m"])
        .arg(model::demo())
        .args(["-d", "f32"]);
    Server::ready(Process::start(command, LIMIT * 2), port)
}

fn rd(manifest: &Path) -> String {
    format!("{{kind: rd, manifest: {}}}", manifest.display())
}

/// Lines of twelve numbers below 10,000.
fn numbers(folder: &Path) -> PathBuf {
    let mut state = 1u32;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % 10_000
    };
    let line = |_| (0..12).map(|_| number().to_string()).collect::<Vec<_>>().join(",") + "\n";
    let path = folder.join("numbers.csv");
    std::fs::write(&path, (0..1500).map(line).collect::<String>()).unwrap();
    path
}

/// Files of this repository, one after another.
fn text(folder: &Path, name: &str, files: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = folder.join(format!("{name}.txt"));
    let read = |file: &&str| std::fs::read_to_string(root.join(file)).unwrap();
    std::fs::write(&path, files.iter().map(read).collect::<String>()).unwrap();
    path
}

fn prompts(text: &str) -> impl Iterator<Item = &str> + Clone {
    let starts = (0..text.len() - BYTES).step_by(BYTES);
    starts.filter_map(|start| text.get(start..start + BYTES))
}

/// Tokens of the prompt and the answer.
fn fed(server: &Server, prompt: &str) -> u64 {
    let response = server.http.post(COMPLETIONS, &request(prompt, 4)).unwrap();
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()["usage"]["total_tokens"].as_u64().unwrap()
}

fn stream(server: &Server, tokens: usize) -> Vec<String> {
    let mut body = request(PROMPT, tokens);
    body["stream"] = true.into();
    let events = server.http.stream(COMPLETIONS, &body).unwrap();
    assert_eq!(events.status, 200);
    events.map(Result::unwrap).collect()
}

/// An answer, and the payload bits a value of its exchanges.
fn with_bits(server: &Server) -> (String, f64) {
    let bits_and_values = || {
        let of = |name: &str| metric(server, &format!("{name}{{codec=\"configured\"}}"));
        let values = of("tpq_exchange_values_total");
        [of("tpq_effective_bits") * values, values]
    };
    let before = bits_and_values();
    let text = server.complete(PROMPT, 16);
    let after = bits_and_values();
    (text, (after[0] - before[0]) / (after[1] - before[1]))
}

fn metric(server: &Server, name: &str) -> f64 {
    let page = server.http.get("/metrics").unwrap().body;
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {page}"))
        .trim()
        .parse()
        .unwrap()
}
