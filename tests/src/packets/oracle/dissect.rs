//! Finds the parts of a packet.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{
    IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, ip_number,
};

use super::{State, checksum, state};

/// A TCP, UDP or ICMP packet whose parts have been found.
#[derive(Clone, Copy, Debug)]
pub struct Dissected<'a> {
    pub(super) frame: &'a [u8],
    /// Offset of the IP header.
    pub(super) l3: usize,
    /// Offset of the transport header, or of what a later fragment holds instead.
    pub(super) l4: usize,
    /// Offset of the first byte that is no part of the IP packet.
    pub(super) l3_end: usize,
    /// Which part of a datagram it is, if it is not all of it.
    pub part: Option<Part>,
    /// IP protocol number.
    pub protocol: u8,
    /// Source; of what comes without ports, like ICMP and later fragments, the port is 0.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// What a fragment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Bytes of the datagram before it.
    pub offset: usize,
    /// Whether others follow.
    pub is_followed: bool,
    /// What all fragments of a datagram share.
    pub id: u32,
}

/// What an IP header says.
struct Ip {
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    protocol: u8,
    /// Bytes of headers, options and extension headers included.
    header_length: usize,
    /// Bytes of all of it.
    length: usize,
    part: Option<Part>,
}

impl<'a> Dissected<'a> {
    /// Finds the parts of a frame.
    ///
    /// # Errors
    ///
    /// If it is no whole TCP, UDP or ICMP packet or fragment of one, with at most VLAN tags before it.
    pub fn new(frame: &'a [u8]) -> Result<Self> {
        let tags = frame.get(12..).map_or(0, |types| {
            types.chunks(4).take_while(|tag| matches!(tag, [0x81, 0x00, ..] | [0x88, 0xa8, ..])).count()
        });
        let l3 = 14 + 4 * tags;
        let ip = ip(frame.get(l3..).context("the frame ends before its IP header")?)?;
        ensure!(ip.length >= ip.header_length, "the IP packet is shorter than its header");
        ensure!(l3 + ip.length <= frame.len(), "the frame ends before its IP packet");
        let packet = Self::from_ip(frame, l3, l3 + ip.length, &ip)?;
        let held = packet.l3_end - packet.l4;
        ensure!(packet.is_later_part() || held >= packet.header_length(), "the transport header is cut off");
        Ok(packet)
    }

    /// The packet that an ICMP error is about: as much of it as the error carries.
    ///
    /// # Errors
    ///
    /// If this is no ICMP error, or the packet has no ports.
    pub fn about(&self) -> Result<Self> {
        let is_error = match self.protocol {
            _ if self.part.is_some() => false,
            1 => matches!(self.frame[self.l4], 3 | 4 | 5 | 11 | 12),
            58 => self.frame[self.l4] < 128,
            _ => false,
        };
        ensure!(is_error, "it is no ICMP error");
        let l3 = self.l4 + ICMP_HEADER;
        let ip = ip(&self.frame[l3..self.l3_end])?;
        // Whatever the packet says of its length: what counts is how much of it the error carries.
        let packet = Self::from_ip(self.frame, l3, self.l3_end, &ip)?;
        ensure!(packet.has_ports(), "it is about a packet without ports");
        Ok(packet)
    }

    fn from_ip(frame: &'a [u8], l3: usize, l3_end: usize, ip: &Ip) -> Result<Self> {
        let Ip { part, protocol, ttl, .. } = *ip;
        // Behind destination options, only the first fragment tells what it is.
        let is_hidden =
            protocol == ip_number::IPV6_DEST_OPTIONS.0 && matches!(part, Some(Part { offset: 1.., .. }));
        let is_known = is_hidden || matches!(protocol, 1 | 6 | 17 | 58);
        ensure!(is_known, "expected TCP, UDP or ICMP, found {protocol}");
        let l4 = l3 + ip.header_length;
        let (src, dst) = (SocketAddr::new(ip.src, 0), SocketAddr::new(ip.dst, 0));
        let mut packet = Self { frame, l3, l4, l3_end, part, protocol, src, dst, ttl };
        if packet.has_ports() {
            let ports = frame[..l3_end].get(l4..l4 + 4).context("its ports are cut off")?;
            packet.src.set_port(u16::from_be_bytes([ports[0], ports[1]]));
            packet.dst.set_port(u16::from_be_bytes([ports[2], ports[3]]));
        }
        Ok(packet)
    }

    /// Whether it holds the ports of TCP or UDP.
    pub const fn has_ports(&self) -> bool {
        matches!(self.protocol, 6 | 17) && !self.is_later_part()
    }

    /// Whether it is a fragment, and not the first.
    pub const fn is_later_part(&self) -> bool {
        matches!(self.part, Some(Part { offset: 1.., .. }))
    }

    /// Whether it is ICMP or ICMPv6.
    pub const fn is_icmp(&self) -> bool {
        matches!(self.protocol, 1 | 58)
    }

    /// Bytes of the IP packet, header included.
    pub const fn ip_length(&self) -> usize {
        self.l3_end - self.l3
    }

