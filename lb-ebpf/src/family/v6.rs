//! IPv6.

use core::mem::offset_of;

use lb_common::lane::FAMILY_V6;
use lb_common::{
    Addr6, Address, AnswerBucket, CacheUse, CachedFlow, Course, FlowBucket, HalfOpen, Lane, PROTO_TCP,
    PROTO_UDP, Settings,
};

use super::{Direction, FRESH_TTL, Family, IpFields};
use crate::checksum::{Sum, WideSum};
use crate::frame::{Frame, L3};
use crate::maps::{self, AnswersMore, Connections, Opening, Scratch};
use crate::parse::Fragment;
use crate::wire::{
    Extension, FragmentHeader, Headers, IPV6_FRAGMENT_OFFSET, IPV6_MORE_FRAGMENTS, Ipv6, NEXT_DESTINATION,
    NEXT_FRAGMENT, NEXT_HOP_BY_HOP, NEXT_ROUTING, Wire,
};
use crate::word;

/// Extension headers that are followed: the five kinds RFC 8200 recommends at most, and one spare.
const EXTENSIONS: usize = 6;

/// Bytes of IPv6 header and extension headers that are followed; the verifier needs a bound that is a mask.
const HEADERS_MASK: usize = 0x1ff;

/// IPv6 (RFC 8200).
pub(crate) struct V6;

/// Offset of source and destination in a frame.
const ADDRESSES: i32 = (L3 + offset_of!(Ipv6, source)) as i32;

/// Offset of the transport header behind an IP header without extensions.
const L4: i32 = (L3 + V6::HEADER) as i32;

impl Family for V6 {
    type Addr = Addr6;
    type Ip = Ipv6;
    type Change = WideSum;

