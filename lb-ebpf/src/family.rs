//! What differs between IPv4 and IPv6. Everything else is written once, for both, and compiled for each.

use aya_ebpf::btf_maps::PerCpuArray;
use lb_common::{Addr4, Addr6, Address, HALF_OPEN_SLOTS, HalfOpen, PROTO_TCP, PROTO_UDP, Settings};

use crate::checksum::{self, Sum, TTL_DECREMENT};
use crate::frame::Frame;
use crate::maps::{self, Connections, Opening, Scratch};
use crate::parse::Fragment;
use crate::wire::{
    Extension, FragmentHeader, IPV4_DONT_FRAGMENT, IPV4_FRAGMENT, IPV4_FRAGMENT_OFFSET, IPV4_MORE_FRAGMENTS,
    IPV6_FRAGMENT_OFFSET, IPV6_MORE_FRAGMENTS, Ipv4, Ipv6, NEXT_DESTINATION, NEXT_FRAGMENT, NEXT_HOP_BY_HOP,
    NEXT_ROUTING,
};

/// Extension headers that are followed: the five kinds RFC 8200 recommends at most, and one spare.
const EXTENSIONS: usize = 6;

/// Bytes of IPv6 header and extension headers that are followed; the verifier needs a bound that is a mask.
const HEADERS_MASK: usize = 0x1ff;

/// TTL or hop limit of packets that the balancer makes (RFC 1700).
const FRESH_TTL: u8 = 64;

/// The fields of an IP header that the journey needs.
pub(crate) struct IpFields<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    /// Bytes of the IP header, options and extension headers included.
    pub(crate) header_length: u16,
    /// Bytes of the packet from the IP header on.
    pub(crate) length: u16,
    pub(crate) fragment: Fragment,
}

/// An IP version.
pub(crate) trait Family {
    /// Its addresses.
    type Addr: Address + 'static;

    /// Bytes of the IP header without options or extension headers.
    const HEADER: usize;

    /// Number of its ICMP.
    const ICMP: u8;

    /// Index of its journey in the map `journeys`.
    const JOURNEY: u32;

    /// Index of what opens flows.
    const BEGIN: u32;

    /// Index of its ICMP's journey.
    const ICMP_JOURNEY: u32;

    /// Index of what answers with a RST.
    const RESET_JOURNEY: u32;

    /// Index of what answers with an ICMP error.
    const ERROR_JOURNEY: u32;

    /// ICMP's port unreachable: type and code.
    const PORT_UNREACHABLE: (u8, u8);

    /// ICMP's message that a packet is too big: type and code.
    const TOO_BIG: (u8, u8);

    /// ICMP's echo request and reply: types.
    const ECHO: (u8, u8);

    /// Reads a header without options, extension headers or fragmentation; `None` if it is anything else.
    fn read_plain_ip(frame: &Frame, l3: usize) -> Option<IpFields<Self::Addr>>;

    /// Reads the header at `l3` with what belongs to it; `None` if it is not one of this version, is cut off, or has
    /// extension headers that are not understood.
    fn read_ip(frame: &Frame, l3: usize) -> Option<IpFields<Self::Addr>>;

    /// Writes addresses, decrements TTL and sets the header checksum right: `difference` is what the addresses make.
    fn write_ip(
        frame: &mut Frame,
        l3: usize,
        source: Self::Addr,
        destination: Self::Addr,
        difference: u16,
    ) -> Option<()>;

    /// Writes the addresses of a header that an ICMP error carries. Gives what that adds to a sum over the packet.
    fn write_inner_ip(
        frame: &mut Frame,
        l3: usize,
        source: Self::Addr,
        destination: Self::Addr,
        difference: u16,
    ) -> Option<Sum>;

    /// Writes swapped addresses, which no checksum sees, and a fresh TTL, which that of the header does.
    fn write_reply_ip(
        frame: &mut Frame,
        l3: usize,
        source: Self::Addr,
        destination: Self::Addr,
        ttl: u8,
    ) -> Option<()>;

    /// Writes a whole header, for a packet that the balancer makes; `payload` is the number of bytes behind it.
    fn write_fresh_ip(
        frame: &mut Frame,
        l3: usize,
        source: Self::Addr,
        destination: Self::Addr,
        protocol: u8,
        payload: u16,
    ) -> Option<()>;

    /// What its ICMP's checksum covers besides the message: the pseudo-header of ICMPv6 (RFC 4443, 2.3).
    fn icmp_pseudo_header(source: Self::Addr, destination: Self::Addr, length: u16) -> Sum;

