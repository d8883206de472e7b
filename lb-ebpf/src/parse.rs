//! First step: what is this packet?

use lb_common::{Address, FlowKey, PROTO_TCP, PROTO_UDP};

use crate::family::{Family, L3};
use crate::frame::Frame;
use crate::stop::Stop;
use crate::wire::{Ports, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tcp, Udp};

/// A TCP or UDP packet, read once.
pub(crate) struct Packet<A> {
    /// Its 5-tuple.
    pub(crate) key: FlowKey<A>,
    /// Offset of the TCP or UDP header in the frame.
    pub(crate) l4: usize,
    /// Bytes from the IP header on, as that header says; a short frame's padding does not count.
    pub(crate) length: u16,
    /// TCP flags; 0 for UDP.
    pub(crate) tcp_flags: u8,
    /// Whether lengths and offsets agree with each other and with the frame, and TCP's flags are possible ones.
    pub(crate) is_sound: bool,
    /// Whether it is the first of several fragments.
    pub(crate) is_fragment: bool,
}

/// Reads the headers. Whatever cannot be a packet of a flow, or must be answered by the kernel (a TTL that ends
/// here), is left to the kernel.
#[inline(always)]
pub(crate) fn parse<F: Family>(frame: &Frame) -> Result<Packet<F::Addr>, Stop> {
    read::<F>(frame).ok_or(Stop::TO_KERNEL)
}

#[inline(always)]
fn read<F: Family>(frame: &Frame) -> Option<Packet<F::Addr>> {
    let ip = F::read_ip(frame)?;
    if ip.ttl <= 1 || ip.header_length < 20 {
        return None;
    }
    let l4 = L3 + usize::from(ip.header_length);
    let ports: Ports = *frame.at(l4)?;
    let payload_length = ip.length.saturating_sub(ip.header_length);
    let (tcp_flags, is_sound) = match ip.protocol {
        PROTO_TCP => read_tcp(frame, l4, payload_length),
        PROTO_UDP => (0, is_sound_udp(frame, l4, payload_length, ip.is_fragment)),
        _ => return None,
    };
    Some(Packet {
        key: FlowKey {
            source: ip.source,
            destination: ip.destination,
            source_port: u16::from_be(ports.source),
            destination_port: u16::from_be(ports.destination),
            protocol: ip.protocol,
            _pad: [0; 3],
        },
        l4,
        length: ip.length,
        tcp_flags,
        is_sound: is_sound && frame.holds(L3 + usize::from(ip.length)),
        is_fragment: ip.is_fragment,
    })
}

#[inline(always)]
fn read_tcp(frame: &Frame, l4: usize, payload_length: u16) -> (u8, bool) {
    match frame.at::<Tcp>(l4) {
        Some(tcp) => {
            let header_length = u16::from(tcp.data_offset >> 4) * 4;
            let fits = header_length >= size_of::<Tcp>() as u16 && header_length <= payload_length;
            // RFC 9293 knows no SYN together with FIN or RST.
            let impossible = tcp.flags & TCP_SYN != 0 && tcp.flags & (TCP_FIN | TCP_RST) != 0;
            (tcp.flags, fits && !impossible)
        }
        None => (0, false),
    }
}

#[inline(always)]
fn is_sound_udp(frame: &Frame, l4: usize, payload_length: u16, is_fragment: bool) -> bool {
    match frame.at::<Udp>(l4) {
        Some(udp) => {
            let length = u16::from_be(udp.length);
            length >= size_of::<Udp>() as u16 && (length <= payload_length || is_fragment)
        }
        None => false,
    }
}

impl<A: Address> Packet<A> {
    /// Whether it opens a TCP connection.
    #[inline(always)]
    pub(crate) fn is_syn(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }
}
