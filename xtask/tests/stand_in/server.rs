//! Stand-in for `mistralrs-server`: /health and one streamed completion.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

fn main() {
    if std::env::var_os("STAND_IN_SERVER_FAILS").is_some() {
        eprintln!("error: rank 1 did not answer the hello");
        std::process::exit(4);
    }
    if std::env::var_os("STAND_IN_SERVER_HANGS").is_some() {
        std::thread::sleep(std::time::Duration::from_secs(300));
    }
    let arguments: Vec<String> = std::env::args().collect();
    let port = &arguments[arguments.iter().position(|argument| argument == "--port").unwrap() + 1];
    for socket in TcpListener::bind(format!("127.0.0.1:{port}")).unwrap().incoming() {
        let _ = answer(socket.unwrap());
    }
}

fn answer(socket: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header == "\r\n" {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    reader.take(length).read_to_end(&mut Vec::new())?;
    let body = match request.starts_with("GET /health ") {
        true => "OK".to_owned(),
        false => {
            let chunk = |text: &str, finish: &str| {
                format!("data: {{\"choices\":[{{\"text\":\"{text}\",\"finish_reason\":{finish}}}]}}\n\n")
            };
            format!(
                "{}{}data: [DONE]\n\n",
                chunk(" elements", "null"),
                chunk(" in it.", "\"length\"")
            )
        }
    };
    let length = body.len();
    write!(
        &socket,
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}
