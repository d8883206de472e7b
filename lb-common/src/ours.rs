//! Sets of ports and of addresses, a bit each, which the packet path asks before it looks anything up: a bit that is not
//! set settles most cases for the price of one array lookup.

use crate::Address;

/// Words of 64 bits in each of the maps `reserved_ports`, `listener_ports` and `our_addresses`.
pub const BIT_WORDS: u32 = 1024;

/// Where a port or an address stands in such a map. An address shares its bit with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit(u16);

impl Bit {
    /// That of a port, host order.
    #[inline(always)]
    pub const fn of_port(port: u16) -> Self {
        Self(port)
    }

    /// That of an address, in the form of its own family.
    #[inline(always)]
    pub fn of_address<A: Address>(address: A) -> Self {
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let double = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let [a, b, c, d] = address.words();
        let first = double(a, b).wrapping_mul(FACTOR);
        let product =
            if A::VERSION == 4 { first } else { (first ^ (first >> 32) ^ double(c, d)).wrapping_mul(FACTOR) };
        Self((product >> 48) as u16)
    }

    /// Index of its word.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0 as u32 >> 6
    }

    /// The bit in its word.
    #[inline(always)]
    pub const fn mask(self) -> u64 {
        1 << (self.0 & 63)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Addr4, Addr6};

    #[test]
    fn a_port_has_a_bit_of_its_own() {
        let bits =
            [0, 63, 64, 443, u16::MAX].map(|port| (Bit::of_port(port).word(), Bit::of_port(port).mask()));
        assert_eq!(bits, [(0, 1), (0, 1 << 63), (1, 1), (6, 1 << 59), (BIT_WORDS - 1, 1 << 63)]);
    }

    #[test]
    fn neighbouring_addresses_rarely_share_a_bit() {
        let mut words = [[0_u64; BIT_WORDS as usize]; 2];
        let mut add = |family: usize, bit: Bit| words[family][bit.word() as usize] |= bit.mask();
        for host in 0..=u8::MAX {
            add(0, Bit::of_address(Addr4 { bytes: [10, 0, 1, host] }));
            let mut bytes = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
            bytes[15] = host;
            add(1, Bit::of_address(Addr6 { bytes }));
        }
        for words in words {
            let set: u32 = words.iter().map(|word| word.count_ones()).sum();
            assert!(set >= 250, "{set} bits of 256 addresses");
        }
    }
}