    /// Whether an ICMP type is that of an error about a packet.
    fn is_icmp_error(kind: u8) -> bool;

    /// Where the MTU stands in the word behind the checksum of an ICMP message, in network order.
    fn icmp_mtu(mtu: u16) -> u32;

    /// The ring of half-open flows, and the index of its next slot in `half_open_next`.
    fn half_open() -> (&'static HalfOpenRing<Self::Addr>, usize);

    /// Its connection map.
    fn connections() -> &'static Connections<Self::Addr>;

    /// This CPU's scratch memory for a flow in the making.
    fn opening() -> Option<&'static mut Opening<Self::Addr>>;

    /// This CPU's scratch memory for the long way.
    fn scratch() -> Option<&'static mut Scratch<Self::Addr>>;

    /// How many SNAT addresses the configuration names.
    fn snat_addresses(settings: &Settings) -> u32;

    /// The SNAT address of a ticket, counted round over the `addresses`; `None` if there are none.
    fn snat_address(ticket: u64, addresses: u32) -> Option<Self::Addr>;

    /// How many leading bits two addresses share.
    fn common_prefix(a: Self::Addr, b: Self::Addr) -> u32;

    /// The difference that translating addresses makes to the header checksum; 0 where there is none.
    fn ip_difference(addresses: u16) -> u16;
}

/// A ring of half-open flows.
pub(crate) type HalfOpenRing<A> = PerCpuArray<HalfOpen<A>, { HALF_OPEN_SLOTS as usize }>;

/// IPv4 (RFC 791).
pub(crate) struct V4;
/// IPv6 (RFC 8200).
pub(crate) struct V6;

impl Family for V4 {
    type Addr = Addr4;

    const HEADER: usize = 20;
    const ICMP: u8 = 1;
    const JOURNEY: u32 = 0;
    const BEGIN: u32 = 8;
    const ICMP_JOURNEY: u32 = 2;
    const RESET_JOURNEY: u32 = 4;
    const ERROR_JOURNEY: u32 = 6;
    const PORT_UNREACHABLE: (u8, u8) = (3, 3);
    const TOO_BIG: (u8, u8) = (3, 4);
    const ECHO: (u8, u8) = (8, 0);

    #[inline(always)]
    fn read_plain_ip(frame: &Frame, l3: usize) -> Option<IpFields<Addr4>> {
        let ip: Ipv4 = *frame.at(l3)?;
        let plain = ip.version_ihl == 0x45 && ip.fragment & IPV4_FRAGMENT == 0;
        plain.then(|| IpFields {
            source: Addr4 { bytes: ip.source.to_ne_bytes() },
            destination: Addr4 { bytes: ip.destination.to_ne_bytes() },
            protocol: ip.protocol,
            ttl: ip.ttl,
            header_length: Self::HEADER as u16,
            length: u16::from_be(ip.total_length),
            fragment: Fragment::WHOLE,
        })
    }

    #[inline(always)]
    fn read_ip(frame: &Frame, l3: usize) -> Option<IpFields<Addr4>> {
        let ip: Ipv4 = *frame.at(l3)?;
        let header_length = u16::from(ip.version_ihl & 0x0f) * 4;
        if ip.version_ihl >> 4 != 4 || header_length < Self::HEADER as u16 {
            return None;
        }
        Some(IpFields {
            source: Addr4 { bytes: ip.source.to_ne_bytes() },
            destination: Addr4 { bytes: ip.destination.to_ne_bytes() },
            protocol: ip.protocol,
            ttl: ip.ttl,
            header_length,
            length: u16::from_be(ip.total_length),
            fragment: fragment(
                ip.fragment & IPV4_FRAGMENT_OFFSET,
                ip.fragment & IPV4_MORE_FRAGMENTS,
                u32::from(ip.identification),
            ),
        })
    }

    #[inline(always)]
    fn write_ip(
        frame: &mut Frame,
        l3: usize,
        source: Addr4,
        destination: Addr4,
        difference: u16,
    ) -> Option<()> {
        let ip: &mut Ipv4 = frame.at_mut(l3)?;
        ip.ttl = ip.ttl.wrapping_sub(1);
        ip.checksum = checksum::apply(checksum::apply(ip.checksum, TTL_DECREMENT), difference);
        ip.source = u32::from_ne_bytes(source.bytes);
        ip.destination = u32::from_ne_bytes(destination.bytes);
        Some(())
    }

