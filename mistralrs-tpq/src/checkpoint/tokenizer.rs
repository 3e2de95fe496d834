//! `tokenizer.json` and `tokenizer_config.json`: a byte-level one made here, or a copy.
//!
//! The made one has a token for each byte and no merges, so it takes any text, one token a byte. The rest of the vocabulary
//! is filled with tokens that no text produces: a random model does emit them, and the engine must find a name for each.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::spec::CheckpointSpec;
use super::CheckpointError;

pub(super) const BOS_ID: u32 = 0;
pub(super) const EOS_ID: u32 = 1;
const BOS: &str = "<s>";
const EOS: &str = "</s>";
/// The special tokens and a token a byte.
pub(super) const GENERATED_TOKENS: usize = 2 + 256;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Names and contents of the tokenizer's files.
///
/// # Errors
/// A tokenizer to copy that cannot be read, or that has tokens beyond the model's vocabulary.
pub(super) fn files(spec: &CheckpointSpec) -> Result<Vec<(&'static str, Vec<u8>)>, CheckpointError> {
    match &spec.tokenizer {
        Some(path) => copy(path, spec.vocab),
        None => Ok(vec![
            (TOKENIZER, generate(spec.vocab).into_bytes()),
            (TOKENIZER_CONFIG, CONFIG.as_bytes().to_vec()),
        ]),
    }
}

fn copy(path: &Path, vocab: usize) -> Result<Vec<(&'static str, Vec<u8>)>, CheckpointError> {
    let bytes = std::fs::read(path).map_err(CheckpointError::io("cannot read the tokenizer", path))?;
    check(&bytes, vocab).map_err(|reason| CheckpointError::Tokenizer {
        path: path.to_owned(),
        reason,
    })?;
    let mut files = vec![(TOKENIZER, bytes)];
    let config = path.with_file_name(TOKENIZER_CONFIG);
    match std::fs::read(&config) {
        Ok(bytes) => files.push((TOKENIZER_CONFIG, bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(CheckpointError::io("cannot read", config)(error)),
    }
    Ok(files)
}

/// What the engine's loader unwraps, and that the model can embed every token.
fn check(bytes: &[u8], vocab: usize) -> Result<(), String> {
    let tokenizer: Value = serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
    let added = tokenizer["added_tokens"]
        .as_array()
        .ok_or("it has no list `added_tokens`")?;
    let model = tokenizer["model"]["vocab"]
        .as_object()
        .ok_or("its `model.vocab` is not a map from token to id: the engine reads BPE and WordPiece")?;
    let ids = model.values().chain(added.iter().map(|token| &token["id"]));
    for id in ids {
        let id = id.as_u64().ok_or_else(|| format!("it has a token with the id {id}"))?;
        if id >= vocab as u64 {
            return Err(format!(
                "it has a token with the id {id}, expected ids below the model's `vocab_size`, {vocab}"
            ));
        }
    }
    Ok(())
}

fn generate(vocab: usize) -> String {
    let mut tokens = BTreeMap::from([(BOS.to_owned(), BOS_ID), (EOS.to_owned(), EOS_ID)]);
    for letter in byte_letters() {
        tokens.insert(letter.to_string(), tokens.len() as u32);
    }
    for unused in 0..vocab.saturating_sub(GENERATED_TOKENS) {
        tokens.insert(format!("<unused{unused}>"), tokens.len() as u32);
    }
    let tokens =
        serde_json::to_string_pretty(&tokens).unwrap_or_else(|_| unreachable!("strings and numbers serialize"));
    format!("{HEAD}{tokens}{TAIL}")
}

/// GPT-2's printable stand-in for each byte: printable Latin-1 stands for itself, the rest is moved to 256 and up.
fn byte_letters() -> impl Iterator<Item = char> {
    let mut moved = 0;
    (0..=255u8).map(move |byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            moved += 1;
            // 256..=323 are letters of Latin Extended-A.
            char::from_u32(255 + moved).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    })
}

const HEAD: &str = r#"{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": [
    {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
  ],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "post_processor": null,
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  "model": {
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": false,
    "vocab": "#;

const TAIL: &str = r#",
    "merges": []
  }
}
"#;

