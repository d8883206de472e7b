//! First step: what is this packet?

use lb_common::{Address, FlowKey, PROTO_TCP, PROTO_UDP, Reason};

use crate::family::{Family, IpFields};
use crate::frame::{Frame, L3};
use crate::stop::Stop;
use crate::wire::{NEXT_DESTINATION, Ports, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tcp, Udp};

/// A packet, read once.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Packet<A> {
    /// Its 5-tuple; the ports of ICMP and of later fragments are 0.
    pub(crate) key: FlowKey<A>,
    l3: u16,
    l4: u16,
    /// Bytes from the IP header on, as that header says; a short frame's padding does not count.
    pub(crate) length: u16,
    /// TCP flags; 0 for UDP.
    pub(crate) tcp_flags: u8,
    /// Whether lengths and offsets agree with each other and with the frame, and TCP's flags are possible ones.
    pub(crate) is_sound: bool,
    /// Whether it belonged to a flow, which ended for it to choose anew.
    pub(crate) had_flow: bool,
    /// Which part of a datagram it is.
    pub(crate) fragment: Fragment,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Fragment {
    /// [`Fragment::NONE`], [`Fragment::FIRST`] or [`Fragment::LATER`].
    pub(crate) part: u32,
    /// What the parts share; 0 for a whole datagram.
    pub(crate) identification: u32,
}

impl Fragment {
    /// A whole datagram.
    pub(crate) const NONE: u32 = 0;
    /// The first fragment: the one with ports.
    pub(crate) const FIRST: u32 = 1;
    /// Any other.
    pub(crate) const LATER: u32 = 2;

    /// A whole datagram.
    pub(crate) const WHOLE: Self = Self { part: Self::NONE, identification: 0 };

    /// What these fields of a header tell.
    #[inline(always)]
    pub(crate) const fn of(offset: u16, more: u16, identification: u32) -> Self {
        match (offset, more) {
            (0, 0) => Self::WHOLE,
            (0, _) => Self { part: Self::FIRST, identification },
            _ => Self { part: Self::LATER, identification },
        }
    }

    /// Whether it comes without the header of TCP or UDP.
    #[inline(always)]
    pub(crate) const fn is_later(&self) -> bool {
        self.part == Self::LATER
    }

    /// Whether other fragments follow that only this one tells the ports of.
    #[inline(always)]
    pub(crate) const fn is_first(&self) -> bool {
        self.part == Self::FIRST
    }
}

/// Reads what nearly every packet is: whole TCP or UDP without VLAN tag, options or extension headers, whose TTL does
/// not end here. `None` for anything else.
#[inline(always)]
pub(crate) fn plain<F: Family>(frame: &Frame) -> Option<Packet<F::Addr>> {
    let ip = F::read_plain_ip(frame, L3)?;
    if ip.ttl <= 1 || (ip.protocol != PROTO_TCP && ip.protocol != PROTO_UDP) {
        return None;
    }
    read_transport(frame, L3, &ip)
}

/// Reads any packet, or says why the kernel must have it. `l3` is where its IP header begins.
#[inline(always)]
pub(crate) fn whole<F: Family>(frame: &Frame, l3: usize, packet: &mut Packet<F::Addr>) -> Result<(), Stop> {
    let ip = F::read_ip(frame, l3).ok_or(Stop::pass(Reason::OtherProtocol))?;
    if ip.ttl <= 1 {
        return Err(Stop::pass(Reason::TtlExpired));
    }
    let is_transport = ip.protocol == PROTO_TCP || ip.protocol == PROTO_UDP;
    if !is_transport && ip.protocol != F::ICMP && !is_hidden::<F::Addr>(ip.protocol, ip.fragment) {
        return Err(Stop::pass(Reason::OtherProtocol));
    }
    if ip.fragment.is_later() || !is_transport {
        let l4 = l3 + usize::from(ip.header_length);
        *packet = self::packet(l3, l4, &ip, Ports { source: 0, destination: 0 }, 0, holds(frame, l3, &ip));
    } else {
        *packet = read_transport(frame, l3, &ip).ok_or(Stop::pass(Reason::OtherProtocol))?;
    }
    Ok(())
}

