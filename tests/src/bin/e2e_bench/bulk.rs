//! As much TCP as goes through. Both ends share a CPU, so they touch the bytes as little as a socket allows: they are
//! sent from a file by reference, and thrown away unread.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::site::{BULK_PORT, Site};
use crate::tcp::{Book, Pace, Servers};

/// Connections at a time.
const STREAMS: usize = 4;
/// Bytes that are sent at a time.
const PIECE: usize = 64 * 1024;
/// Bytes that are thrown away at a time, at most.
const GULP: usize = 1024 * 1024;

impl Site {
    /// Sends as much as goes through for so long: the bytes, and the share of the segments that were sent again.
    pub(crate) fn bulk(&mut self, servers: &Servers, time: Duration) -> Result<(Pace, f64)> {
        let book = Book::default();
        let targets = self.targets();
        let file = Arc::new(piece()?);
        let stream = |number| pour(book.clone(), Arc::clone(&file), targets[number % targets.len()]);
        let before = self.segments()?;
        let pace = self.pace(&book, &servers.bulk, time, (0..STREAMS).map(stream).collect())?;
        let after = self.segments()?;
        let [first, again] = [0, 1].map(|of| (after[of] - before[of]) as f64);
        Ok((pace, again / (first + again)))
    }
}

/// A file in memory of as many bytes as are sent at a time.
fn piece() -> Result<File> {
    let file = File::from(memfd_create("bulk", MFdFlags::MFD_CLOEXEC)?);
    (&file).write_all(&[1; PIECE])?;
    Ok(file)
}

/// Sends all it can.
async fn pour(book: Book, file: Arc<File>, target: Ipv4Addr) -> Result<()> {
    let stream = TcpStream::connect((target, BULK_PORT)).await.context("connect")?;
    while book.is_open() {
        stream.writable().await?;
        let send = || Ok(sendfile(stream.as_fd(), file.as_fd(), Some(&mut 0), PIECE)?);
        ready(stream.try_io(Interest::WRITABLE, send)).context("send")?;
    }
    Ok(())
}

/// Throws away what arrives until the other end closes the connection, and counts it.
pub(crate) async fn discard(stream: &TcpStream, bytes: &AtomicU64) -> Result<()> {
    loop {
        stream.readable().await?;
        match ready(stream.try_io(Interest::READABLE, || throw_away(stream)))? {
            Some(0) => return Ok(()),
            length => bytes.fetch_add(length.unwrap_or_default() as u64, Ordering::Relaxed),
        };
    }
}

/// Takes bytes off a socket without copying them (tcp(7)), if some are there.
fn throw_away(stream: &TcpStream) -> io::Result<usize> {
    // SAFETY: with MSG_TRUNC nothing is written to the buffer of a TCP socket, so there may be none.
    let length = unsafe {
        libc::recv(stream.as_raw_fd(), ptr::null_mut(), GULP, libc::MSG_TRUNC | libc::MSG_DONTWAIT)
    };
    Ok(Errno::result(length)?.cast_unsigned())
}

/// Nothing, if a socket was not ready after all.
fn ready(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        other => other.map(Some),
    }
}
