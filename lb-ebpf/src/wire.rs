//! Headers as they are on the wire. Multi-byte fields hold network order.
//!
//! `packed(2)`: every header of layers 2 to 4 starts at an even offset and has an even length, so two-byte
//! loads are always aligned; `packed(1)` would make the compiler load single bytes.

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

/// More-fragments flag and offset of [`Ipv4::fragment`]: zero for a whole packet.
pub(crate) const IPV4_FRAGMENT: u16 = 0x3fffu16.to_be();
/// Offset of [`Ipv4::fragment`]: zero for the first fragment and for a whole packet.
pub(crate) const IPV4_FRAGMENT_OFFSET: u16 = 0x1fffu16.to_be();

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

/// What TCP and UDP begin with.
#[derive(Clone, Copy)]
#[repr(C, packed(2))]
pub(crate) struct Ports {
    pub(crate) source: u16,
    pub(crate) destination: u16,
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

macro_rules! wire {
    ($($header:ty = $size:literal),+ $(,)?) => {$(
        // SAFETY: repr(C, packed(2)) of integers; the size below shows that there is no padding.
        unsafe impl Wire for $header {}
        const _: () = assert!(size_of::<$header>() == $size);
    )+};
}

wire!(Ethernet = 14, Ipv4 = 20, Ipv6 = 40, Ports = 4, Tcp = 20, Udp = 8);
