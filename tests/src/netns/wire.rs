//! An end of a link as a cable: frames go in and come out as they are, no protocol of the kernel has a say.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::Host;

/// Longest frame that is received whole, in bytes.
const LONGEST: usize = 16 * 1024;

/// How long a frame waits for room on the link.
const ROOM: Duration = Duration::from_secs(10);

/// A packet socket (packet(7)) on one interface.
#[derive(Debug)]
pub struct Wire(Socket);

impl Wire {
    /// Opens the end of a link that is on a host.
    pub fn open(host: &Host, interface: &str) -> Result<Self> {
        host.enter(|| {
            let every = libc::ETH_P_ALL as u16;
            let socket =
                Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(every.to_be()))))
                    .context("open a packet socket")?;
            socket.bind(&address(if_nametoindex(interface)?, every)).context("bind a packet socket")?;
            Ok(Self(socket))
        })
        .with_context(|| format!("open {interface}"))
    }

    /// Puts a frame on the link, as soon as the link has room for it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let end = Instant::now() + ROOM;
        loop {
            match self.0.send(frame) {
                // The queue of the link is full: whoever empties it has too little of the processor at the moment.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) && Instant::now() < end => {
                    std::thread::yield_now();
                }
                result => return result.map(drop).context("send a frame"),
            }
        }
    }

    /// The next frame, those that were sent here included; `None` if there is none for so long.
    pub fn receive(&self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + patience;
        let mut buffer = vec![MaybeUninit::uninit(); LONGEST];
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.0.set_read_timeout(Some(left))?;
            match self.0.recv(&mut buffer) {
                Ok(length) => {
                    // SAFETY: the kernel has written the first `length` bytes.
                    let frame = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() });
                    return Ok(Some(frame.collect()));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("receive a frame"),
            }
        }
    }
}

fn address(interface: u32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is one of the types `sockaddr_storage` is made for: smaller, no stricter aligned, and
    // valid when all its bytes are zero.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = interface as i32;
    // SAFETY: the storage holds a `sockaddr_ll`, whose length is given.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
