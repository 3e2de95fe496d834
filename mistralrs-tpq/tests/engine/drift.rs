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
/// Of a prompt: some 20 tokens. Windows of 64 tokens are closed between steps, so a shift is reported after at most 128 tokens and three
/// prompts.
const BYTES: usize = 60;
const PROMPT: &str = "The license of ";
/// Of the text that is served after the shift; what follows is held out.
const SERVED: usize = 6500;

/// The domain that ranges are calibrated on: a table of numbers, of which ranges for prose triple the divergence.
fn home() -> String {
    (0..2000u64)
        .map(|i| format!("{i} | {} | {}\n", i * i, i * i * i))
        .collect()
}

/// The one that is served, and more of it. Nobody edits this text, so that the figures stay what they are.
fn away() -> (String, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../LICENSE-APACHE");
    let mut served = std::fs::read_to_string(path).unwrap();
    let unseen = served.split_off(SERVED);
    (served, unseen)
}

#[test]
fn a_new_domain_is_reported_within_200_tokens_relearned_without_a_lost_request_and_forgotten_when_a_rank_comes_back() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (home, (away, unseen)) = (home(), away());
    let [stale, fresh] = [("home", &home), ("away", &away)].map(|(name, text)| calibrate(folder, name, text));
    let learned = folder.join("learned");
    let server = serve(folder, &stale, &learned);
    let before = server.complete(PROMPT, 16);

    for prompt in prompts(&home).take(16) {
        server.complete(prompt, 8);
    }
    assert_eq!(
        metric(&server, "tpq_drift_detected_total{layers=\"*\"}"),
        0.0,
        "the calibrated domain"
    );
    let (mut tokens, mut reported) = (0, None);
    for prompt in prompts(&away) {
        tokens += fed(&server, prompt);
        if reported.is_none() && metric(&server, "tpq_drift_detected_total{layers=\"*\"}") > 0.0 {
            reported = Some(tokens);
            break;
        }
    }
    let reported = reported.unwrap_or_else(|| server.process.fail("no drift was reported"));
    println!("reported {reported} tokens after the shift");
    assert!(reported <= 200, "{reported} tokens");

    // A client that is being answered when the ranks switch loses nothing, nor does another.
    let switches = || metric(&server, "tpq_drift_switches_total{layers=\"*\"}");
    std::thread::scope(|scope| {
        let long = scope.spawn(|| stream(&server, 600));
        for prompt in prompts(&away).cycle().take(100) {
            server.complete(prompt, 4);
            if switches() > 0.0 {
                assert!(!long.is_finished(), "the long answer was over before the switch");
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
    compare(
        folder,
        &write(folder, "unseen", &unseen),
        [fresh, learned.join("manifest.yaml"), stale],
    );

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

/// Divergence from lossless logits on held-out text with the ranges of the new domain, those learned while serving, and the old.
fn compare(folder: &Path, text: &Path, [fresh, learned, stale]: [PathBuf; 3]) {
    let config = |name: &str, manifest: &Path| model::config(folder, name, &rd(manifest), GROUP);
    let mut eval = tpq();
    eval.arg("eval").args(COMMON).arg(model::demo());
    eval.args(["--max-tokens", "1024", "--text"]).arg(text);
    eval.arg("--config").arg(config("fresh", &fresh)).arg("--also");
    eval.arg(config("learned", &learned)).arg(config("stale", &stale));
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
        stale > 2.0 * fresh,
        "there was nothing to mend: before {stale}, fresh {fresh}"
    );
}

fn calibrate(folder: &Path, name: &str, text: &str) -> PathBuf {
    let out = folder.join(format!("manifest-{name}"));
    let mut command = tpq();
    command.arg("calibrate").args(COMMON).arg(model::demo());
    command
        .args(["--sequences", "15", "--tokens", "128", "--corpus"])
        .arg(write(folder, name, text));
    command.arg("--out").arg(&out);
    succeed(command, LIMIT);
    out.join("manifest.yaml")
}

fn serve(folder: &Path, manifest: &Path, learned: &Path) -> Server {
    let config = model::config(folder, "serve", &rd(manifest), GROUP);
    let drift = format!(
        "drift: {{policy: recalibrate, learn_tokens: 1024, write_manifest: {}}}\n",
        learned.display()
    );
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + &drift).unwrap();
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

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(format!("{name}.txt"));
    std::fs::write(&path, text).unwrap();
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

fn metric(server: &Server, name: &str) -> f64 {
    let page = server.http.get("/metrics").unwrap().body;
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {page}"))
        .trim()
        .parse()
        .unwrap()
}
