//! Headers as they are on the wire. Multi-byte fields hold network order.
//!
//! `packed(2)`: every header of layers 2 to 4 starts at an even offset and has an even length, so two-byte
//! loads are always aligned; `packed(1)` would make the compiler load single bytes.

use lb_common::{Addr4, Addr6, Address};

use crate::word;

/// A header that may be laid over packet bytes.
///
/// # Safety
///
/// The type must be `repr(C)`, valid for every bit pattern, without padding, and of an alignment of at most 2.
pub(crate) unsafe trait Wire: Copy {}

/// Ethernet type of IPv4, as read from the wire.
pub(crate) const ETHER_IPV4: u16 = 0x0800u16.to_be();
/// Ethernet type of IPv6 (RFC 2464), as read from the wire.
pub(crate) const ETHER_IPV6: u16 = 0x86ddu16.to_be();

/// Ethernet type of an IEEE 802.1Q tag, as read from the wire.
pub(crate) const ETHER_VLAN: u16 = 0x8100u16.to_be();
/// Ethernet type of an IEEE 802.1ad service tag, as read from the wire.
pub(crate) const ETHER_SERVICE_VLAN: u16 = 0x88a8u16.to_be();

/// A VLAN tag behind the Ethernet header or another tag (IEEE 802.1Q).
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct VlanTag {
    pub(crate) control: u16,
    pub(crate) ether_type: u16,
}

/// Ethernet II, without tags.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct Ethernet {
    /// Destination MAC as three words.
    pub(crate) destination: [u16; 3],
    /// Source MAC as three words.
    pub(crate) source: [u16; 3],
    pub(crate) ether_type: u16,
}

impl Ethernet {
    /// Both addresses, destination first, as three words.
    #[inline(always)]
    pub(crate) fn addresses(&self) -> [u32; 3] {
        // SAFETY: all words are in the header.
        unsafe { [word::load::<0, _>(self), word::load::<4, _>(self), word::load::<8, _>(self)] }
    }

    /// The first eight bytes of both addresses, and eight from the fifth on.
    #[inline(always)]
    pub(crate) fn address_doubles(&self) -> [u64; 2] {
        // SAFETY: all bytes are in the header.
        unsafe { [word::load_double::<0, _>(self), word::load_double::<4, _>(self)] }
    }

    /// Writes both addresses, destination first: the first eight bytes, and the other four.
    #[inline(always)]
    pub(crate) fn set_address_words(&mut self, (first, rest): (u64, u32)) {
        // SAFETY: all bytes are in the header, which is borrowed exclusively.
        unsafe {
            word::store_double::<0, _>(self, first);
            word::store::<8, _>(self, rest);
        }
    }

    /// Writes both addresses.
    #[inline(always)]
    pub(crate) fn set_addresses(&mut self, [a, b, c]: [u32; 3]) {
        // SAFETY: all words are in the header, which is borrowed exclusively.
        unsafe {
            word::store::<0, _>(self, a);
            word::store::<4, _>(self, b);
            word::store::<8, _>(self, c);
        }
    }
}

/// IPv4 (RFC 791), without options.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct Ipv4 {
    pub(crate) version_ihl: u8,
    pub(crate) tos: u8,
    pub(crate) total_length: u16,
    pub(crate) identification: u16,
    /// Flags and fragment offset.
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) checksum: u16,
    pub(crate) source: u32,
    pub(crate) destination: u32,
}

impl Ipv4 {
    /// Whether it has no options and the packet is whole.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        // SAFETY: all bytes are in the header.
        Self::begins_plainly(unsafe { word::load_double::<0, _>(self) })
    }

    /// The same, by its first eight bytes.
    #[inline(always)]
    pub(crate) const fn begins_plainly(bytes: u64) -> bool {
        const FRAGMENT: [u8; 2] = IPV4_FRAGMENT.to_ne_bytes();
        const LOOKED_AT: u64 = u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, FRAGMENT[0], FRAGMENT[1]]);
        const PLAIN: u64 = u64::from_ne_bytes([0x45, 0, 0, 0, 0, 0, 0, 0]);
        bytes & LOOKED_AT == PLAIN
    }

    /// Source and destination.
    #[inline(always)]
    pub(crate) fn addresses(&self) -> (Addr4, Addr4) {
        // SAFETY: both words are in the header.
        let words = unsafe { (word::load::<12, _>(self), word::load::<16, _>(self)) };
        (Addr4 { bytes: words.0.to_ne_bytes() }, Addr4 { bytes: words.1.to_ne_bytes() })
    }

    /// Writes source and destination.
    #[inline(always)]
    pub(crate) fn set_addresses(&mut self, source: Addr4, destination: Addr4) {
        // SAFETY: both words are in the header, which is borrowed exclusively.
        unsafe {
            word::store::<12, _>(self, u32::from_ne_bytes(source.bytes));
            word::store::<16, _>(self, u32::from_ne_bytes(destination.bytes));
        }
    }
}

/// More-fragments flag and offset of [`Ipv4::fragment`]: zero for a whole packet.
pub(crate) const IPV4_FRAGMENT: u16 = 0x3fffu16.to_be();
/// Offset of [`Ipv4::fragment`]: zero for the first fragment and for a whole packet.
pub(crate) const IPV4_FRAGMENT_OFFSET: u16 = 0x1fffu16.to_be();

/// More-fragments flag of [`Ipv4::fragment`].
pub(crate) const IPV4_MORE_FRAGMENTS: u16 = 0x2000u16.to_be();
/// Don't-fragment flag of [`Ipv4::fragment`].
pub(crate) const IPV4_DONT_FRAGMENT: u16 = 0x4000u16.to_be();

