//! What differs between IPv4 and IPv6. Everything else is written once, for both, and compiled for each.

use lb_common::{Addr4, Addr6, Address, Flow, Settings};

use crate::checksum::{self, TTL_DECREMENT};
use crate::frame::Frame;
use crate::maps::{self, Connections, Opening};
use crate::wire::{Ipv4, Ipv6};

/// Offset of the IP header: frames with VLAN tags go to the kernel.
pub(crate) const L3: usize = 14;

/// The fields of an IP header that the journey needs.
pub(crate) struct IpFields<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    /// Bytes of the IP header, options included.
    pub(crate) header_length: u16,
    /// Bytes of the packet from the IP header on.
    pub(crate) length: u16,
    pub(crate) is_fragment: bool,
}

/// An IP version.
pub(crate) trait Family {
    /// Its addresses.
    type Addr: Address + 'static;

    /// Reads the IP header; `None` if it is not one of this version or is cut off.
    fn read_ip(frame: &Frame) -> Option<IpFields<Self::Addr>>;

    /// Writes the addresses of a flow, decrements TTL and sets the header checksum right.
    fn write_ip(frame: &mut Frame, flow: &Flow<Self::Addr>) -> Option<()>;

    /// Its connection map.
    fn connections() -> &'static Connections<Self::Addr>;

    /// This CPU's scratch memory for a flow in the making.
    fn opening() -> Option<&'static mut Opening<Self::Addr>>;

    /// The SNAT address number `index`, counted round; `None` if the configuration names none.
    fn snat_address(settings: &Settings, index: u32) -> Option<Self::Addr>;

    /// How many leading bits two addresses share.
    fn common_prefix(a: Self::Addr, b: Self::Addr) -> u32;

    /// The difference that translating addresses makes to the header checksum; 0 where there is none.
    fn ip_difference(addresses: u16) -> u16;
}

/// IPv4 (RFC 791).
pub(crate) struct V4;
/// IPv6 (RFC 8200).
pub(crate) struct V6;

impl Family for V4 {
    type Addr = Addr4;

    #[inline(always)]
    fn read_ip(frame: &Frame) -> Option<IpFields<Addr4>> {
        let ip: Ipv4 = *frame.at(L3)?;
        // What follows the header of a later fragment are no ports.
        if ip.version_ihl >> 4 != 4 || ip.fragment & crate::wire::IPV4_FRAGMENT_OFFSET != 0 {
            return None;
        }
        Some(IpFields {
            source: Addr4 { bytes: ip.source.to_ne_bytes() },
            destination: Addr4 { bytes: ip.destination.to_ne_bytes() },
            protocol: ip.protocol,
            ttl: ip.ttl,
            header_length: u16::from(ip.version_ihl & 0x0f) * 4,
            length: u16::from_be(ip.total_length),
            is_fragment: ip.fragment & crate::wire::IPV4_FRAGMENT != 0,
        })
    }

    #[inline(always)]
    fn write_ip(frame: &mut Frame, flow: &Flow<Addr4>) -> Option<()> {
        let ip: &mut Ipv4 = frame.at_mut(L3)?;
        ip.ttl = ip.ttl.wrapping_sub(1);
        ip.checksum = checksum::apply(checksum::apply(ip.checksum, TTL_DECREMENT), flow.ip_difference);
        ip.source = u32::from_ne_bytes(flow.source.bytes);
        ip.destination = u32::from_ne_bytes(flow.destination.bytes);
        Some(())
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
    fn snat_address(settings: &Settings, index: u32) -> Option<Addr4> {
        let index = index.checked_rem(u32::from(settings.snat_addresses_v4))?;
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

    #[inline(always)]
    fn read_ip(frame: &Frame) -> Option<IpFields<Addr6>> {
        let ip: &Ipv6 = frame.at(L3)?;
        if ip.version_class_flow.to_ne_bytes().first()? >> 4 != 6 {
            return None;
        }
        Some(IpFields {
            source: address(ip.source),
            destination: address(ip.destination),
            protocol: ip.next_header,
            ttl: ip.hop_limit,
            header_length: size_of::<Ipv6>() as u16,
            length: u16::from_be(ip.payload_length).saturating_add(size_of::<Ipv6>() as u16),
            is_fragment: false,
        })
    }

    #[inline(always)]
    fn write_ip(frame: &mut Frame, flow: &Flow<Addr6>) -> Option<()> {
        let ip: &mut Ipv6 = frame.at_mut(L3)?;
        ip.hop_limit = ip.hop_limit.wrapping_sub(1);
        ip.source = flow.source.words();
        ip.destination = flow.destination.words();
        Some(())
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
    fn snat_address(settings: &Settings, index: u32) -> Option<Addr6> {
        let index = index.checked_rem(u32::from(settings.snat_addresses_v6))?;
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
