//! The connecting half: reaches all lower ranks, as often as it takes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{resolve, Join};
use crate::transport::tcp::secure::{record_len, Cipher, Handshake, Secret, HANDSHAKE_LEN, RECORD_PREFIX_LEN};
use crate::transport::tcp::JoinError;
use crate::wire::{self, HelloField, Prefix, Purpose, Refusal, Reply, PREFIX_LEN};

/// One attempt to connect: long enough for a lost SYN to be sent again.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// For the answer to a hello. A rank that listens but is not yet accepting is asked again.
const REPLY_PATIENCE: Duration = Duration::from_secs(5);

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Why an attempt failed.
#[derive(Debug)]
enum Failed {
    /// May work later.
    Again(String),
    Final(JoinError),
}

pub(super) fn run(join: &Join<'_>) -> Result<(), JoinError> {
    let lower = 0..join.config.rank;
    let mut todo: Vec<(usize, Purpose)> = lower
        .flat_map(|rank| [(rank, Purpose::Data), (rank, Purpose::Control)])
        .collect();
    let mut pause = FIRST_PAUSE;
    while !todo.is_empty() {
        let before = todo.len();
        let mut last = None;
        let mut left = Vec::new();
        for (rank, purpose) in todo {
            if join.stopped() {
                return Ok(());
            }
            match dial(join, rank, purpose) {
                Ok((stream, cipher)) => join.add(rank, purpose, stream, cipher),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Again(why)) => {
                    last.get_or_insert((rank, why));
                    left.push((rank, purpose));
                }
            }
        }
        todo = left;
        join.check_present()?;
        if let Some((rank, why)) = last {
            if join.remaining().is_zero() {
                return Err(join.absent(rank, why));
            }
        }
        if todo.len() == before {
            std::thread::sleep(pause.min(join.remaining()));
            pause = (pause * 2).min(LONGEST_PAUSE);
        } else {
            pause = FIRST_PAUSE;
        }
    }
    Ok(())
}

/// A connection to one rank, and its cipher where the group has a secret.
type Dialed = (TcpStream, Option<Cipher>);

fn dial(join: &Join<'_>, rank: usize, purpose: Purpose) -> Result<Dialed, Failed> {
    let addresses = resolve(join.config, rank).map_err(|error| match error {
        JoinError::Unresolved { reason, .. } => Failed::Again(format!("cannot resolve it: {reason}")),
        other => Failed::Final(other),
    })?;
    let mut why = String::new();
    for address in addresses {
        let patience = join.remaining().clamp(Duration::from_millis(1), CONNECT_PATIENCE);
        match TcpStream::connect_timeout(&address, patience) {
            Ok(stream) if is_self_connected(&stream) => why = "nobody listens".to_owned(),
            Ok(stream) => return greet(join, rank, purpose, stream),
            Err(error) => why = error.to_string(),
        }
    }
    Err(Failed::Again(why))
}

/// On loopback, a port that nobody listens on can be picked as the local port of the very connection to it.
fn is_self_connected(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(local), Ok(peer)) if local == peer)
}

fn greet(join: &Join<'_>, rank: usize, purpose: Purpose, mut stream: TcpStream) -> Result<Dialed, Failed> {
    let mine = join.hello(rank, purpose);
    let again = |what: &str, error: io::Error| Failed::Again(format!("{what}: {error}"));
    stream
        .set_nodelay(true)
        .map_err(|e| again("cannot set TCP_NODELAY", e))?;
    let cipher = match &join.config.secret {
        None => None,
        Some(secret) => Some(authenticate(join, secret, &mut stream)?),
    };
    let hello = match &cipher {
        None => mine.encode(),
        Some(cipher) => cipher.seal(&mine.encode()).map_err(|e| again("cannot encrypt", e))?,
    };
    stream
        .write_all(&hello)
        .map_err(|e| again("it closed the connection", e))?;
    let reply = read_reply(join, &mut stream, cipher.as_ref())?;
    let theirs = match reply {
        Reply::Refused(refusal) => return Err(Failed::Final(JoinError::Refused(refusal))),
        Reply::Accepted(hello) => hello,
    };
    if theirs.rank as usize != rank {
        return Err(Failed::Final(JoinError::Refused(Refusal {
            sender: mine.rank,
            by: theirs.rank,
            field: HelloField::Address,
            expected: theirs.rank.to_string(),
            got: rank.to_string(),
        })));
    }
    if let Some(refusal) = mine.refuse(&theirs) {
        return Err(Failed::Final(JoinError::Refused(refusal)));
    }
    stream
        .set_nonblocking(true)
        .map_err(|e| again("cannot make the socket nonblocking", e))?;
    Ok((stream, cipher))
}