    #[inline(always)]
    fn write_inner_ip(
        frame: &mut Frame,
        l3: usize,
        source: Addr4,
        destination: Addr4,
        difference: u16,
    ) -> Option<Sum> {
        let ip: &mut Ipv4 = frame.at_mut(l3)?;
        let old = ip.checksum;
        ip.checksum = checksum::apply(old, difference);
        let sum = Sum::default()
            .word(old, ip.checksum)
            .address(Addr4 { bytes: ip.source.to_ne_bytes() }, source)
            .address(Addr4 { bytes: ip.destination.to_ne_bytes() }, destination);
        ip.source = u32::from_ne_bytes(source.bytes);
        ip.destination = u32::from_ne_bytes(destination.bytes);
        Some(sum)
    }

    #[inline(always)]
    fn write_reply_ip(
        frame: &mut Frame,
        l3: usize,
        source: Addr4,
        destination: Addr4,
        ttl: u8,
    ) -> Option<()> {
        let ip: &mut Ipv4 = frame.at_mut(l3)?;
        let words = [ip.ttl, ttl].map(|ttl| u16::from_ne_bytes([ttl, ip.protocol]));
        ip.checksum = checksum::apply(ip.checksum, Sum::default().word(words[0], words[1]).fold());
        ip.ttl = ttl;
        ip.source = u32::from_ne_bytes(source.bytes);
        ip.destination = u32::from_ne_bytes(destination.bytes);
        Some(())
    }

    #[inline(always)]
    fn write_fresh_ip(
        frame: &mut Frame,
        l3: usize,
        source: Addr4,
        destination: Addr4,
        protocol: u8,
        payload: u16,
    ) -> Option<()> {
        let ip: &mut Ipv4 = frame.at_mut(l3)?;
        let total_length = (Self::HEADER as u16 + payload).to_be();
        let fragment = if protocol == PROTO_TCP { IPV4_DONT_FRAGMENT } else { 0 };
        let sum = Sum::default()
            .plus(u16::from_ne_bytes([0x45, 0]))
            .plus(total_length)
            .plus(fragment)
            .plus(u16::from_ne_bytes([FRESH_TTL, protocol]))
            .plus_address(source)
            .plus_address(destination);
        *ip = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_length,
            identification: 0,
            fragment,
            ttl: FRESH_TTL,
            protocol,
            checksum: !sum.fold(),
            source: u32::from_ne_bytes(source.bytes),
            destination: u32::from_ne_bytes(destination.bytes),
        };
        Some(())
    }

    #[inline(always)]
    fn icmp_pseudo_header(_source: Addr4, _destination: Addr4, _length: u16) -> Sum {
        Sum::default()
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        // Destination unreachable, time exceeded, parameter problem (RFC 792).
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn icmp_mtu(mtu: u16) -> u32 {
        u32::from(mtu).to_be()
    }

    #[inline(always)]
    fn half_open() -> (&'static HalfOpenRing<Addr4>, usize) {
        (&maps::HALF_OPEN_V4, 0)
    }

    #[inline(always)]
    fn connections() -> &'static Connections<Addr4> {
        &maps::CONNECTIONS_V4
    }

    #[inline(always)]
    fn opening() -> Option<&'static mut Opening<Addr4>> {
        // SAFETY: the slot belongs to this CPU, XDP programs do not interrupt each other on one CPU, and only
        // `flow::open` asks for it, once.
        maps::OPENING_V4.get_ptr_mut(0).map(|opening| unsafe { &mut *opening })
    }

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch<Addr4>> {
        // SAFETY: as in `opening`; each program asks for it once.
        maps::SCRATCH_V4.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
    }

    #[inline(always)]
    fn snat_addresses(settings: &Settings) -> u32 {
        u32::from(settings.snat_addresses_v4)
    }

    #[inline(always)]
    fn snat_address(ticket: u64, addresses: u32) -> Option<Addr4> {
        let index = ticket.checked_rem(u64::from(addresses))? as u32;
        maps::SNAT_ADDRESSES_V4.get(index).copied()
    }

    #[inline(always)]
    fn common_prefix(a: Addr4, b: Addr4) -> u32 {
        (u32::from_be_bytes(a.bytes) ^ u32::from_be_bytes(b.bytes)).leading_zeros()
    }

    #[inline(always)]
    fn ip_difference(addresses: u16) -> u16 {
        addresses
    }
}

