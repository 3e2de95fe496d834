//! What a request may ask for besides text, over two ranks: several choices, log probabilities, grammars, stop strings; and what is
//! refused before another rank has seen it.

use serde_json::{json, Value};

use crate::common::{model, ports::free_ports, turn};
use crate::runs::{request, server_command, Server, COMPLETIONS};

const PROMPT: &str = "fn main() {\n    let ";
const CHAT: &str = "/v1/chat/completions";

/// Requests whose answer does not depend on chance.
fn requests() -> Vec<(&'static str, Value)> {
    let with = |key: &str, value: Value| {
        let mut body = request(PROMPT, 24);
        body[key] = value;
        body
    };
    vec![
        ("two choices", with("n", json!(2))),
        ("log probabilities", with("logprobs", json!(2))),
        ("a stop string", with("stop", json!(["="]))),
        (
            "a regex",
            with("grammar", json!({"type": "regex", "value": "(yes|no) [0-9]{3}"})),
        ),
        (
            "a JSON schema",
            with(
                "grammar",
                json!({"type": "json_schema", "value": {"enum": ["all_reduce", "all_gather"]}}),
            ),
        ),
    ]
}

fn answer(server: &Server, what: &str, body: &Value) -> Value {
    let response = server.http.post(COMPLETIONS, body).unwrap();
    assert_eq!(response.status, 200, "{what}: {}", response.body);
    response.json()
}

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap();
    choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[test]
fn choices_log_probabilities_stop_strings_and_grammars_are_the_same_over_two_ranks_as_alone() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let port = free_ports(1)[0];
    let alone = Server::start(server_command(port, None, &model::demo(), "f32"), port);
    let expected: Vec<Value> = requests()
        .iter()
        .map(|(what, body)| answer(&alone, what, body))
        .collect();
    drop(alone);
    let group = Server::two_ranks(folder.path(), "{kind: none}");
    for ((what, body), expected) in requests().iter().zip(&expected) {
        let got = answer(&group, what, body);
        assert_eq!(texts(&got), texts(expected), "{what}");
        match *what {
            "two choices" => assert_eq!(texts(&got).len(), 2, "{got}"),
            "log probabilities" => assert_log_probabilities(&got, expected),
            "a stop string" => assert!(!texts(&got)[0].contains('='), "{got}"),
            "a regex" => assert!(
                texts(&got)[0].starts_with("yes ") || texts(&got)[0].starts_with("no "),
                "{got}"
            ),
            _ => assert!(
                ["\"all_reduce\"", "\"all_gather\""].contains(&texts(&got)[0].trim()),
                "{got}"
            ),
        }
    }
    // Sampled choices differ from each other, and neither they nor a stream of them that is hung up splits the group.
    let mut sampled = request(PROMPT, 24);
    (sampled["n"], sampled["temperature"]) = (3.into(), 1.0.into());
    let choices = answer(&group, "three sampled choices", &sampled);
    let choices = texts(&choices);
    assert!(
        choices.len() == 3 && (choices[0] != choices[1] || choices[1] != choices[2]),
        "{choices:?}"
    );
    sampled["stream"] = true.into();
    let mut events = group.http.stream(COMPLETIONS, &sampled).unwrap();
    events.next().expect("the stream goes on").unwrap();
    drop(events);
    assert_eq!(
        texts(&answer(&group, "after that", &requests()[0].1)),
        texts(&expected[0])
    );
}

/// The sums of two ranks round differently from one process, so the last digits do too.
fn assert_log_probabilities(got: &Value, expected: &Value) {
    let of = |answer: &Value| -> Vec<f64> {
        let content = answer["choices"][0]["logprobs"]["content"].as_array();
        let content = content.unwrap_or_else(|| panic!("no log probabilities: {answer}"));
        content.iter().map(|token| token["logprob"].as_f64().unwrap()).collect()
    };
    let (got, expected) = (of(got), of(expected));
    assert!(!got.is_empty() && got.len() == expected.len(), "{got:?} {expected:?}");
    let far = got
        .iter()
        .zip(&expected)
        .any(|(x, y)| (x - y).abs() > 1e-3 * y.abs().max(1.0));
    assert!(!far, "{got:?} {expected:?}");
}

#[test]
fn images_and_impossible_requests_are_refused_with_4xx_and_the_group_goes_on() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::two_ranks(folder.path(), "{kind: dynamic}");
    let before = server.complete(PROMPT, 8);
    // One transparent pixel.
    let pixel = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";
    let image = json!({"model": "default", "max_tokens": 4, "messages": [{"role": "user", "content": [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": pixel}},
    ]}]});
    let mut no_choice = request(PROMPT, 8);
    no_choice["n"] = 0.into();
    let mut bad_grammar = request(PROMPT, 8);
    bad_grammar["grammar"] = json!({"type": "regex", "value": "(unclosed"});
    for (what, path, body) in [
        ("an image", CHAT, &image),
        ("no choice", COMPLETIONS, &no_choice),
        ("a grammar that is none", COMPLETIONS, &bad_grammar),
        ("no prompt", COMPLETIONS, &json!({"model": "default"})),
    ] {
        let response = server.http.post(path, body).unwrap();
        assert!(
            (400..500).contains(&response.status),
            "{what}: {} {}",
            response.status,
            response.body
        );
        assert_eq!(server.complete(PROMPT, 8), before, "after {what}");
    }
}
