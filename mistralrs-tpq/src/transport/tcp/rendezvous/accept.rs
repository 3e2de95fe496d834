//! The accepting half: takes the connections of all higher ranks, and survives whatever else knocks.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::{is_closed, Join};
use crate::transport::tcp::poll::wait;
use crate::transport::tcp::secure::{record_len, Cipher, Handshake, HANDSHAKE_LEN, RECORD_PREFIX_LEN};
use crate::transport::tcp::JoinError;
use crate::wire::{self, Hello, HelloField, Prefix, Purpose, Refusal, Reply, PREFIX_LEN, PROTOCOL_VERSION};

/// A connection that has not said hello by then is dropped.
const HELLO_PATIENCE: Duration = Duration::from_secs(2);

/// Connections that have not said hello yet. Beyond this the oldest goes: a scan must not lock a rank out.
const PENDING_LIMIT: usize = 64;

/// How often to look for `stop` and for ranks that left.
const TICK: Duration = Duration::from_millis(20);

/// A connection that has not said hello yet.
#[derive(Debug)]
struct Pending {
    stream: TcpStream,
    from: SocketAddr,
    since: Instant,
    bytes: Vec<u8>,
    /// Once the connection has shown that it knows the secret.
    cipher: Option<Cipher>,
}

pub(super) fn run(join: &Join<'_>, listener: &TcpListener) -> Result<(), JoinError> {
    listener.set_nonblocking(true).map_err(JoinError::system)?;
    let mut pending: Vec<Pending> = Vec::new();
    while let Some(missing) = first_missing(join) {
        if join.stopped() {
            return Ok(());
        }
        if join.remaining().is_zero() {
            return Err(join.absent(missing, join.never_connected()));
        }
        sleep(listener, &pending)?;
        accept(listener, &mut pending);
        let mut i = 0;
        while i < pending.len() {
            match pending[i].read() {
                Step::Waiting => i += 1,
                Step::Drop(why) => {
                    let dropped = pending.swap_remove(i);
                    tracing::debug!("dropped a connection from {} while joining: {why}", dropped.from);
                }
                Step::Handshake(prefix) => {
                    if let Err(why) = authenticate(join, &mut pending[i]) {
                        refuse_secret(join, pending.swap_remove(i), prefix.rank, why)?;
                    }
                }
                Step::Hello(hello) if pending[i].cipher.is_none() && join.config.secret.is_some() => {
                    refuse_secret(join, pending.swap_remove(i), hello.rank, "no secret")?;
                }
                Step::Hello(hello) => answer(join, pending.swap_remove(i), hello)?,
                Step::Version(theirs) => refuse_version(join, pending.swap_remove(i), theirs)?,
            }
        }
        join.check_present()?;
    }
    Ok(())
}

fn first_missing(join: &Join<'_>) -> Option<usize> {
    let joined = join.lock();
    (join.config.rank + 1..join.config.peers.len())
        .find(|&rank| joined.data[rank].is_none() || joined.control[rank].is_none())
}

fn sleep(listener: &TcpListener, pending: &[Pending]) -> Result<(), JoinError> {
    let mut fds = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    fds.extend(
        pending
            .iter()
            .map(|pending| PollFd::new(pending.stream.as_fd(), PollFlags::POLLIN)),
    );
    wait(&mut fds, TICK).map_err(JoinError::system)
}

fn accept(listener: &TcpListener, pending: &mut Vec<Pending>) {
    // An error other than "none left" is about one connection that has already gone: there is nobody to tell.
    while let Ok((stream, from)) = listener.accept() {
        if stream.set_nonblocking(true).is_err() {
            continue;
        }
        if pending.len() == PENDING_LIMIT {
            let oldest = (0..pending.len()).min_by_key(|&i| pending[i].since).unwrap_or(0);
            pending.swap_remove(oldest);
        }
        pending.push(Pending {
            stream,
            from,
            since: Instant::now(),
            bytes: Vec::new(),
            cipher: None,
        });
    }
}

/// What became of a pending connection.
#[derive(Debug)]
enum Step {
    Waiting,
    Drop(String),
    Hello(Hello),
    /// The first message of the handshake.
    Handshake(Prefix),
    /// A hello of another protocol version.
    Version(Prefix),
}

impl Pending {
    /// Reads towards one hello and not a byte further: what follows belongs to the link.
    fn read(&mut self) -> Step {
        loop {
            let needed = match self.needed() {
                Ok(needed) => needed,
                Err(why) => return Step::Drop(why),
            };
            if self.bytes.len() == needed {
                return self.finish();
            }
            let mut buffer = [0; 512];
            let room = (needed - self.bytes.len()).min(buffer.len());
            match self.stream.read(&mut buffer[..room]) {
                Ok(0) => return Step::Drop("closed before its hello".to_owned()),
                Ok(n) => self.bytes.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Step::Drop(e.to_string()),
            }
        }
        if self.since.elapsed() >= HELLO_PATIENCE {
            return Step::Drop(format!("no hello within {HELLO_PATIENCE:?}"));
        }
        Step::Waiting
    }