impl Family for V6 {
    type Addr = Addr6;

    const HEADER: usize = 40;
    const ICMP: u8 = 58;
    const JOURNEY: u32 = 1;
    const BEGIN: u32 = 9;
    const ICMP_JOURNEY: u32 = 3;
    const RESET_JOURNEY: u32 = 5;
    const ERROR_JOURNEY: u32 = 7;
    const PORT_UNREACHABLE: (u8, u8) = (1, 4);
    const TOO_BIG: (u8, u8) = (2, 0);
    const ECHO: (u8, u8) = (128, 129);

    #[inline(always)]
    fn read_plain_ip(frame: &Frame, l3: usize) -> Option<IpFields<Addr6>> {
        let ip: &Ipv6 = frame.at(l3)?;
        is_version_6(ip).then(|| IpFields {
            source: address(ip.source),
            destination: address(ip.destination),
            protocol: ip.next_header,
            ttl: ip.hop_limit,
            header_length: Self::HEADER as u16,
            length: u16::from_be(ip.payload_length).saturating_add(Self::HEADER as u16),
            fragment: Fragment::WHOLE,
        })
    }

    #[inline(always)]
    fn read_ip(frame: &Frame, l3: usize) -> Option<IpFields<Addr6>> {
        let plain = Self::read_plain_ip(frame, l3)?;
        let extensions = read_extensions(frame, l3, plain.protocol)?;
        Some(IpFields {
            protocol: extensions.protocol,
            header_length: extensions.header_length as u16,
            fragment: extensions.fragment,
            ..plain
        })
    }

    #[inline(always)]
    fn write_ip(
        frame: &mut Frame,
        l3: usize,
        source: Addr6,
        destination: Addr6,
        _difference: u16,
    ) -> Option<()> {
        let ip: &mut Ipv6 = frame.at_mut(l3)?;
        ip.hop_limit = ip.hop_limit.wrapping_sub(1);
        ip.source = source.words();
        ip.destination = destination.words();
        Some(())
    }

    #[inline(always)]
    fn write_inner_ip(
        frame: &mut Frame,
        l3: usize,
        source: Addr6,
        destination: Addr6,
        _difference: u16,
    ) -> Option<Sum> {
        let ip: &mut Ipv6 = frame.at_mut(l3)?;
        let sum =
            Sum::default().address(address(ip.source), source).address(address(ip.destination), destination);
        ip.source = source.words();
        ip.destination = destination.words();
        Some(sum)
    }

    #[inline(always)]
    fn write_reply_ip(
        frame: &mut Frame,
        l3: usize,
        source: Addr6,
        destination: Addr6,
        ttl: u8,
    ) -> Option<()> {
        let ip: &mut Ipv6 = frame.at_mut(l3)?;
        ip.hop_limit = ttl;
        ip.source = source.words();
        ip.destination = destination.words();
        Some(())
    }

    #[inline(always)]
    fn write_fresh_ip(
        frame: &mut Frame,
        l3: usize,
        source: Addr6,
        destination: Addr6,
        protocol: u8,
        payload: u16,
    ) -> Option<()> {
        *frame.at_mut(l3)? = Ipv6 {
            version_class_flow: 0x6000_0000u32.to_be(),
            payload_length: payload.to_be(),
            next_header: protocol,
            hop_limit: FRESH_TTL,
            source: source.words(),
            destination: destination.words(),
        };
        Some(())
    }

    #[inline(always)]
    fn icmp_pseudo_header(source: Addr6, destination: Addr6, length: u16) -> Sum {
        Sum::default()
            .plus_address(source)
            .plus_address(destination)
            .plus(length.to_be())
            .plus(u16::from(Self::ICMP).to_be())
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        // Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn icmp_mtu(mtu: u16) -> u32 {
        u32::from(mtu).to_be()
    }

    #[inline(always)]
    fn half_open() -> (&'static HalfOpenRing<Addr6>, usize) {
        (&maps::HALF_OPEN_V6, 1)
    }