/// Whether it is a later fragment of which the first alone tells the protocol: each names what the divided part of the
/// packet begins with, which may be destination options (RFC 8200, 4.5).
#[inline(always)]
pub(crate) const fn is_hidden<A: Address>(protocol: u8, fragment: Fragment) -> bool {
    A::VERSION == 6 && fragment.is_later() && protocol == NEXT_DESTINATION
}

#[inline(always)]
fn read_transport<A: Address>(frame: &Frame, l3: usize, ip: &IpFields<A>) -> Option<Packet<A>> {
    let l4 = l3 + usize::from(ip.header_length);
    let ports: Ports = *frame.at(l4)?;
    let payload_length = ip.length.saturating_sub(ip.header_length);
    let (tcp_flags, is_sound) = match ip.protocol {
        PROTO_TCP => read_tcp(frame, l4, payload_length),
        _ => (0, is_sound_udp(frame, l4, payload_length, ip.fragment.is_first())),
    };
    Some(packet(l3, l4, ip, ports, tcp_flags, is_sound && holds(frame, l3, ip)))
}

/// Whether the frame has all bytes that the IP header promises, and the whole datagram no more than there can be.
#[inline(always)]
fn holds<A>(frame: &Frame, l3: usize, ip: &IpFields<A>) -> bool {
    ip.length > ip.header_length
        && ip.fragment_offset.checked_add(ip.length - ip.header_length).is_some()
        && frame.holds(l3 + usize::from(ip.length))
}

#[inline(always)]
fn packet<A: Address>(
    l3: usize,
    l4: usize,
    ip: &IpFields<A>,
    ports: Ports,
    tcp_flags: u8,
    is_sound: bool,
) -> Packet<A> {
    let key = FlowKey {
        source: ip.source,
        destination: ip.destination,
        source_port: u16::from_be(ports.source),
        destination_port: u16::from_be(ports.destination),
        protocol: ip.protocol,
        _pad: [0; 3],
    };
    let (l3, l4) = (l3 as u16, l4 as u16);
    Packet { key, l3, l4, length: ip.length, tcp_flags, is_sound, had_flow: false, fragment: ip.fragment }
}

#[inline(always)]
fn read_tcp(frame: &Frame, l4: usize, payload_length: u16) -> (u8, bool) {
    match frame.at::<Tcp>(l4) {
        Some(tcp) => {
            let header_length = u16::from(tcp.data_offset >> 4) * 4;
            let fits = header_length >= size_of::<Tcp>() as u16 && header_length <= payload_length;
            (tcp.flags, fits && !is_impossible(tcp.flags))
        }
        None => (0, false),
    }
}

/// RFC 9293 knows no SYN together with FIN or RST, and nothing but SYN and RST that comes without ACK (3.10.7): whoever
/// knows of the connection drops it.
#[inline(always)]
const fn is_impossible(flags: u8) -> bool {
    let opens_and_ends = flags & TCP_SYN != 0 && flags & (TCP_FIN | TCP_RST) != 0;
    opens_and_ends || flags & (TCP_SYN | TCP_RST | TCP_ACK) == 0
}

#[inline(always)]
fn is_sound_udp(frame: &Frame, l4: usize, payload_length: u16, is_first_fragment: bool) -> bool {
    match frame.at::<Udp>(l4) {
        Some(udp) => {
            let length = u16::from_be(udp.length);
            length >= size_of::<Udp>() as u16
                && payload_length >= size_of::<Udp>() as u16
                && (length <= payload_length || is_first_fragment)
        }
        None => false,
    }
}

/// No header begins behind this offset; the verifier wants it as a mask, since it forgets what it knew of a number
/// that was kept in a map.
const OFFSET_MASK: usize = 0x3ff;

impl<A: Address> Packet<A> {
    /// Offset of the IP header in the frame.
    #[inline(always)]
    pub(crate) const fn l3(&self) -> usize {
        self.l3 as usize & OFFSET_MASK
    }

    /// Offset of what follows the IP header and its extensions.
    #[inline(always)]
    pub(crate) const fn l4(&self) -> usize {
        self.l4 as usize & OFFSET_MASK
    }

    /// Whether it opens a TCP connection.
    #[inline(always)]
    pub(crate) fn is_syn(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// Whether it resets a TCP connection.
    #[inline(always)]
    pub(crate) fn is_reset(&self) -> bool {
        self.tcp_flags & TCP_RST != 0
    }
}
