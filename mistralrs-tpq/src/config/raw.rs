//! The file as written: a tree of sections, where each section knows its keys and each value its key path and line.
//!
//! serde's derive would give shorter code, but its errors stop at "unknown field, expected one of": no key path, no nearest
//! key, and a line only at the top level. A configuration is read by people, and so are its errors.

use super::error::{nearest, At, ConfigError};
use serde_yaml::{Mapping, Value};
use std::path::Path;

pub(super) struct Document<'a> {
    file: &'a Path,
    content: Content<'a>,
}

enum Content<'a> {
    Text(&'a str),
    /// A table of that name inside a file of another program, which its own reader has parsed. No line is known.
    Table(&'a str, &'a Value),
}

/// One mapping of the file, all of whose keys are known.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    path: Vec<String>,
    entries: Mapping,
}

impl<'a> Document<'a> {
    pub(super) const fn new(file: &'a Path, text: &'a str) -> Self {
        Self {
            file,
            content: Content::Text(text),
        }
    }

    pub(super) const fn table(file: &'a Path, name: &'a str, value: &'a Value) -> Self {
        Self {
            file,
            content: Content::Table(name, value),
        }
    }

    /// The file's top level.
    ///
    /// # Errors
    /// Text that is not YAML, a top level that is not a mapping, a key not in `known`.
    pub(super) fn root(&'a self, known: &[&str]) -> Result<Section<'a>, ConfigError> {
        let (value, path) = match self.content {
            Content::Text(text) => (self.read(text)?, Vec::new()),
            Content::Table(name, value) => (value.clone(), vec![name.to_owned()]),
        };
        let entries = match value {
            Value::Mapping(entries) => entries,
            Value::Null => Mapping::new(),
            other => {
                return Err(ConfigError::Syntax {
                    at: self.at(&[]),
                    message: format!(
                        "the file holds {}, expected keys such as `version: 1`",
                        describe(&other)
                    ),
                })
            }
        };
        Section {
            document: self,
            path,
            entries,
        }
        .check(known)
    }

    fn read(&self, text: &str) -> Result<Value, ConfigError> {
        serde_yaml::from_str(text).map_err(|error| ConfigError::Syntax {
            at: At {
                file: self.file.to_path_buf(),
                line: error.location().map(|location| location.line()),
            },
            message: error.to_string(),
        })
    }

    fn at(&self, path: &[String]) -> At {
        At {
            file: self.file.to_path_buf(),
            line: match self.content {
                Content::Text(text) => line_of(text, path),
                Content::Table(..) => None,
            },
        }
    }
}

impl<'a> Section<'a> {
    fn check(self, known: &[&str]) -> Result<Self, ConfigError> {
        let unknown = self
            .entries
            .keys()
            .map(key_text)
            .find(|key| !known.contains(&key.as_str()));
        match unknown {
            None => Ok(self),
            Some(key) => Err(ConfigError::UnknownKey {
                at: self.at(&key),
                nearest: nearest(&key, known.iter().copied()).map(|near| self.key_path(near)),
                key: self.key_path(&key),
                known: known.iter().map(ToString::to_string).collect(),
            }),
        }
    }

    /// A section inside this one; an absent or empty one reads as a section without entries.
    pub(super) fn section(&self, key: &str, known: &[&str]) -> Result<Self, ConfigError> {
        let entries = match self.get(key) {
            None => Mapping::new(),
            Some(Value::Mapping(entries)) => entries.clone(),
            Some(other) => return Err(self.wrong(key, other, &format!("keys: {}", known.join(", ")))),
        };
        let mut path = self.path.clone();
        path.push(key.to_owned());
        Section {
            document: self.document,
            path,
            entries,
        }
        .check(known)
    }

    /// One mapping of the list `key`, as a section of its own.
    pub(super) fn item(
        &self,
        key: &str,
        index: usize,
        item: &Value,
        known: &[&str],
        expected: &str,
    ) -> Result<Self, ConfigError> {
        let name = format!("{key}[{index}]");
        let Value::Mapping(entries) = item else {
            return Err(self.wrong(&name, item, expected));
        };
        let mut path = self.path.clone();
        path.push(name);
        Section {
            document: self.document,
            path,
            entries: entries.clone(),
        }
        .check(known)
    }