    const HEADER: usize = 40;
    const ICMP: u8 = 58;
    const NUMBER: u32 = FAMILY_V6;
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
        let (source, destination) = ip.addresses();
        is_version_6(ip).then(|| IpFields {
            source,
            destination,
            protocol: ip.next_header,
            ttl: ip.hop_limit,
            header_length: Self::HEADER as u16,
            length: u16::from_be(ip.payload_length).saturating_add(Self::HEADER as u16),
            fragment: Fragment::WHOLE,
            fragment_offset: 0,
        })
    }

    #[inline(always)]
    fn addresses<T: Wire>(headers: &Headers<Ipv6, T>) -> [u64; 4] {
        // SAFETY: all bytes are in the headers.
        unsafe {
            [
                word::load_double::<ADDRESSES, _>(headers),
                word::load_double::<{ ADDRESSES + 8 }, _>(headers),
                word::load_double::<{ ADDRESSES + 16 }, _>(headers),
                word::load_double::<{ ADDRESSES + 24 }, _>(headers),
            ]
        }
    }

    #[inline(always)]
    fn ports<T: Wire>(headers: &Headers<Ipv6, T>) -> u32 {
        // SAFETY: the transport header begins with them.
        unsafe { word::load::<L4, _>(headers) }
    }

    #[inline(always)]
    fn set_ports<T: Wire>(headers: &mut Headers<Ipv6, T>, ports: u32) {
        // SAFETY: as above; the headers are borrowed exclusively.
        unsafe { word::store::<L4, _>(headers, ports) }
    }

    #[inline(always)]
    fn protocol(ip: &Ipv6) -> u8 {
        ip.next_header
    }

    #[inline(always)]
    fn express_length<T: Wire>(Headers { ip, .. }: &Headers<Ipv6, T>) -> Option<u32> {
        let has_hops = ip.hop_limit > 1;
        (is_version_6(ip) && has_hops)
            .then(|| u32::from(u16::from_be(ip.payload_length)) + Self::HEADER as u32)
    }

    #[inline(always)]
    fn write_express<T: Wire>(headers: &mut Headers<Ipv6, T>, [a, b, c, d]: [u64; 4], _difference: u16) {
        headers.ip.hop_limit = headers.ip.hop_limit.wrapping_sub(1);
        // SAFETY: all bytes are in the headers, which are borrowed exclusively.
        unsafe {
            word::store_double::<ADDRESSES, _>(headers, a);
            word::store_double::<{ ADDRESSES + 8 }, _>(headers, b);
            word::store_double::<{ ADDRESSES + 16 }, _>(headers, c);
            word::store_double::<{ ADDRESSES + 24 }, _>(headers, d);
        }
    }

    #[inline(always)]
    fn read_ip(frame: &Frame, l3: usize) -> Option<IpFields<Addr6>> {
        let plain = Self::read_plain_ip(frame, l3)?;
        let extensions = read_extensions(frame, l3, plain.protocol)?;
        Some(IpFields {
            protocol: extensions.protocol,
            header_length: extensions.header_length as u16,
            fragment: extensions.fragment,
            fragment_offset: extensions.fragment_offset,
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
        ip.set_addresses(source, destination);
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
        let sum = Sum::default()
            .address(Addr6::from_words(ip.source), source)
            .address(Addr6::from_words(ip.destination), destination);
        (ip.source, ip.destination) = (source.words(), destination.words());
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
        ip.set_addresses(source, destination);
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
    fn half_open(slot: u32) -> Option<*mut HalfOpen<Addr6>> {
        maps::HALF_OPEN_V6.get_ptr_mut(slot)
    }

    #[inline(always)]
    fn flows_at(index: u32) -> Option<*mut FlowBucket> {
        maps::FLOWS_AT_V6.get_ptr_mut(index)
    }

    #[inline(always)]
    fn answers(index: u32) -> Option<*mut AnswerBucket<Addr6>> {
        maps::ANSWERS_V6.get_ptr_mut(index)
    }

    #[inline(always)]
    fn answers_more() -> &'static AnswersMore<Addr6> {
        &maps::ANSWERS_MORE_V6
    }

    #[inline(always)]
    fn cached(index: u32) -> Option<&'static mut CachedFlow<[u64; 4]>> {
        // SAFETY: the entry belongs to this CPU and XDP programs do not interrupt each other on one CPU; whoever asks for it
        // has no use for an earlier reference.
        maps::CACHED_V6.get_ptr_mut(index).map(|entry| unsafe { &mut *entry })
    }

    #[inline(always)]
    fn kept(_ip_difference: u16, _l4_difference: u16) -> [u16; 0] {
        []
    }

    #[inline(always)]
    fn course_difference(course: &Course<[u64; 4]>, arrives: u16, leaves: u16) -> u16 {
        let sum = WideSum::default().gone(course.arrives).come(course.leaves).port(arrives, leaves);
        match (course.hides_client, course.is_to_backend()) {
            (0, _) => sum.fold(),
            (_, true) => sum.come(course.snat).fold(),
            (_, false) => sum.gone(course.snat).fold(),
        }
    }

    #[inline(always)]
    fn changes<D: Direction>(
        own: &CachedFlow<[u64; 4]>,
        course: &Course<[u64; 4]>,
        port: u16,
    ) -> (u16, WideSum) {
        let mut sum = WideSum::default().difference(course.difference).port(port, own.port);
        if course.hides_client != 0 {
            sum = if D::IS_TO_BACKEND { sum.gone(own.client) } else { sum.come(own.client) };
        }
        (0, sum)
    }

    #[inline(always)]
    fn lane(index: u32) -> Option<&'static mut Lane<[u64; 4]>> {
        // SAFETY: as in `cached`.
        maps::LANES_V6.get_ptr_mut(index).map(|lane| unsafe { &mut *lane })
    }

    #[inline(always)]
    fn lanes() -> u32 {
        maps::LANES_V6_PER_CPU.load()
    }

    #[inline(always)]
    fn cache_use(cpu: u32) -> &'static mut CacheUse {
        // SAFETY: as in `cached`; the controller loads nothing where there are more CPUs than values.
        unsafe { &mut *maps::CACHE_USE_V6.at(cpu) }
    }

    #[inline(always)]
    fn cache_entries() -> u32 {
        maps::CACHED_V6_PER_CPU.load()
    }

    #[inline(always)]
    fn connections() -> &'static Connections<Addr6> {
        &maps::CONNECTIONS_V6
    }

    #[inline(always)]
    fn opening() -> Option<&'static mut Opening<Addr6>> {
        // SAFETY: the slot belongs to this CPU, and XDP programs do not interrupt each other on one CPU. Whoever asks for
        // it has no use for what an earlier reference points to.
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
    fragment_offset: u16,
}

/// Walks over the extension headers up to TCP, UDP or ICMP, or to the payload of a later fragment (RFC 8200, 4).
#[inline(always)]
fn read_extensions(frame: &Frame, l3: usize, first: u8) -> Option<Extensions> {
    let (mut next, mut length, mut fragment, mut fragment_offset) = (first, V6::HEADER, Fragment::WHOLE, 0);
    for _ in 0..=EXTENSIONS {
        if next == PROTO_TCP || next == PROTO_UDP || next == V6::ICMP || fragment.is_later() {
            return Some(Extensions { protocol: next, header_length: length, fragment, fragment_offset });
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
                fragment_offset = u16::from_be(header.offset & IPV6_FRAGMENT_OFFSET);
                fragment = Fragment::of(
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

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv6Addr;

    #[test]
    fn common_prefixes() {
        let v6 = |text: &str| Addr6::from(text.parse::<Ipv6Addr>().unwrap());
        assert_eq!(V6::common_prefix(v6("fd00:1::10"), v6("fd00:1::11")), 127);
        assert_eq!(V6::common_prefix(v6("fd00:1::10"), v6("fd00:2::10")), 30);
        assert_eq!(V6::common_prefix(v6("fd00:1::10"), v6("fd00:1::10")), 128);
    }
}