    /// What follows the IP header and its extensions.
    pub fn payload(&self) -> &'a [u8] {
        &self.frame[self.l4..self.l3_end]
    }

    const fn header_length(&self) -> usize {
        match self.protocol {
            6 => 20,
            _ => ICMP_HEADER,
        }
    }

    /// Offset of the transport checksum, if it is there.
    pub(super) fn checksum_at(&self) -> Option<usize> {
        let at = self.l4
            + match self.protocol {
                6 => 16,
                17 => 6,
                _ => 2,
            };
        (!self.is_later_part() && at + 2 <= self.l3_end).then_some(at)
    }

    /// All checksums, with their names.
    pub fn checksums(&self) -> Vec<(&'static str, State)> {
        let mut all = vec![("IPv4 header", self.ip_checksum())];
        // That of a fragment can only be told once all are together.
        if self.part.is_none() {
            all.push(("transport", self.transport_checksum()));
        }
        if let Ok(about) = self.about() {
            all.push(("embedded IPv4 header", about.ip_checksum()));
            if about.is_whole() {
                all.push(("embedded transport", about.transport_checksum()));
            }
        }
        all
    }

    /// Whether all of an embedded packet is there.
    fn is_whole(&self) -> bool {
        self.part.is_none()
            && ip(&self.frame[self.l3..self.l3_end]).is_ok_and(|ip| ip.length == self.ip_length())
    }

    /// The IPv4 header's checksum; always right for IPv6, which has none.
    pub fn ip_checksum(&self) -> State {
        if self.src.is_ipv6() {
            return State::Right;
        }
        let length = usize::from(self.frame[self.l3] & 0x0f) * 4;
        state(checksum(&[&self.frame[self.l3..self.l3 + length]]))
    }

    /// The checksum of TCP, UDP or ICMP.
    pub fn transport_checksum(&self) -> State {
        let Some(at) = self.checksum_at() else { return State::Absent };
        if self.is_udp() && self.frame[at..at + 2] == [0, 0] {
            return State::Absent;
        }
        state(checksum(&[&self.pseudo_header(), self.covered()]))
    }

    pub(super) const fn is_udp(&self) -> bool {
        self.protocol == ip_number::UDP.0
    }

    /// What the transport checksum covers: all of the packet, but of UDP only as much as its length says.
    pub(super) fn covered(&self) -> &'a [u8] {
        let rest = self.payload();
        match rest {
            [_, _, _, _, high, low, ..] if self.is_udp() => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                // An impossible length, as a packet in an ICMP error may have, says nothing.
                if length < ICMP_HEADER { rest } else { &rest[..length.min(rest.len())] }
            }
            _ => rest,
        }
    }

    /// What the transport checksum covers besides (RFC 9293, 3.1; RFC 8200, 8.1); nothing for ICMP over IPv4.
    pub(super) fn pseudo_header(&self) -> Vec<u8> {
        let length = self.covered().len() as u32;
        let mut bytes = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(_), _) if self.is_icmp() => return vec![],
            (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
            _ => vec![],
        };
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 0, 0, self.protocol]);
        bytes
    }
}

/// Bytes of an ICMP header, and of that of UDP.
const ICMP_HEADER: usize = 8;

fn ip(packet: &[u8]) -> Result<Ip> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => ipv4(packet),
        Some(6) => ipv6(packet),
        _ => bail!("neither IPv4 nor IPv6"),
    }
}

fn ipv4(packet: &[u8]) -> Result<Ip> {
    let header = Ipv4HeaderSlice::from_slice(packet)?;
    let offset = usize::from(header.fragments_offset().byte_offset());
    let is_followed = header.more_fragments();
    let part = Part { offset, is_followed, id: header.identification().into() };
    Ok(Ip {
        src: header.source_addr().into(),
        dst: header.destination_addr().into(),
        ttl: header.ttl(),
        protocol: header.protocol().0,
        header_length: header.slice().len(),
        length: header.total_len().into(),
        part: (offset != 0 || is_followed).then_some(part),
    })
}

fn ipv6(packet: &[u8]) -> Result<Ip> {
    let header = Ipv6HeaderSlice::from_slice(packet)?;
    let fixed = header.slice().len();
    let (mut next, mut at, mut part) = (header.next_header(), fixed, None);
    while !is_later(part) && !matches!(next, ip_number::TCP | ip_number::UDP | ip_number::IPV6_ICMP) {
        let rest = packet.get(at..).context("the extension headers are cut off")?;
        let (following, length) = match next {
            ip_number::IPV6_FRAG => {
                let fragment = Ipv6FragmentHeaderSlice::from_slice(rest)?;
                let offset = usize::from(fragment.fragment_offset().byte_offset());
                let is_followed = fragment.more_fragments();
                let id = fragment.identification();
                part = (offset != 0 || is_followed).then_some(Part { offset, is_followed, id });
                (fragment.next_header(), fragment.slice().len())
            }
            ip_number::IPV6_HEADER_HOP_BY_HOP | ip_number::IPV6_ROUTE | ip_number::IPV6_DEST_OPTIONS => {
                let extension = Ipv6RawExtHeaderSlice::from_slice(rest)?;
                (extension.next_header(), extension.slice().len())
            }
            IpNumber(other) => bail!("expected an extension header, TCP, UDP or ICMPv6, found {other}"),
        };
        (next, at) = (following, at + length);
    }
    Ok(Ip {
        src: header.source_addr().into(),
        dst: header.destination_addr().into(),
        ttl: header.hop_limit(),
        protocol: next.0,
        header_length: at,
        length: fixed + usize::from(header.payload_length()),
        part,
    })
}

const fn is_later(part: Option<Part>) -> bool {
    matches!(part, Some(Part { offset: 1.., .. }))
}
