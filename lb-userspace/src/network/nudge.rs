//! Makes the ends of a forgotten TCP connection speak. A segment out of their window is answered with an
//! acknowledgment (RFC 9293, 3.10.7.4), which carries the sequence number that this host does not know.

use std::io;
use std::net::SocketAddr;

use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, Socket, Type};

/// Hops that a packet may take.
const TTL: u8 = 64;

/// Sockets that send whole IP packets (raw(7)).
#[derive(Debug)]
pub struct Nudge {
    v4: Socket,
    v6: Socket,
}

impl Nudge {
    /// Opens the sockets in the network namespace of the calling thread; needs CAP_NET_RAW.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn open() -> io::Result<Self> {
        // This protocol means that the IP header is ours, of both families.
        let open =
            |domain| Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(libc::IPPROTO_RAW)));
        Ok(Self { v4: open(Domain::IPV4)?, v6: open(Domain::IPV6)? })
    }

    /// Sends a segment of the connection from `source` to `destination`. It lies in the window by accident, and is not
    /// answered then, once in some ten thousand times.
    ///
    /// # Errors
    ///
    /// If the host has no route, or no room in its queue.
    pub fn send(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<()> {
        let packet = bare_ack(source, destination, rand::random())?;
        // A port would name another protocol than the socket's.
        let to = SocketAddr::new(destination.ip(), 0).into();
        let socket = if destination.is_ipv4() { &self.v4 } else { &self.v6 };
        socket.send_to(&packet, &to).map(drop)
    }
}

/// An IP packet with an acknowledgment of nothing in particular.
fn bare_ack(source: SocketAddr, destination: SocketAddr, sequence: u32) -> io::Result<Vec<u8>> {
    let ip = match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.ip().octets(), destination.ip().octets(), TTL)
        }
        (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.ip().octets(), destination.ip().octets(), TTL)
        }
        _ => return Err(io::Error::other("the ends of a connection are of different families")),
    };
    let segment = ip.tcp(source.port(), destination.port(), sequence, 0).ack(0);
    let mut packet = Vec::with_capacity(segment.size(0));
    segment.write(&mut packet, &[]).map_err(io::Error::other)?;
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    #[test]
    fn a_nudge_is_a_segment_with_right_checksums() {
        for (source, destination) in
            [("10.0.1.100:80", "192.0.2.7:40000"), ("[fd00::100]:80", "[2001:db8::7]:40000")]
        {
            let (source, destination): (SocketAddr, SocketAddr) =
                (source.parse().unwrap(), destination.parse().unwrap());
            let packet = bare_ack(source, destination, 0x0102_0304).unwrap();
            let parsed = SlicedPacket::from_ip(&packet).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = parsed.transport else { panic!("no TCP") };
            assert_eq!((tcp.source_port(), tcp.destination_port()), (source.port(), destination.port()));
            assert_eq!(
                (tcp.sequence_number(), tcp.ack(), tcp.syn(), tcp.rst()),
                (0x0102_0304, true, false, false)
            );
            let checksum = match parsed.net {
                Some(NetSlice::Ipv4(ip)) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                    tcp.calc_checksum_ipv4(header.source, header.destination)
                }
                Some(NetSlice::Ipv6(ip)) => {
                    tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
                }
                _ => panic!("no IP"),
            };
            assert_eq!(tcp.checksum(), checksum.unwrap());
        }
        let mixed = bare_ack("10.0.1.100:80".parse().unwrap(), "[fd00::1]:80".parse().unwrap(), 0);
        assert!(mixed.is_err());
    }
}
