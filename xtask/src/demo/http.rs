//! The little of HTTP the demo needs: is the server up, and a streamed completion.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};
use ureq::Agent;

pub struct Client {
    agent: Agent,
    base: String,
}

/// A streamed reply, put together again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub text: String,
    /// Events that carried a choice: about one a token.
    pub chunks: usize,
    pub finish_reason: Option<String>,
}

impl Client {
    /// `timeout` bounds one whole request, the stream included.
    pub fn new(port: u16, timeout: Duration) -> Self {
        // No proxy: HTTP_PROXY in the environment is not meant for loopback.
        let config = Agent::config_builder()
            .proxy(None)
            .timeout_global(Some(timeout))
            .http_status_as_error(false);
        Self {
            agent: Agent::new_with_config(config.build()),
            base: format!("http://127.0.0.1:{port}"),
        }
    }

    pub fn healthy(&self) -> bool {
        self.agent
            .get(format!("{}/health", self.base))
            .call()
            .is_ok_and(|response| response.status() == 200)
    }

    /// Streams a completion at temperature 0.
    ///
    /// # Errors
    /// No connection, a status other than 200, an error event, or a stream that ends without `[DONE]`.
    pub fn complete(&self, prompt: &str, max_tokens: u32) -> Result<Reply> {
        let body = json!({
            "model": "default", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "stream": true,
        });
        let request = self.agent.post(format!("{}/v1/completions", self.base));
        let request = request.header("content-type", "application/json");
        let mut response = request
            .send(body.to_string())
            .context("the server did not answer the completion")?;
        if response.status() != 200 {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            bail!(
                "the server answered {} to the completion: {}",
                response.status(),
                text.trim()
            );
        }
        Reply::read(response.body_mut().as_reader())
    }
}

impl Reply {
    pub fn read(stream: impl Read) -> Result<Self> {
        let mut reply = Self::default();
        for event in Events::new(BufReader::new(stream)) {
            let event = event.context("the stream broke off")?;
            if event.trim() == "[DONE]" {
                return Ok(reply);
            }
            reply.add(&event)?;
        }
        bail!("the stream ended without [DONE] after {} chunks", reply.chunks)
    }

    /// Text completions carry `text`, chat completions `delta.content`; mistral.rs sends an error as bare text.
    fn add(&mut self, event: &str) -> Result<()> {
        let choices = serde_json::from_str::<Value>(event)
            .ok()
            .and_then(|json| json.get("choices").cloned());
        let choice = choices.as_ref().and_then(|choices| choices.get(0));
        let Some(choice) = choice else {
            bail!("the server sent an error in the stream: {}", event.trim())
        };
        let text = choice.get("text").or_else(|| choice.get("delta")?.get("content"));
        self.text.push_str(text.and_then(Value::as_str).unwrap_or_default());
        self.chunks += 1;
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            ensure!(
                reason != "error",
                "the server ended the reply with finish_reason \"error\""
            );
            self.finish_reason = Some(reason.to_owned());
        }
        Ok(())
    }
}

/// Data of server-sent events (WHATWG HTML, section 9.2.6); event names, ids and comments are passed over.
pub struct Events<R> {
    reader: R,
}

impl<R: BufRead> Events<R> {
    pub fn new(reader: R) -> Self {
        Self { reader }
    }
}

impl<R: BufRead> Iterator for Events<R> {
    type Item = std::io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut data: Option<String> = None;
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Err(error) => return Some(Err(error)),
                // An event that the end of the stream cuts off is discarded, as the standard says.
                Ok(0) => return None,
                Ok(_) => {}
            }
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if let Some(data) = data {
                    return Some(Ok(data));
                }
            } else if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    fn chunk(text: &str, finish: &str) -> String {
        format!("data: {{\"choices\":[{{\"text\":\"{text}\",\"index\":0,\"finish_reason\":{finish}}}]}}\n\n")
    }

    #[test]
    fn events_join_data_lines_and_skip_comments_names_and_carriage_returns() {
        let stream = ": keep-alive\r\n\r\nevent: x\r\ndata: one\r\ndata:two\r\n\r\ndata: [DONE]\n\n";
        let events: Vec<_> = Events::new(stream.as_bytes()).map(Result::unwrap).collect();
        assert_eq!(events, ["one\ntwo", "[DONE]"]);
    }

    #[test]
    fn a_reply_is_put_together_from_its_chunks() {
        let stream = format!(
            "{}{}data: [DONE]\n\n",
            chunk("Hello", "null"),
            chunk(" world", "\"length\"")
        );
        let reply = Reply::read(stream.as_bytes()).unwrap();
        assert_eq!((reply.text.as_str(), reply.chunks), ("Hello world", 2));
        assert_eq!(reply.finish_reason.as_deref(), Some("length"));
    }

    #[test]
    fn chat_chunks_are_understood_too() {
        let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\ndata: [DONE]\n\n";
        assert_eq!(Reply::read(stream.as_bytes()).unwrap().text, "Hi");
    }

    #[test]
    fn a_stream_without_done_is_an_error() {
        let error = Reply::read(chunk("Hello", "null").as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "the stream ended without [DONE] after 1 chunks");
    }

    #[test]
    fn bare_text_in_the_stream_is_the_servers_error() {
        let stream = "data: rank 1 was lost in layer 3\n\ndata: [DONE]\n\n";
        let error = Reply::read(stream.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("rank 1 was lost in layer 3"), "{error}");
    }

    /// Answers one connection with `response` and returns what the client sent up to the end of the request's body.
    fn serve(response: String) -> (u16, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            let complete = |request: &[u8]| {
                let text = String::from_utf8_lossy(request).into_owned();
                text.starts_with("GET") && text.ends_with("\r\n\r\n")
                    || text.contains("\r\n\r\n") && text.ends_with('}')
            };
            while !complete(&request) {
                let read = socket.read(&mut buffer).unwrap();
                assert!(read > 0, "the client closed early");
                request.extend_from_slice(&buffer[..read]);
            }
            socket.write_all(response.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (port, served)
    }

    #[test]
    fn a_completion_is_streamed_over_chunked_http() {
        let body = format!("{}data: [DONE]\n\n", chunk("a number", "\"stop\""));
        let (first, second) = body.split_at(20);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let pieces = format!(
            "{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
            first.len(),
            second.len()
        );
        let (port, served) = serve(format!("{head}{pieces}"));
        let reply = Client::new(port, Duration::from_secs(5))
            .complete("/// Returns", 8)
            .unwrap();
        assert_eq!(reply.text, "a number");
        let request = served.join().unwrap();
        assert!(request.starts_with("POST /v1/completions "), "{request}");
        assert!(
            request.contains("\"stream\":true") && request.contains("\"max_tokens\":8"),
            "{request}"
        );
    }

    #[test]
    fn an_error_status_is_reported_with_its_body() {
        let body = "{\"message\":\"no such model\"}";
        let length = body.len();
        let (port, served) = serve(format!(
            "HTTP/1.1 422 Unprocessable\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
        let error = Client::new(port, Duration::from_secs(5))
            .complete("x", 1)
            .unwrap_err()
            .to_string();
        served.join().unwrap();
        assert!(error.contains("422") && error.contains("no such model"), "{error}");
    }

    #[test]
    fn a_port_nobody_listens_on_is_not_healthy() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert!(!Client::new(port, Duration::from_secs(1)).healthy());
    }
}