    #[inline(always)]
    fn connections() -> &'static Connections<Addr6> {
        &maps::CONNECTIONS_V6
    }

    #[inline(always)]
    fn opening() -> Option<&'static mut Opening<Addr6>> {
        // SAFETY: the slot belongs to this CPU, XDP programs do not interrupt each other on one CPU, and only
        // `flow::open` asks for it, once.
        maps::OPENING_V6.get_ptr_mut(0).map(|opening| unsafe { &mut *opening })
    }

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch<Addr6>> {
        // SAFETY: as in `opening`; each program asks for it once.
        maps::SCRATCH_V6.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
    }

    #[inline(always)]
    fn snat_addresses(settings: &Settings) -> u32 {
        u32::from(settings.snat_addresses_v6)
    }

    #[inline(always)]
    fn snat_address(ticket: u64, addresses: u32) -> Option<Addr6> {
        let index = ticket.checked_rem(u64::from(addresses))? as u32;
        maps::SNAT_ADDRESSES_V6.get(index).copied()
    }

    #[inline(always)]
    fn common_prefix(a: Addr6, b: Addr6) -> u32 {
        let ([a, b, c, d], [e, f, g, h]) = (a.words(), b.words());
        let differing = [a ^ e, b ^ f, c ^ g, d ^ h].map(|word| u32::from_be(word).leading_zeros());
        let mut common = 0;
        for bits in differing {
            common += bits;
            if bits < 32 {
                break;
            }
        }
        common
    }

    #[inline(always)]
    fn ip_difference(_addresses: u16) -> u16 {
        0
    }
}

/// Which part of a datagram these fields tell of.
#[inline(always)]
const fn fragment(offset: u16, more: u16, identification: u32) -> Fragment {
    match (offset, more) {
        (0, 0) => Fragment::WHOLE,
        (0, _) => Fragment { part: Fragment::FIRST, identification },
        _ => Fragment { part: Fragment::LATER, identification },
    }
}

#[inline(always)]
fn is_version_6(ip: &Ipv6) -> bool {
    ip.version_class_flow.to_ne_bytes()[0] >> 4 == 6
}

/// What follows an IPv6 header.
struct Extensions {
    protocol: u8,
    /// Bytes up to the transport header.
    header_length: usize,
    fragment: Fragment,
}

/// Walks over the extension headers up to TCP, UDP or ICMP, or to the payload of a later fragment (RFC 8200, 4).
#[inline(always)]
fn read_extensions(frame: &Frame, l3: usize, first: u8) -> Option<Extensions> {
    let (mut next, mut length, mut fragment) = (first, V6::HEADER, Fragment::WHOLE);
    for _ in 0..=EXTENSIONS {
        if next == PROTO_TCP || next == PROTO_UDP || next == V6::ICMP || fragment.is_later() {
            return Some(Extensions { protocol: next, header_length: length, fragment });
        }
        let extension: Extension = *frame.at(l3 + length)?;
        let mut bytes = 8 * (usize::from(extension.length) + 1);
        match next {
            NEXT_HOP_BY_HOP | NEXT_DESTINATION => {}
            // A router that is named there has to see the packet first.
            NEXT_ROUTING if extension.segments_left == 0 => {}
            NEXT_FRAGMENT => {
                let header: FragmentHeader = *frame.at(l3 + length)?;
                bytes = size_of::<FragmentHeader>();
                fragment = self::fragment(
                    header.offset & IPV6_FRAGMENT_OFFSET,
                    header.offset & IPV6_MORE_FRAGMENTS,
                    header.identification,
                );
            }
            _ => return None,
        }
        next = extension.next_header;
        length += bytes;
        if length > HEADERS_MASK {
            return None;
        }
        length = core::hint::black_box(length) & HEADERS_MASK;
    }
    None
}

#[inline(always)]
fn address([a, b, c, d]: [u32; 4]) -> Addr6 {
    let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] = [a, b, c, d].map(u32::to_ne_bytes);
    Addr6 { bytes: [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv6Addr;

    #[test]
    fn common_prefixes() {
        let v4 = |bytes| Addr4 { bytes };
        assert_eq!(V4::common_prefix(v4([10, 0, 1, 10]), v4([10, 0, 1, 11])), 31);
        assert_eq!(V4::common_prefix(v4([10, 0, 1, 10]), v4([10, 0, 2, 10])), 22);
        assert_eq!(V4::common_prefix(v4([10, 0, 1, 10]), v4([10, 0, 1, 10])), 32);
        let v6 = |text: &str| Addr6::from(text.parse::<Ipv6Addr>().unwrap());
        assert_eq!(V6::common_prefix(v6("fd00:1::10"), v6("fd00:1::11")), 127);
        assert_eq!(V6::common_prefix(v6("fd00:1::10"), v6("fd00:2::10")), 30);
        assert_eq!(V6::common_prefix(v6("fd00:1::10"), v6("fd00:1::10")), 128);
    }
}
