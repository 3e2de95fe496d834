//! What an evaluation has finished, so that an interrupted one goes on where it was: a line for each text or task, with the key of everything that decides its rows.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Without a file nothing is kept.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<File>,
    done: HashMap<String, Vec<Value>>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    rows: Vec<Value>,
}

impl Journal {
    /// Reads `path`, if it is there, and adds to it from now on. A line that is cut off, as by a kill, counts as not written.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn open(path: &Path) -> Result<Self> {
        let context = || format!("cannot use {} (--resume)", path.display());
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.with_context(context)?,
        };
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let done = lines.map(|line| (line.key, line.rows)).collect();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(context)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").with_context(context)?;
        }
        Ok(Self { file: Some(file), done })
    }

    /// The rows of `key`, or those that `run` finds, which are then kept.
    ///
    /// # Errors
    /// Of `run`, and a file that cannot be written.
    pub fn rows<T: Serialize + DeserializeOwned>(
        &mut self,
        key: &str,
        run: impl FnOnce() -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        if let Some(rows) = self.done.get(key) {
            let read = rows
                .iter()
                .cloned()
                .map(serde_json::from_value)
                .collect::<Result<Vec<T>, _>>();
            // Rows of another version have other fields: run again.
            if let Ok(rows) = read {
                return Ok(rows);
            }
        }
        let rows = run()?;
        if let Some(file) = &mut self.file {
            let line = Line {
                key: key.to_owned(),
                rows: rows.iter().map(serde_json::to_value).collect::<Result<_, _>>()?,
            };
            let written = file.write_all((serde_json::to_string(&line)? + "\n").as_bytes());
            written
                .and_then(|()| file.sync_data())
                .context("cannot write the file of --resume")?;
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn finished_rows_come_from_the_file_and_a_line_that_was_cut_off_runs_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let never = || -> Result<Vec<f64>> { bail!("ran again") };
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.rows("a", || Ok(vec![0.1, 2.0])).unwrap(), [0.1, 2.0]);
        assert!(journal.rows("b", never).is_err());
        assert_eq!(journal.rows("c", || Ok(vec![3.0])).unwrap(), [3.0]);
        drop(journal);

        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 4]).unwrap();
        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.rows("a", never).unwrap(), [0.1, 2.0]);
        assert_eq!(journal.rows("c", || Ok(vec![4.0])).unwrap(), [4.0]);
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().rows("c", never).unwrap(), [4.0]);
        // Another type than what was written: not an error, and not a guess.
        let other = Journal::open(&path).unwrap().rows("a", || Ok(vec!["x".to_owned()]));
        assert_eq!(other.unwrap(), ["x"]);
    }
}