/// IPv6 (RFC 8200).
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct Ipv6 {
    pub(crate) version_class_flow: u32,
    pub(crate) payload_length: u16,
    pub(crate) next_header: u8,
    pub(crate) hop_limit: u8,
    pub(crate) source: [u32; 4],
    pub(crate) destination: [u32; 4],
}

impl Ipv6 {
    /// Source and destination.
    #[inline(always)]
    pub(crate) fn addresses(&self) -> (Addr6, Addr6) {
        // SAFETY: all words are in the header.
        let (source, destination) = unsafe {
            (
                [
                    word::load::<8, _>(self),
                    word::load::<12, _>(self),
                    word::load::<16, _>(self),
                    word::load::<20, _>(self),
                ],
                [
                    word::load::<24, _>(self),
                    word::load::<28, _>(self),
                    word::load::<32, _>(self),
                    word::load::<36, _>(self),
                ],
            )
        };
        (Addr6::from_words(source), Addr6::from_words(destination))
    }

    /// Writes source and destination.
    #[inline(always)]
    pub(crate) fn set_addresses(&mut self, source: Addr6, destination: Addr6) {
        let ([a, b, c, d], [e, f, g, h]) = (source.words(), destination.words());
        // SAFETY: all words are in the header, which is borrowed exclusively.
        unsafe {
            word::store::<8, _>(self, a);
            word::store::<12, _>(self, b);
            word::store::<16, _>(self, c);
            word::store::<20, _>(self, d);
            word::store::<24, _>(self, e);
            word::store::<28, _>(self, f);
            word::store::<32, _>(self, g);
            word::store::<36, _>(self, h);
        }
    }
}

/// What the extension headers of IPv6 begin with (RFC 8200, 4.2).
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct Extension {
    pub(crate) next_header: u8,
    /// Units of 8 bytes behind the first 8.
    pub(crate) length: u8,
    /// Of a routing header: its type.
    pub(crate) kind: u8,
    /// Of a routing header: hops still to be visited.
    pub(crate) segments_left: u8,
}

/// Hop-by-hop options header.
pub(crate) const NEXT_HOP_BY_HOP: u8 = 0;
/// Routing header.
pub(crate) const NEXT_ROUTING: u8 = 43;
/// Fragment header.
pub(crate) const NEXT_FRAGMENT: u8 = 44;
/// Destination options header.
pub(crate) const NEXT_DESTINATION: u8 = 60;

/// Fragment header of IPv6 (RFC 8200, 4.5).
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct FragmentHeader {
    pub(crate) next_header: u8,
    pub(crate) reserved: u8,
    /// Offset, two reserved bits, more-fragments flag.
    pub(crate) offset: u16,
    pub(crate) identification: u32,
}

/// More-fragments flag of [`FragmentHeader::offset`].
pub(crate) const IPV6_MORE_FRAGMENTS: u16 = 1u16.to_be();
/// The offset in [`FragmentHeader::offset`].
pub(crate) const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8u16.to_be();

/// ICMP and ICMPv6: what echo messages and errors begin with (RFC 792, RFC 4443).
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct Icmp {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    pub(crate) checksum: u16,
    /// Unused, or an MTU, a pointer, an identifier.
    pub(crate) rest: u32,
}

/// What TCP and UDP begin with.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct Ports {
    pub(crate) source: u16,
    pub(crate) destination: u16,
}

impl Ports {
    /// Writes both, as they are in a packet.
    #[inline(always)]
    pub(crate) fn set(&mut self, ports: u32) {
        // SAFETY: all bytes are in the header, which is borrowed exclusively.
        unsafe { word::store::<0, _>(self, ports) }
    }
}

/// TCP (RFC 9293), without options.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct Tcp {
    pub(crate) ports: Ports,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) data_offset: u8,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) checksum: u16,
    pub(crate) urgent: u16,
}

/// TCP FIN.
pub(crate) const TCP_FIN: u8 = 0x01;
/// TCP SYN.
pub(crate) const TCP_SYN: u8 = 0x02;
/// TCP RST.
pub(crate) const TCP_RST: u8 = 0x04;
/// TCP ACK.
pub(crate) const TCP_ACK: u8 = 0x10;

/// UDP (RFC 768).
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct Udp {
    pub(crate) ports: Ports,
    pub(crate) length: u16,
    pub(crate) checksum: u16,
}

/// All headers of a frame without tags, options or extension headers. Asked for at once, they take one look at its length.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Headers<I, T> {
    pub(crate) ethernet: Ethernet,
    pub(crate) ip: I,
    pub(crate) transport: T,
}

// SAFETY: repr(C) of headers, whose alignment is at most 2 and whose lengths are even: so there is no padding.
unsafe impl<I: Wire, T: Wire> Wire for Headers<I, T> {}

impl<I: Wire> Headers<I, Tcp> {
    /// The same bytes, as they are with UDP.
    #[inline(always)]
    pub(crate) fn with_udp(&mut self) -> &mut Headers<I, Udp> {
        // SAFETY: a UDP header is shorter, is aligned in the same way, and is valid for all bytes.
        unsafe { &mut *(&raw mut *self).cast() }
    }
}

macro_rules! wire {
    ($($header:ty = $size:literal),+ $(,)?) => {$(
        // SAFETY: repr(C, packed(2)) of integers; the size below shows that there is no padding.
        unsafe impl Wire for $header {}
        const _: () = assert!(size_of::<$header>() == $size);
    )+};
}

/// A 16-bit word, for sums over whole headers.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct Word(pub(crate) u16);

wire!(
    Ethernet = 14,
    VlanTag = 4,
    Ipv4 = 20,
    Ipv6 = 40,
    Extension = 4,
    FragmentHeader = 8,
    Icmp = 8,
    Ports = 4,
    Tcp = 20,
    Udp = 8,
    Word = 2,
);
