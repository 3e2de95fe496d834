//! What two processes on one host pay for a raw TCP round trip: the yardstick for a decode exchange.
//!
//! `cargo run --release --no-default-features --example ping_pong -- 2184` sends that many bytes there and back, many times,
//! between two threads over loopback, blocking and with TCP_NODELAY, and prints median and p99 in microseconds.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use mistralrs_tpq::bench::quantile;

const TIMES: usize = 20_000;

fn main() -> std::io::Result<()> {
    let bytes: usize = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(2184);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut buffer = vec![0; bytes];
        for _ in 0..TIMES {
            stream.read_exact(&mut buffer)?;
            stream.write_all(&buffer)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; bytes];
    let mut micros = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let start = Instant::now();
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        micros.push(start.elapsed().as_secs_f64() * 1e6);
    }
    echo.join()
        .map_err(|_| std::io::Error::other("the echo thread panicked"))??;
    let (median, p99) = (quantile(&mut micros, 0.5), quantile(&mut micros, 0.99));
    println!("{{\"bytes\": {bytes}, \"us_median\": {median:.1}, \"us_p99\": {p99:.1}}}");
    Ok(())
}