    /// Bytes up to the end of what is known to come; an error as soon as it cannot be a hello.
    fn needed(&self) -> Result<usize, String> {
        if self.cipher.is_some() {
            return match self.bytes.first_chunk() {
                None => Ok(RECORD_PREFIX_LEN),
                Some(prefix) => Ok(RECORD_PREFIX_LEN + record_len(*prefix).map_err(|e| e.to_string())?),
            };
        }
        if self.bytes.len() < PREFIX_LEN {
            return Ok(PREFIX_LEN);
        }
        let prefix = Prefix::of_hello(&self.bytes[..PREFIX_LEN]).map_err(|e| e.to_string())?;
        match prefix.body_len as usize {
            len if prefix.is_handshake() && len != HANDSHAKE_LEN => {
                Err(format!("a handshake of {len} bytes, expected {HANDSHAKE_LEN}"))
            }
            len => Ok(PREFIX_LEN + len),
        }
    }

    fn finish(&self) -> Step {
        match &self.cipher {
            None => Self::parse(&self.bytes, false),
            Some(cipher) => match cipher.open(&self.bytes[RECORD_PREFIX_LEN..]) {
                Ok(plain) => Self::parse(&plain, true),
                Err(error) => Step::Drop(error.to_string()),
            },
        }
    }

    fn parse(bytes: &[u8], opened: bool) -> Step {
        let Some((head, body)) = bytes.split_first_chunk::<PREFIX_LEN>() else {
            return Step::Drop("shorter than a hello".to_owned());
        };
        let prefix = match Prefix::of_hello(head) {
            Ok(prefix) if prefix.version != PROTOCOL_VERSION => return Step::Version(prefix),
            Ok(prefix) if prefix.is_handshake() && opened => return Step::Drop("a second handshake".to_owned()),
            Ok(prefix) if prefix.is_handshake() => return Step::Handshake(prefix),
            Ok(prefix) => prefix,
            Err(error) => return Step::Drop(error.to_string()),
        };
        match Hello::parse(&prefix, body) {
            Ok(hello) => Step::Hello(hello),
            Err(error) => Step::Drop(error.to_string()),
        }
    }

    fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        // A fresh socket takes a few hundred bytes at once; one that does not is treated as broken.
        let bytes = match &self.cipher {
            None => reply.encode(),
            Some(cipher) => cipher.seal(&reply.encode())?,
        };
        self.stream.write_all(&bytes)
    }

    /// Both sides report the refusal: the peer reads it, this rank returns it.
    fn refuse(mut self, refusal: Refusal) -> JoinError {
        // If it cannot be told, the peer reports that this rank left, and this rank still says why.
        let _ = self.reply(&Reply::Refused(refusal.clone()));
        let _ = self.stream.shutdown(Shutdown::Write);
        JoinError::Refused(refusal)
    }
}

/// Answers the first message of the handshake, or says what the connection has instead of the group's secret.
fn authenticate(join: &Join<'_>, pending: &mut Pending) -> Result<(), &'static str> {
    let secret = join.config.secret.as_ref().ok_or("a secret")?;
    let (cipher, message) = Handshake::answer(secret, &pending.bytes[PREFIX_LEN..]).map_err(|_| "another secret")?;
    let sent = pending
        .stream
        .write_all(&wire::handshake(join.config.rank as u32, &message));
    if let Err(error) = sent {
        // The next read sees it too, and drops the connection.
        tracing::debug!("could not answer {}: {error}", pending.from);
    }
    pending.bytes.clear();
    pending.cipher = Some(cipher);
    Ok(())
}

/// Ends the join only where this rank has no secret: otherwise anybody who reaches the port could end it.
fn refuse_secret(join: &Join<'_>, pending: Pending, sender: u32, got: &str) -> Result<(), JoinError> {
    let has_secret = join.config.secret.is_some();
    let from = pending.from;
    let refusal = Refusal {
        sender,
        by: join.config.rank as u32,
        field: HelloField::Secret,
        expected: if has_secret { "the group's secret" } else { "no secret" }.to_owned(),
        got: got.to_owned(),
    };
    let error = pending.refuse(refusal);
    if !has_secret {
        return Err(error);
    }
    join.turn_away(from, &format!("has {got}, expected the group's secret"));
    Ok(())
}

fn answer(join: &Join<'_>, mut pending: Pending, hello: Hello) -> Result<(), JoinError> {
    let mine = join.hello(hello.rank as usize, hello.purpose);
    if let Some(refusal) = mine.refuse(&hello) {
        return Err(pending.refuse(refusal));
    }
    let rank = hello.rank as usize;
    if let Some(refusal) = same_rank_twice(join, &pending, rank, hello.purpose) {
        return Err(pending.refuse(refusal));
    }
    if pending.reply(&Reply::Accepted(mine)).is_ok() {
        join.add(rank, hello.purpose, pending.stream, pending.cipher);
    }
    Ok(())
}

fn same_rank_twice(join: &Join<'_>, pending: &Pending, rank: usize, purpose: Purpose) -> Option<Refusal> {
    let mut joined = join.lock();
    let first = joined.slot(rank, purpose).as_ref().map(|first| &first.stream);
    let first = first.filter(|stream| !is_closed(stream))?;
    let expected = first
        .peer_addr()
        .map_or_else(|e| e.to_string(), |address| format!("one at {address}"));
    Some(Refusal {
        sender: rank as u32,
        by: join.config.rank as u32,
        field: HelloField::SameRankTwice,
        expected,
        got: format!("one at {}", pending.from),
    })
}

fn refuse_version(join: &Join<'_>, pending: Pending, theirs: Prefix) -> Result<(), JoinError> {
    let refusal = Refusal {
        sender: theirs.rank,
        by: join.config.rank as u32,
        field: HelloField::Version,
        expected: PROTOCOL_VERSION.to_string(),
        got: theirs.version.to_string(),
    };
    Err(pending.refuse(refusal))
}
