//! A packet socket that only sends (packet(7)).

use std::io;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// Sends whole Ethernet frames.
pub(super) struct PacketSocket {
    socket: Socket,
}

impl PacketSocket {
    /// Opens a socket in the network namespace of the calling thread; needs CAP_NET_RAW.
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0 receives nothing, so that nothing fills the receive queue nobody reads.
        let nothing = Some(Protocol::from(0));
        Ok(Self { socket: Socket::new(Domain::PACKET, Type::RAW.nonblocking(), nothing)? })
    }

    /// Sends a frame, Ethernet header included, by an interface.
    pub(super) fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        self.socket.send_to(frame, &link_address(ifindex)).map(drop)
    }
}

/// The address "this interface": of a raw frame the kernel asks for no more.
fn link_address(ifindex: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is one of the types `sockaddr_storage` is made for: smaller, no stricter aligned, and
    // valid for every bit pattern.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_ifindex = ifindex as i32;
    // SAFETY: the storage holds a `sockaddr_ll`, whose length is given.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
