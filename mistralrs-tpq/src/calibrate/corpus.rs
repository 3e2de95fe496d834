//! Text files in, token sequences out: the same for the same files, settings and seed.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use rand::seq::index;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

use crate::manifest::Digest;

/// Calibration text of one or more files.
#[derive(Debug)]
pub struct Corpus {
    texts: Vec<String>,
    pub digest: Digest,
}

impl Corpus {
    /// Reads plain text, Markdown, source or WikiText as one text a file; `.jsonl` as one text a line, in its `text` field.
    ///
    /// # Errors
    /// An unreadable file, a line of JSON without `text`; file and line are named.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        ensure!(
            !paths.is_empty(),
            "no calibration text: name at least one file with --corpus"
        );
        let mut digest = Sha256::new();
        let mut texts = Vec::new();
        for path in paths {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the corpus {} (--corpus)", path.display()))?;
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text.as_bytes());
            match path.extension().is_some_and(|extension| extension == "jsonl") {
                true => texts.push(json_lines(path, &text)?),
                false => texts.push(text),
            }
        }
        Ok(Self {
            texts,
            digest: Digest(digest.finalize().into()),
        })
    }

    /// Cuts the tokens of each text into windows of `tokens` and draws `sequences` of them, without repetition: as many from each text as from
    /// the others, as far as it has them, so that a domain counts by its name and not by its size. They come in turn, each text's in its own order: a moving
    /// average remembers the last sequences best, and those must not all be of one domain.
    ///
    /// # Errors
    /// A corpus too short, with the number of sequences it has.
    pub fn sequences(
        &self,
        tokenize: impl Fn(&str) -> Result<Vec<u32>>,
        sequences: usize,
        tokens: usize,
        seed: u64,
    ) -> Result<Vec<Vec<u32>>> {
        let ids = self
            .texts
            .iter()
            .map(|text| tokenize(text))
            .collect::<Result<Vec<_>>>()?;
        let windows: Vec<Vec<&[u32]>> = ids.iter().map(|ids| ids.chunks_exact(tokens).collect()).collect();
        let counts: Vec<usize> = windows.iter().map(Vec::len).collect();
        let have: usize = counts.iter().sum();
        ensure!(
            have >= sequences,
            "the corpus is too short: it has {} tokens, which make {have} sequences of {tokens}, expected {sequences}. \
             Add text (--corpus), or ask for less (--sequences, --tokens)",
            ids.iter().map(Vec::len).sum::<usize>(),
        );
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut drawn = Vec::with_capacity(sequences);
        for (text, (windows, share)) in windows.iter().zip(shares(&counts, sequences)).enumerate() {
            let mut places = index::sample(&mut random, windows.len(), share).into_vec();
            places.sort_unstable();
            // Half-way points spread each text's evenly over the whole run. Whole numbers, as all sort alike.
            let turn = |i: usize| (2 * i + 1) * sequences / (2 * share);
            drawn.extend(
                places
                    .into_iter()
                    .enumerate()
                    .map(|(i, at)| (turn(i), text, windows[at])),
            );
        }
        drawn.sort_by_key(|(turn, text, _)| (*turn, *text));
        Ok(drawn.into_iter().map(|(_, _, window)| window.to_vec()).collect())
    }
}

/// `total` dealt out evenly to texts that can take `counts`, which can take all of it together.
fn shares(counts: &[usize], total: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|text| counts[*text]);
    let mut shares = vec![0; counts.len()];
    let mut left = total;
    // The shortest first: what it cannot take, the longer ones share.
    for (served, &text) in order.iter().enumerate() {
        shares[text] = counts[text].min(left / (counts.len() - served));
        left -= shares[text];
    }
    shares
}

fn json_lines(path: &Path, text: &str) -> Result<String> {
    let mut joined = String::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("{}, line {}: not JSON", path.display(), number + 1))?;
        let text = value["text"].as_str().with_context(|| {
            format!(
                "{}, line {}: expected an object with a `text` of type string",
                path.display(),
                number + 1
            )
        })?;
        joined.push_str(text);
        joined.push('\n');
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token a byte.
    fn bytes(text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn corpus(name: &str, text: &str) -> Result<Corpus> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        Corpus::read(&[path])
    }

    #[test]
    fn the_same_seed_draws_the_same_windows_and_another_seed_others() {
        let corpus = corpus("a.txt", &"abcdefghij".repeat(40)).unwrap();
        let draw = |seed| corpus.sequences(bytes, 5, 7, seed).unwrap();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).iter().all(|sequence| sequence.len() == 7));
    }

    #[test]
    fn domains_take_turns_and_the_short_one_gives_all_it_has() {
        assert_eq!(shares(&[100, 3, 50], 63), [30, 3, 30]);
        assert_eq!(shares(&[5, 5], 7), [3, 4]);
        let dir = tempfile::tempdir().unwrap();
        let paths = [("a", "a".repeat(400)), ("b", "b".repeat(4000))].map(|(name, text)| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        });
        let drawn = Corpus::read(&paths).unwrap().sequences(bytes, 8, 10, 0).unwrap();
        let domains: String = drawn.iter().map(|window| char::from(window[0] as u8)).collect();
        assert_eq!(domains, "abababab");
    }

    #[test]
    fn a_corpus_too_short_says_how_much_it_has_and_which_flags_help() {
        let error = corpus("a.txt", "twelve bytes")
            .unwrap()
            .sequences(bytes, 4, 5, 0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("12 tokens") && error.contains("2 sequences of 5"),
            "{error}"
        );
        assert!(error.contains("expected 4") && error.contains("--sequences"), "{error}");
    }

    #[test]
    fn json_lines_without_text_name_file_and_line() {
        let error = corpus("a.jsonl", "{\"text\":\"x\"}\n\n{\"txt\":\"y\"}\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("a.jsonl, line 3") && error.contains("`text`"), "{error}");
        assert_eq!(
            corpus("a.jsonl", "{\"text\":\"x\"}\n{\"text\":\"y\"}\n").unwrap().texts,
            ["x\ny\n"]
        );
    }
}