    /// The value of `key`. `key:` with nothing after it counts as absent, as in most YAML files.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn integer(&self, key: &str, min: u64, max: u64) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().filter(|number| (min..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, value, &format!("a whole number from {min} to {max}"))),
        }
    }

    pub(super) fn seconds(&self, key: &str, (min, max): (f64, f64)) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|number| (min..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, value, &format!("seconds from {min} to {max}"))),
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let word = value.as_str().unwrap_or_default();
        if let Some((_, choice)) = words.iter().find(|(name, _)| *name == word) {
            return Ok(Some(*choice));
        }
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let hint =
            nearest(word, names.iter().copied()).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
        Err(self.wrong(key, value, &format!("one of {}{hint}", names.join(", "))))
    }

    pub(super) fn wrong(&self, key: &str, value: &Value, expected: &str) -> ConfigError {
        self.wrong_text(key, &describe(value), expected)
    }

    pub(super) fn wrong_text(&self, key: &str, value: &str, expected: &str) -> ConfigError {
        ConfigError::Value {
            at: self.at(key),
            key: self.key_path(key),
            value: value.to_owned(),
            expected: expected.to_owned(),
        }
    }

    pub(super) fn missing(&self, key: &str, why: &str) -> ConfigError {
        ConfigError::Missing {
            at: self.at(key),
            key: self.key_path(key),
            why: why.to_owned(),
        }
    }

    fn at(&self, key: &str) -> At {
        // `peers[1]` stands on the line of `peers`, as far as the line finder goes.
        let path: Vec<String> = self
            .path
            .iter()
            .map(String::as_str)
            .chain([key])
            .filter_map(|key| key.split('[').next().map(str::to_owned))
            .collect();
        self.document.at(&path)
    }

    fn key_path(&self, key: &str) -> String {
        self.path
            .iter()
            .map(String::as_str)
            .chain([key])
            .collect::<Vec<_>>()
            .join(".")
    }
}

fn key_text(key: &Value) -> String {
    match key {
        Value::String(text) => text.clone(),
        other => describe(other),
    }
}

/// A value as it may stand in a message: short, on one line.
pub(super) fn describe(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = match value {
        Value::Null => "empty".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("`{}`", text.escape_debug()),
        Value::Sequence(items) => format!("a list of {}", items.len()),
        Value::Mapping(entries) => format!("a mapping of {} keys", entries.len()),
        Value::Tagged(tagged) => format!("a value tagged {}", tagged.tag),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The line of the key at `path`, or of its nearest ancestor that stands on a line of its own; serde_yaml keeps no
/// positions. Block style only: a key inside `{...}` gets the line of the section it is in.
fn line_of(text: &str, path: &[String]) -> Option<usize> {
    let mut found = None;
    let mut lines = text.lines().enumerate();
    let mut parent_indent: Option<usize> = None;
    for key in path {
        let mut child_indent = None;
        let mut hit = None;
        for (index, line) in lines.by_ref() {
            let body = line.trim_start();
            if body.is_empty() || body.starts_with('#') || body.starts_with("---") {
                continue;
            }
            let indent = line.len() - body.len();
            if parent_indent.is_some_and(|parent| indent <= parent) {
                break;
            }
            if indent == *child_indent.get_or_insert(indent) && starts_with_key(body, key) {
                hit = Some((index + 1, indent));
                break;
            }
        }
        match hit {
            None => break,
            Some((line, indent)) => {
                found = Some(line);
                parent_indent = Some(indent);
            }
        }
    }
    found
}

fn starts_with_key(body: &str, key: &str) -> bool {
    let unquoted = body.strip_prefix(['"', '\'']).unwrap_or(body);
    unquoted
        .strip_prefix(key)
        .is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, path: &[&str]) -> Option<usize> {
        line_of(text, &path.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn the_line_finder_follows_indentation_and_not_the_first_key_of_that_name() {
        let text = "# rank: no\nversion: 1\ncodec:\n  deep:\n    rank: 3\ngroup:\n\n  peers: [a]\n  \"rank\" : 0\n";
        assert_eq!(line(text, &["version"]), Some(2));
        assert_eq!(line(text, &["group", "rank"]), Some(9));
        assert_eq!(
            line(text, &["codec", "rank"]),
            Some(3),
            "the section's line when the key is absent"
        );
        assert_eq!(line(text, &["rank"]), None);
    }

    #[test]
    fn a_key_inside_braces_gets_the_line_of_its_section() {
        assert_eq!(line("version: 1\ncodec: {kind: x}\n", &["codec", "kind"]), Some(2));
    }

    #[test]
    fn long_values_are_cut_at_a_character_boundary() {
        let text = describe(&Value::String("\u{e9}".repeat(500)));
        assert!(text.chars().count() <= 63, "{text}");
    }
}
