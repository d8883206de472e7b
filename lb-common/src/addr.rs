//! IP addresses as they stand in the maps: bytes in network order, aligned so that the compiler copies whole
//! words (the BPF target splits unaligned copies into single bytes).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cache::Pair;
use crate::pod;

/// An IPv4 address, network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct Addr4 {
    /// The four bytes as they are on the wire.
    pub bytes: [u8; 4],
}

/// An IPv6 address, network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct Addr6 {
    /// The sixteen bytes as they are on the wire.
    pub bytes: [u8; 16],
}

pod!(Addr4, Addr6);

/// What the packet path needs of an address, whichever family it is of.
pub trait Address: Copy + PartialEq {
    /// The IP version: 4 or 6.
    const VERSION: u8;

    /// Two of them as machine words.
    type Pair: Pair;

    /// Source and destination as they follow each other in a packet.
    #[inline(always)]
    fn pair(source: Self, destination: Self) -> Self::Pair {
        Self::Pair::of(source.half(), destination.half())
    }

    /// Whether it is the same address, word by word.
    #[inline(always)]
    fn is(self, other: Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.words(), other.words());
        a == e && (Self::VERSION == 4 || b == f && c == g && d == h)
    }

    /// The address as half of such a pair.
    fn half(self) -> <Self::Pair as Pair>::Half;

    /// The address in the form the family-neutral maps hold: IPv4 as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2).
    fn widen(self) -> Addr6;

    /// The inverse of [`Address::widen`]; of an address of the other family it takes the last bytes.
    fn narrow(wide: Addr6) -> Self;

    /// The address as 32-bit words for hashing; unused words are zero.
    fn words(self) -> [u32; 4];
}

impl Address for Addr4 {
    const VERSION: u8 = 4;

    type Pair = [u64; 1];

    #[inline(always)]
    fn half(self) -> u32 {
        self.words()[0]
    }

    #[inline(always)]
    fn widen(self) -> Addr6 {
        Addr6::from_words([0, 0, MAPPED, u32::from_ne_bytes(self.bytes)])
    }

    #[inline(always)]
    fn narrow(wide: Addr6) -> Self {
        let [.., word] = wide.words();
        Self { bytes: word.to_ne_bytes() }
    }

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [u32::from_ne_bytes(self.bytes), 0, 0, 0]
    }
}

impl Addr6 {
    /// The address of four words, as [`Address::words`] gives them.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // SAFETY: both are 16 bytes, aligned as words, and every bit pattern is one of either. Byte by byte, the compiler would
        // take the words apart.
        unsafe { core::mem::transmute::<[u32; 4], Self>(words) }
    }
}

impl Address for Addr6 {
    const VERSION: u8 = 6;

    type Pair = [u64; 4];

    #[inline(always)]
    fn half(self) -> [u64; 2] {
        let [a, b, c, d] = self.words();
        [double_word(a, b), double_word(c, d)]
    }

    #[inline(always)]
    fn widen(self) -> Addr6 {
        self
    }

    #[inline(always)]
    fn narrow(wide: Addr6) -> Self {
        wide
    }

    #[inline(always)]
    fn words(self) -> [u32; 4] {
        // SAFETY: as in `from_words`.
        unsafe { core::mem::transmute::<Self, [u32; 4]>(self) }
    }
}

/// Two words that follow each other in memory, as one.
#[inline(always)]
pub(crate) const fn double_word(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        (first as u64) << 32 | second as u64
    }
}

impl Addr6 {
    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    pub fn is_ipv4_mapped(&self) -> bool {
        matches!(self.words(), [0, 0, MAPPED, _])
    }
}

/// Third word of an IPv4-mapped address (RFC 4291, 2.5.5.2).
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl From<Ipv4Addr> for Addr4 {
    fn from(address: Ipv4Addr) -> Self {
        Self { bytes: address.octets() }
    }
}

impl From<Ipv6Addr> for Addr6 {
    fn from(address: Ipv6Addr) -> Self {
        Self { bytes: address.octets() }
    }
}

impl From<IpAddr> for Addr6 {
    /// The family-neutral form: IPv4 becomes IPv4-mapped.
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Addr4::from(v4).widen(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Addr4> for IpAddr {
    fn from(address: Addr4) -> Self {
        Ipv4Addr::from(address.bytes).into()
    }
}

impl From<Addr6> for IpAddr {
    /// IPv4-mapped addresses come back as IPv4.
    fn from(address: Addr6) -> Self {
        Ipv6Addr::from(address.bytes).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_survives_the_family_neutral_form() {
        let address = Addr4::from(Ipv4Addr::new(10, 0, 1, 100));
        assert_eq!(Addr4::narrow(address.widen()), address);
        assert_eq!(IpAddr::from(address.widen()), IpAddr::from(address));
        assert!(address.widen().is_ipv4_mapped());
        assert!(!Addr6::from(Ipv6Addr::LOCALHOST).is_ipv4_mapped());
    }
}
