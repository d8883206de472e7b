//! A server that notes who came, and when.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result};
use socket2::SockRef;

use super::Host;
use super::traffic::PATIENCE;

/// Longest request that is understood, in bytes.
const REQUEST_LEN: usize = 4096;

/// An HTTP server that runs in the test itself: what it sees and when it answers, the test knows to the microsecond.
/// It also serves checks that only connect. It ends when it is dropped.
#[derive(Debug)]
pub struct Visitors {
    listener: TcpListener,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

/// One visit.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// When it was over: answered, or the other end had gone.
    pub ended: Instant,
    /// Who came.
    pub from: IpAddr,
    /// What it was answered; `None` if it asked for nothing.
    pub answer: Option<u16>,
}

#[derive(Debug)]
struct Shared {
    status: AtomicU16,
    visits: Mutex<Vec<Visit>>,
}

impl Shared {
    fn visits(&self) -> MutexGuard<'_, Vec<Visit>> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visitors {
    /// Begins to listen on a port of every address of `host`, and to answer with the status 200.
    pub fn listen(host: &Host, port: u16) -> Result<Self> {
        let listener = host.enter(|| {
            let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            TcpListener::bind(address).with_context(|| format!("listen on {address}"))
        })?;
        let shared = Arc::new(Shared { status: AtomicU16::new(200), visits: Mutex::default() });
        let (door, book) = (listener.try_clone()?, Arc::clone(&shared));
        let server = thread::spawn(move || {
            // Until `drop` shuts the socket down.
            while let Ok((stream, from)) = door.accept() {
                let status = book.status.load(Ordering::Relaxed);
                // Whoever breaks off has come all the same.
                let answered = answer(stream, status).unwrap_or(false);
                book.visits().push(Visit {
                    ended: Instant::now(),
                    from: from.ip().to_canonical(),
                    answer: answered.then_some(status),
                });
            }
        });
        Ok(Self { listener, shared, server: Some(server) })
    }

    /// Changes the status that the next visitors are answered.
    pub fn answer(&self, status: u16) {
        self.shared.status.store(status, Ordering::Relaxed);
    }

    /// All visits until now, the oldest first.
    pub fn all(&self) -> Vec<Visit> {
        self.shared.visits().clone()
    }

    /// How many have come.
    pub fn count(&self) -> usize {
        self.shared.visits().len()
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        // Fails only if the socket is shut down already. It ends `accept`.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(server) = self.server.take() {
            // A server that panicked has been reported by the panic.
            let _ = server.join();
        }
    }
}

/// Reads a request and answers it; false if none came.
fn answer(mut stream: TcpStream, status: u16) -> std::io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut part = [0; REQUEST_LEN];
        let length = stream.read(&mut part)?;
        request.extend_from_slice(&part[..length]);
        if length == 0 || request.len() > REQUEST_LEN {
            return Ok(false);
        }
    }
    write!(stream, "HTTP/1.1 {status} \r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok(true)
}
