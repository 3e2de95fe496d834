//! One connection to one peer. All bytes of a mesh pass through here, so counting and encryption have one place.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use super::secure::Cipher;
use crate::transport::Traffic;

/// What the kernel takes beyond what it can send at once. Without a limit it takes whole messages to all peers, and their
/// order is lost; 64 KiB keep a link of 10 Gbit/s busy for 50 microseconds.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT_BYTES: u32 = 64 << 10;

/// A connected, nonblocking stream with counters.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    /// `None`: bytes travel as they are.
    cipher: Option<Cipher>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Link {
    pub(super) fn new(stream: TcpStream, cipher: Option<Cipher>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        #[cfg(any(target_os = "linux", target_os = "android"))]
        socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES)?;
        Ok(Self {
            stream,
            cipher,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        })
    }

    /// Writes what fits now of `parts`; `None` when that is nothing. Then the same bytes have to come again: an encrypted
    /// record with them may be under way.
    pub(super) fn write(&self, parts: [&[u8]; 2]) -> io::Result<Option<usize>> {
        match &self.cipher {
            Some(cipher) => cipher.write(parts, |record| self.write_raw([record, &[]])),
            None => self.write_raw(parts),
        }
    }

    fn write_raw(&self, parts: [&[u8]; 2]) -> io::Result<Option<usize>> {
        let slices = [IoSlice::new(parts[0]), IoSlice::new(parts[1])];
        let written = match (parts[0].is_empty(), parts[1].is_empty()) {
            (true, _) => unblocked(|| (&self.stream).write(parts[1])),
            (_, true) => unblocked(|| (&self.stream).write(parts[0])),
            _ => unblocked(|| (&self.stream).write_vectored(&slices)),
        }?;
        self.sent.fetch_add(written.unwrap_or(0) as u64, Ordering::Relaxed);
        Ok(written)
    }

    /// Reads what is there into `first`, then `second`; `None` when nothing is. The end of the stream is an error.
    pub(super) fn read(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<Option<usize>> {
        match &self.cipher {
            Some(cipher) => cipher.read(first, second, |room| self.read_raw(room, &mut [])),
            None => self.read_raw(first, second),
        }
    }

    fn read_raw(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<Option<usize>> {
        let read = if first.is_empty() {
            unblocked(|| (&self.stream).read(second))
        } else {
            unblocked(|| {
                let mut slices = [IoSliceMut::new(&mut *first), IoSliceMut::new(&mut *second)];
                (&self.stream).read_vectored(&mut slices)
            })
        }?;
        match read {
            Some(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed")),
            Some(n) => {
                self.received.fetch_add(n as u64, Ordering::Relaxed);
                Ok(Some(n))
            }
            None => Ok(None),
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }

    /// No more writes. What was written still arrives; the peer then reads the end of the stream.
    pub(super) fn finish(&self) {
        // An error says that the peer is gone, which is no news to a rank that leaves.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Makes a thread that polls return: once rung, its file descriptor stays readable.
#[derive(Debug)]
pub(super) struct Bell {
    ring: UnixStream,
    hear: UnixStream,
}

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let (ring, hear) = UnixStream::pair()?;
        ring.set_nonblocking(true)?;
        Ok(Self { ring, hear })
    }

    pub(super) fn ring(&self) {
        // A full buffer means that it has been rung already.
        let _ = (&self.ring).write(&[1]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.hear.as_fd()
    }
}

fn unblocked(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(n) => return Ok(Some(n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
