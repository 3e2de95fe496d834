//! The accepting half: takes the connections of all higher ranks, and survives whatever else knocks.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::{is_closed, Join};
use crate::transport::tcp::poll::wait;
use crate::transport::tcp::JoinError;
use crate::wire::{Hello, HelloField, Prefix, Purpose, Refusal, Reply, PREFIX_LEN, PROTOCOL_VERSION};

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
}

pub(super) fn run(join: &Join<'_>, listener: &TcpListener) -> Result<(), JoinError> {
    listener.set_nonblocking(true).map_err(JoinError::system)?;
    let mut pending: Vec<Pending> = Vec::new();
    while let Some(missing) = first_missing(join) {
        if join.stopped() {
            return Ok(());
        }
        if join.remaining().is_zero() {
            return Err(join.absent(missing, "it never connected".to_owned()));
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
        });
    }
}

/// What became of a pending connection.
#[derive(Debug)]
enum Step {
    Waiting,
    Drop(String),
    Hello(Hello),
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
        if self.bytes.len() < PREFIX_LEN {
            return Ok(PREFIX_LEN);
        }
        let prefix = Prefix::of_hello(&self.bytes[..PREFIX_LEN]).map_err(|e| e.to_string())?;
        Ok(PREFIX_LEN + prefix.body_len as usize)
    }

    fn finish(&self) -> Step {
        let (head, body) = self.bytes.split_at(PREFIX_LEN);
        let prefix = match Prefix::of_hello(head) {
            Ok(prefix) if prefix.version != PROTOCOL_VERSION => return Step::Version(prefix),
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
        self.stream.write_all(&reply.encode())
    }

    /// Both sides report the refusal: the peer reads it, this rank returns it.
    fn refuse(mut self, refusal: Refusal) -> JoinError {
        // If it cannot be told, the peer reports that this rank left, and this rank still says why.
        let _ = self.reply(&Reply::Refused(refusal.clone()));
        let _ = self.stream.shutdown(Shutdown::Write);
        JoinError::Refused(refusal)
    }
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
        join.add(rank, hello.purpose, pending.stream);
    }
    Ok(())
}

fn same_rank_twice(join: &Join<'_>, pending: &Pending, rank: usize, purpose: Purpose) -> Option<Refusal> {
    let mut joined = join.lock();
    let first = joined
        .slot(rank, purpose)
        .as_ref()
        .filter(|stream| !is_closed(stream))?;
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
