//! A small HTTP/1.1 client: JSON posts and server-sent events, with a deadline for the whole exchange.
//!
//! Its own rather than a dependency: a test wants to hang up in the middle of a stream, and to fail at a deadline that covers
//! all reads together, which client libraries offer only for each.

use std::io::{self, BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

#[derive(Debug, Clone, Copy)]
pub struct Http {
    pub port: u16,
    /// For one request and its whole response.
    pub limit: Duration,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

impl Response {
    /// # Panics
    /// When the body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON: {error}: {}", self.body))
    }
}

/// A response that is still coming in. Dropped early, it hangs up.
pub struct Events {
    pub status: u16,
    lines: BufReader<Body>,
}

impl Http {
    pub fn get(&self, path: &str) -> io::Result<Response> {
        self.send("GET", path, None)?.collect()
    }

    pub fn post(&self, path: &str, body: &Value) -> io::Result<Response> {
        self.send("POST", path, Some(body))?.collect()
    }

    pub fn stream(&self, path: &str, body: &Value) -> io::Result<Events> {
        self.send("POST", path, Some(body))
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Events> {
        let deadline = Instant::now() + self.limit;
        let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, self.port).into(), self.limit)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all((head + &body).as_bytes())?;
        let mut reader = BufReader::new(Timed { stream, deadline });
        let status_line = line(&mut reader)?;
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| bad(&status_line))?;
        let rest = rest(&mut reader)?;
        Ok(Events {
            status,
            lines: BufReader::new(Body { reader, rest }),
        })
    }
}

impl Events {
    fn collect(mut self) -> io::Result<Response> {
        let mut body = String::new();
        self.lines.read_to_string(&mut body)?;
        Ok(Response {
            status: self.status,
            body,
        })
    }
}

/// The `data` of each event, such as a JSON object or `[DONE]`. Comments, which keep the connection alive, are left out.
impl Iterator for Events {
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut line = String::new();
            match self.lines.read_line(&mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
            if let Some(data) = line.trim_end().strip_prefix("data:") {
                return Some(Ok(data.trim_start().to_owned()));
            }
        }
    }
}

/// Reads fail at the deadline, however the bytes trickle in.
struct Timed {
    stream: TcpStream,
    deadline: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(ErrorKind::TimedOut, "no complete response in time"));
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

/// What of the body is still to come.
enum Rest {
    Length(u64),
    /// Bytes of the current chunk; zero before the first.
    Chunked {
        left: u64,
        ended: bool,
    },
    ToTheEnd,
}

struct Body {
    reader: BufReader<Timed>,
    rest: Rest,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.rest {
            Rest::ToTheEnd => self.reader.read(buffer),
            Rest::Length(left) => limited(&mut self.reader, buffer, left),
            Rest::Chunked { ended: true, .. } => Ok(0),
            Rest::Chunked { left, ended } => {
                if *left == 0 {
                    let size = line(&mut self.reader)?;
                    *left =
                        u64::from_str_radix(size.split(';').next().unwrap_or("").trim(), 16).map_err(|_| bad(&size))?;
                    *ended = *left == 0;
                    if *ended {
                        return Ok(0);
                    }
                }
                let read = limited(&mut self.reader, buffer, left)?;
                if *left == 0 {
                    line(&mut self.reader)?;
                }
                Ok(read)
            }
        }
    }
}

/// Reads at most `left`, all of which must come.
fn limited(reader: &mut impl Read, buffer: &mut [u8], left: &mut u64) -> io::Result<usize> {
    let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    let read = reader.read(&mut buffer[..most])?;
    if read == 0 && most > 0 {
        return Err(Error::new(
            ErrorKind::UnexpectedEof,
            format!("the response ends {left} bytes early"),
        ));
    }
    *left -= read as u64;
    Ok(read)
}

/// Reads the header fields.
fn rest(reader: &mut impl BufRead) -> io::Result<Rest> {
    let mut rest = Rest::ToTheEnd;
    loop {
        let field = line(reader)?.to_ascii_lowercase();
        match field.split_once(':').map(|(name, value)| (name, value.trim())) {
            None if field.is_empty() => return Ok(rest),
            Some(("content-length", value)) => rest = Rest::Length(value.parse().map_err(|_| bad(&field))?),
            Some(("transfer-encoding", "chunked")) => rest = Rest::Chunked { left: 0, ended: false },
            Some(_) => {}
            None => return Err(bad(&field)),
        }
    }
}

/// One line without its end.
fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(Error::new(
            ErrorKind::UnexpectedEof,
            "the connection was closed in the middle of a response",
        ));
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("not HTTP: {what:?}"))
}
