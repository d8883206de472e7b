//! IPv4.

use core::mem::offset_of;

use lb_common::cache::Differences;
use lb_common::lane::FAMILY_V4;
use lb_common::{
    Addr4, AnswerBucket, CacheUse, CachedFlow, Course, FlowBucket, HalfOpen, Lane, PROTO_TCP, Settings,
};

use super::{Direction, FRESH_TTL, Family, IpFields};
use crate::checksum::{self, Sum, TTL_DECREMENT};
use crate::frame::{Frame, L3};
use crate::maps::{self, AnswersMore, Connections, Opening, Scratch};
use crate::parse::Fragment;
use crate::wire::{Headers, IPV4_DONT_FRAGMENT, IPV4_FRAGMENT_OFFSET, IPV4_MORE_FRAGMENTS, Ipv4, Wire};
use crate::word;

/// IPv4 (RFC 791).
pub(crate) struct V4;

/// Offset of source and destination in a frame.
const ADDRESSES: i32 = (L3 + offset_of!(Ipv4, source)) as i32;

/// Offset of the transport header behind an IP header without options.
const L4: i32 = (L3 + V4::HEADER) as i32;

impl Family for V4 {
    type Addr = Addr4;
    type Ip = Ipv4;
    type Change = u16;

    const HEADER: usize = 20;
    const ICMP: u8 = 1;
    const NUMBER: u32 = FAMILY_V4;
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
        let ip: &Ipv4 = frame.at(l3)?;
        let (source, destination) = ip.addresses();
        ip.is_plain().then(|| IpFields {
            source,
            destination,
            protocol: ip.protocol,
            ttl: ip.ttl,
            header_length: Self::HEADER as u16,
            length: u16::from_be(ip.total_length),
            fragment: Fragment::WHOLE,
            fragment_offset: 0,
        })
    }

    #[inline(always)]
    fn addresses<T: Wire>(headers: &Headers<Ipv4, T>) -> [u64; 1] {
        // SAFETY: all bytes are in the headers.
        unsafe { [word::load_double::<ADDRESSES, _>(headers)] }
    }

    #[inline(always)]
    fn ports<T: Wire>(headers: &Headers<Ipv4, T>) -> u32 {
        // SAFETY: the transport header begins with them.
        unsafe { word::load::<L4, _>(headers) }
    }

    #[inline(always)]
    fn set_ports<T: Wire>(headers: &mut Headers<Ipv4, T>, ports: u32) {
        // SAFETY: as above; the headers are borrowed exclusively.
        unsafe { word::store::<L4, _>(headers, ports) }
    }

    #[inline(always)]
    fn protocol(ip: &Ipv4) -> u8 {
        ip.protocol
    }

    #[inline(always)]
    fn express_length<T: Wire>(headers: &Headers<Ipv4, T>) -> Option<u32> {
        let ip = &headers.ip;
        // SAFETY: all bytes are in the headers.
        let is_plain = Ipv4::begins_plainly(unsafe { word::load_double::<{ L3 as i32 }, _>(headers) });
        let has_hops = ip.ttl > 1;
        (is_plain && has_hops).then(|| u16::from_be(ip.total_length).into())
    }

    #[inline(always)]
    fn write_express<T: Wire>(headers: &mut Headers<Ipv4, T>, [addresses]: [u64; 1], difference: u16) {
        let ip = &mut headers.ip;
        ip.ttl = ip.ttl.wrapping_sub(1);
        ip.checksum = checksum::apply(ip.checksum, difference);
        // SAFETY: all bytes are in the headers, which are borrowed exclusively.
        unsafe { word::store_double::<ADDRESSES, _>(headers, addresses) }
    }

    #[inline(always)]
    fn read_ip(frame: &Frame, l3: usize) -> Option<IpFields<Addr4>> {
        let ip: &Ipv4 = frame.at(l3)?;
        let (source, destination) = ip.addresses();
        let header_length = u16::from(ip.version_ihl & 0x0f) * 4;
        if ip.version_ihl >> 4 != 4 || header_length < Self::HEADER as u16 {
            return None;
        }
        Some(IpFields {
            source,
            destination,
            protocol: ip.protocol,
            ttl: ip.ttl,
            header_length,
            length: u16::from_be(ip.total_length),
            fragment: Fragment::of(
                ip.fragment & IPV4_FRAGMENT_OFFSET,
                ip.fragment & IPV4_MORE_FRAGMENTS,
                u32::from(ip.identification),
            ),
            fragment_offset: u16::from_be(ip.fragment & IPV4_FRAGMENT_OFFSET) << 3,
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
        ip.set_addresses(source, destination);
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
        let before = ip.addresses();
        let sum =
            Sum::default().word(old, ip.checksum).address(before.0, source).address(before.1, destination);
        ip.set_addresses(source, destination);
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
        ip.set_addresses(source, destination);
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
    fn half_open(slot: u32) -> Option<*mut HalfOpen<Addr4>> {
        maps::HALF_OPEN_V4.get_ptr_mut(slot)
    }

    #[inline(always)]
    fn flows_at(index: u32) -> Option<*mut FlowBucket> {
        maps::FLOWS_AT_V4.get_ptr_mut(index)
    }

    #[inline(always)]
    fn answers(index: u32) -> Option<*mut AnswerBucket<Addr4>> {
        maps::ANSWERS_V4.get_ptr_mut(index)
    }

    #[inline(always)]
    fn answers_more() -> &'static AnswersMore<Addr4> {
        &maps::ANSWERS_MORE_V4
    }

    #[inline(always)]
    fn cached(index: u32) -> Option<&'static mut CachedFlow<[u64; 1]>> {
        // SAFETY: the entry belongs to this CPU and XDP programs do not interrupt each other on one CPU; whoever asks for it
        // has no use for an earlier reference.
        maps::CACHED_V4.get_ptr_mut(index).map(|entry| unsafe { &mut *entry })
    }

    #[inline(always)]
    fn kept(ip_difference: u16, l4_difference: u16) -> Differences {
        Differences { ip: checksum::both(ip_difference, TTL_DECREMENT), l4: l4_difference }
    }

    #[inline(always)]
    fn course_difference(_course: &Course<[u64; 1]>, _arrives: u16, _leaves: u16) -> u16 {
        0
    }

    #[inline(always)]
    fn changes<D: Direction>(
        own: &CachedFlow<[u64; 1]>,
        _course: &Course<[u64; 1]>,
        _port: u16,
    ) -> (u16, u16) {
        let Differences { ip, l4 } = own.differences;
        (ip, l4)
    }

    #[inline(always)]
    fn lane(index: u32) -> Option<&'static mut Lane<[u64; 1]>> {
        // SAFETY: as in `cached`.
        maps::LANES_V4.get_ptr_mut(index).map(|lane| unsafe { &mut *lane })
    }

    #[inline(always)]
    fn lanes() -> u32 {
        maps::LANES_V4_PER_CPU.load()
    }

    #[inline(always)]
    fn cache_use(cpu: u32) -> &'static mut CacheUse {
        // SAFETY: as in `cached`; the controller loads nothing where there are more CPUs than values.
        unsafe { &mut *maps::CACHE_USE_V4.at(cpu) }
    }

    #[inline(always)]
    fn cache_entries() -> u32 {
        maps::CACHED_V4_PER_CPU.load()
    }

    #[inline(always)]
    fn connections() -> &'static Connections<Addr4> {
        &maps::CONNECTIONS_V4
    }

    #[inline(always)]
    fn opening() -> Option<&'static mut Opening<Addr4>> {
        // SAFETY: the slot belongs to this CPU, and XDP programs do not interrupt each other on one CPU. Whoever asks for
        // it has no use for what an earlier reference points to.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_prefixes() {
        let v4 = |bytes| Addr4 { bytes };
        assert_eq!(V4::common_prefix(v4([10, 0, 1, 10]), v4([10, 0, 1, 11])), 31);
        assert_eq!(V4::common_prefix(v4([10, 0, 1, 10]), v4([10, 0, 2, 10])), 22);
        assert_eq!(V4::common_prefix(v4([10, 0, 1, 10]), v4([10, 0, 1, 10])), 32);
    }
}
