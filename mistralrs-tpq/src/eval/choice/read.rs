//! Rows of a data set's file, as Hugging Face publishes it: JSON lines or parquet.

use std::path::Path;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use super::{parquet, Item, Task};

/// The first `limit` items of `path`, told apart by their content and not by the file's name.
///
/// # Errors
/// A file that cannot be read, or a row that is not the task's; file and row are named.
pub fn read(task: Task, path: &Path, limit: usize) -> Result<Vec<Item>> {
    let file = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let rows = match file.starts_with(parquet::MAGIC) {
        true => parquet::rows(&file, limit).map_err(Into::into),
        false => json_rows(&file, limit),
    };
    let rows = rows.with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!rows.is_empty(), "{} has no rows", path.display());
    let item = |(number, row): (usize, &Value)| {
        task.item(row)
            .with_context(|| format!("{}, row {} as {}", path.display(), number + 1, task.name()))
    };
    rows.iter().enumerate().map(item).collect()
}

fn json_rows(file: &[u8], limit: usize) -> Result<Vec<Value>> {
    let text = std::str::from_utf8(file).context("neither parquet nor text")?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .take(limit)
        .map(|(number, line)| serde_json::from_str(line).with_context(|| format!("line {}: not JSON", number + 1)))
        .collect()
}