/// Shows that this rank knows the secret, and finds out whether the other does.
fn authenticate(join: &Join<'_>, secret: &Secret, stream: &mut TcpStream) -> Result<Cipher, Failed> {
    let failed = |e: io::Error| Failed::Again(format!("it did not show that it knows the secret: {e}"));
    let (handshake, message) = Handshake::start(secret).map_err(failed)?;
    stream
        .write_all(&wire::handshake(join.config.rank as u32, &message))
        .map_err(failed)?;
    let deadline = Instant::now() + REPLY_PATIENCE.min(join.remaining());
    let (prefix, body) = read_message(join, stream, deadline)?;
    if prefix.is_handshake() && body.len() == HANDSHAKE_LEN {
        return handshake.finish(&body).map_err(failed);
    }
    match Reply::parse(&prefix, &body) {
        // Believed although anybody can say it: the one at that address does not take this rank's secret, whoever it is.
        Ok(Reply::Refused(refusal)) => Err(Failed::Final(JoinError::Refused(refusal))),
        _ => Err(failed(io::Error::other("it answered with something else"))),
    }
}

fn read_reply(join: &Join<'_>, stream: &mut TcpStream, cipher: Option<&Cipher>) -> Result<Reply, Failed> {
    let deadline = Instant::now() + REPLY_PATIENCE.min(join.remaining());
    let (prefix, body) = match cipher {
        None => read_message(join, stream, deadline)?,
        Some(cipher) => {
            let mut len = [0; RECORD_PREFIX_LEN];
            read_exact(join, stream, &mut len, deadline)?;
            let mut record = vec![0; record_len(len).map_err(foreign)?];
            read_exact(join, stream, &mut record, deadline)?;
            let plain = cipher.open(&record).map_err(foreign)?;
            let (head, body) = plain.split_at(PREFIX_LEN.min(plain.len()));
            (Prefix::of_reply(head).map_err(foreign)?, body.to_vec())
        }
    };
    Reply::parse(&prefix, &body).map_err(foreign)
}

fn read_message(join: &Join<'_>, stream: &mut TcpStream, deadline: Instant) -> Result<(Prefix, Vec<u8>), Failed> {
    let mut head = [0; PREFIX_LEN];
    read_exact(join, stream, &mut head, deadline)?;
    let prefix = Prefix::of_reply(&head).map_err(foreign)?;
    let mut body = vec![0; prefix.body_len as usize];
    read_exact(join, stream, &mut body, deadline)?;
    Ok((prefix, body))
}

fn foreign(error: impl std::fmt::Display) -> Failed {
    Failed::Again(format!("is another service listening there? {error}"))
}

/// As `Read::read_exact`, but with one deadline for all of it and an eye on `stop`.
fn read_exact(join: &Join<'_>, stream: &mut TcpStream, buffer: &mut [u8], deadline: Instant) -> Result<(), Failed> {
    let mut at = 0;
    stream
        .set_read_timeout(Some(Duration::from_millis(50)))
        .map_err(|e| Failed::Again(format!("cannot set a read timeout: {e}")))?;
    while at < buffer.len() {
        match stream.read(&mut buffer[at..]) {
            Ok(0) => {
                return Err(Failed::Again(
                    "it closed the connection instead of answering".to_owned(),
                ))
            }
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                join.check_present().map_err(Failed::Final)?;
                if join.stopped() || Instant::now() >= deadline {
                    return Err(Failed::Again(
                        "it accepted the connection but does not answer".to_owned(),
                    ));
                }
            }
            Err(e) => return Err(Failed::Again(e.to_string())),
        }
    }
    Ok(())
}
