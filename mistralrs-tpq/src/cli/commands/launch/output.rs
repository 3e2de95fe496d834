//! Output of the ranks, line by line.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::Sender;
use std::thread;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `[rank i] line`
    Text,
    /// `{"rank":i,"stream":"stdout","line":"..."}`
    Json,
    /// `line`
    Bare,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// Longer lines are printed in pieces of this size, so that a rank that never ends its line cannot fill the memory.
const LONGEST_LINE: u64 = 1 << 20;

/// Copies lines from a rank's pipe to the stream of the same kind, until the last process holding the pipe closes it.
/// `done` is told then.
///
/// Keeps reading when our own stream is closed: a rank blocked on a full pipe would look like a hung peer.
pub(super) fn forward(rank: usize, pipe: impl Read + Send + 'static, stream: Stream, format: Format, done: Sender<()>) {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match pipe.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => write(stream, &render(rank, stream, format, &line)),
            }
        }
        let _ = done.send(());
    });
}

fn render(rank: usize, stream: Stream, format: Format, line: &[u8]) -> Vec<u8> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    match format {
        Format::Text => [format!("[rank {rank}] ").as_bytes(), line, b"\n"].concat(),
        Format::Bare => [line, b"\n"].concat(),
        Format::Json => {
            let name = match stream {
                Stream::Stdout => "stdout",
                Stream::Stderr => "stderr",
            };
            let line = String::from_utf8_lossy(line);
            format!(
                "{}\n",
                serde_json::json!({ "rank": rank, "stream": name, "line": line })
            )
            .into_bytes()
        }
    }
}

/// One write of one line under one lock: lines of different ranks never mix.
fn write(stream: Stream, line: &[u8]) {
    let _ = match stream {
        Stream::Stdout => {
            let mut out = std::io::stdout().lock();
            out.write_all(line).and_then(|()| out.flush())
        }
        Stream::Stderr => std::io::stderr().lock().write_all(line),
    };
}

/// What `tpq` itself has to say, on stderr.
pub(super) fn note(format: Format, event: &str, rank: Option<usize>, text: &str) {
    let line = match format {
        Format::Text | Format::Bare => format!("tpq: {text}\n"),
        Format::Json => format!(
            "{}\n",
            serde_json::json!({ "event": event, "rank": rank, "message": text })
        ),
    };
    write(Stream::Stderr, line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_get_their_prefix_and_a_missing_newline() {
        assert_eq!(render(3, Stream::Stdout, Format::Text, b"a\n"), b"[rank 3] a\n");
        assert_eq!(render(3, Stream::Stderr, Format::Text, b"\xff"), b"[rank 3] \xff\n");
        let json = render(1, Stream::Stderr, Format::Json, b"say \"hi\"\n");
        // Compared as values: the order of keys depends on a feature of serde_json that the engine turns on.
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(
            value,
            serde_json::json!({ "rank": 1, "stream": "stderr", "line": "say \"hi\"" })
        );
        assert!(json.ends_with(b"}\n"));
    }
}