const CONFIG: &str = r#"{
  "bos_token": "<s>",
  "eos_token": "</s>",
  "add_bos_token": false,
  "tokenizer_class": "PreTrainedTokenizerFast",
  "chat_template": "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
}
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn parsed(vocab: usize) -> Value {
        serde_json::from_str(&generate(vocab)).unwrap()
    }

    #[test]
    fn every_id_below_the_vocabulary_has_exactly_one_token() {
        for vocab in [GENERATED_TOKENS, 320, 2000] {
            let tokenizer = parsed(vocab);
            let tokens = tokenizer["model"]["vocab"].as_object().unwrap();
            let ids: BTreeSet<u64> = tokens.values().map(|id| id.as_u64().unwrap()).collect();
            assert_eq!(ids, (0..vocab as u64).collect());
            assert_eq!(tokens.len(), vocab);
            check(generate(vocab).as_bytes(), vocab).unwrap();
        }
    }

    #[test]
    fn bytes_have_the_letters_of_gpt2() {
        let letters: Vec<char> = byte_letters().collect();
        assert_eq!(letters[usize::from(b'A')], 'A');
        assert_eq!(letters[usize::from(b' ')], '\u{120}');
        assert_eq!(letters[usize::from(b'\n')], '\u{10a}');
        assert_eq!(letters[0], '\u{100}');
        assert_eq!(letters[255], '\u{ff}');
        assert_eq!(letters[0xad], '\u{143}');
        assert_eq!(letters.iter().collect::<BTreeSet<_>>().len(), 256);
    }

    /// The demo model's tokenizer is one that the engine loads.
    #[test]
    fn apart_from_its_tokens_the_made_tokenizer_is_the_demo_models() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo-model/tokenizer.json");
        let mut demo: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut made = parsed(320);
        let bytes = |tokenizer: &Value| -> BTreeSet<String> {
            let tokens = tokenizer["model"]["vocab"].as_object().unwrap();
            tokens
                .keys()
                .filter(|token| token.chars().count() == 1)
                .cloned()
                .collect()
        };
        assert!(bytes(&demo).is_subset(&bytes(&made)) && bytes(&made).len() == 256);
        for tokenizer in [&mut demo, &mut made] {
            tokenizer["model"]["vocab"] = Value::Null;
            tokenizer["model"]["merges"] = Value::Null;
        }
        assert_eq!(made, demo);
    }

    #[test]
    fn a_tokenizer_to_copy_is_checked_against_the_vocabulary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.json");
        std::fs::write(&path, generate(400)).unwrap();
        let spec = |vocab| CheckpointSpec {
            vocab,
            tokenizer: Some(path.clone()),
            ..CheckpointSpec::preset("tiny-llama").unwrap()
        };
        let copied = files(&spec(400)).unwrap();
        assert_eq!(copied.len(), 1);
        assert_eq!(
            (copied[0].0, copied[0].1.clone()),
            (TOKENIZER, generate(400).into_bytes())
        );
        std::fs::write(dir.path().join(TOKENIZER_CONFIG), CONFIG).unwrap();
        assert_eq!(files(&spec(400)).unwrap().len(), 2);

        let message = files(&spec(399)).unwrap_err().to_string();
        assert!(
            message.contains("the id 399") && message.contains("other.json"),
            "{message}"
        );
        std::fs::write(&path, "[]").unwrap();
        assert!(files(&spec(400)).unwrap_err().to_string().contains("added_tokens"));
        std::fs::remove_file(&path).unwrap();
        assert!(!files(&spec(400)).unwrap_err().is_usage());
    }
}
