//! Internet checksums by difference (RFC 1071, RFC 1624).
//!
//! All words are summed in the byte order of the machine: the ones' complement sum does not care, as long as
//! the bytes are never swapped (RFC 1071, 2(B)). A translation changes the same words of every packet of a
//! flow, so their part of the sum, the *difference*, is computed once and stored in the flow.

use lb_common::Address;

/// What decrementing TTL adds to the sum of an IPv4 header: `~m + m'` for the word that begins with TTL.
pub(crate) const TTL_DECREMENT: u16 = !u16::from_ne_bytes([1, 0]);

/// Sum of ones' complement terms, not yet folded.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(crate) struct Sum(u32);

impl Sum {
    /// Counts a 16-bit word that changes from `old` to `new`.
    #[inline(always)]
    pub(crate) const fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old as u32) + new as u32)
    }

    /// Counts a word of data.
    #[inline(always)]
    pub(crate) const fn plus(self, word: u16) -> Self {
        Self(self.0 + word as u32)
    }

    /// Counts an address.
    #[inline(always)]
    pub(crate) fn plus_address<A: Address>(self, address: A) -> Self {
        let [a, b, c, d] = address.words();
        let sum = self.plus_double_word(a);
        if A::VERSION == 4 { sum } else { sum.plus_double_word(b).plus_double_word(c).plus_double_word(d) }
    }

    /// Counts a 32-bit word, as read from memory.
    #[inline(always)]
    pub(crate) const fn plus_double_word(self, word: u32) -> Self {
        self.plus(word as u16).plus((word >> 16) as u16)
    }

    /// Counts what another sum has counted.
    #[inline(always)]
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Counts an address that changes.
    #[inline(always)]
    pub(crate) fn address<A: Address>(self, old: A, new: A) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (old.words(), new.words());
        let sum = self.double_word(a, e);
        if A::VERSION == 4 { sum } else { sum.double_word(b, f).double_word(c, g).double_word(d, h) }
    }

    #[inline(always)]
    const fn double_word(self, old: u32, new: u32) -> Self {
        self.word(old as u16, new as u16).word((old >> 16) as u16, (new >> 16) as u16)
    }

    /// Folds the carries.
    #[inline(always)]
    pub(crate) const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff) + (self.0 >> 16);
        (sum + (sum >> 16)) as u16
    }
}

/// The same, of whole machine words: of fewer than 2^15, which keeps it below 2^48.
#[derive(Clone, Copy, Default)]
pub(crate) struct WideSum(u64);

impl WideSum {
    /// Counts what is known already.
    #[inline(always)]
    pub(crate) const fn difference(self, difference: u16) -> Self {
        Self(self.0 + difference as u64)
    }

    /// Counts a port that changes.
    #[inline(always)]
    pub(crate) const fn port(self, old: u16, new: u16) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Counts an address that another takes the place of.
    #[inline(always)]
    pub(crate) fn gone<const N: usize>(self, address: [u64; N]) -> Self {
        self.come(address.map(|word| !word))
    }

    /// Counts an address that takes the place of another.
    #[inline(always)]
    pub(crate) fn come<const N: usize>(self, address: [u64; N]) -> Self {
        // Since 2^32 is one more than a multiple of 0xffff, halves may be summed instead of 16-bit words.
        Self(address.into_iter().fold(self.0, |sum, word| sum + (word & 0xffff_ffff) + (word >> 32)))
    }

    /// Folds the carries.
    #[inline(always)]
    pub(crate) const fn fold(self) -> u16 {
        // At most 2^32 + 0xfffe, so that what is beyond 2^32 and the low half are not both large.
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        // Therefore at most 0x1fffe: the last carry makes no other.
        let sum = (sum & 0xffff) + (sum >> 16);
        (sum + (sum >> 16)) as u16
    }
}

/// What changes of its data make to a checksum.
pub(crate) trait Change: Copy {
    /// The checksum after them.
    fn apply(self, checksum: u16) -> u16;
}

/// A difference (RFC 1624, equation 3).
impl Change for u16 {
    #[inline(always)]
    fn apply(self, checksum: u16) -> u16 {
        apply(checksum, self)
    }
}

impl Change for WideSum {
    #[inline(always)]
    fn apply(self, checksum: u16) -> u16 {
        !self.difference(!checksum).fold()
    }
}

/// A checksum after its data changed by `difference` (RFC 1624, equation 3).
#[inline(always)]
pub(crate) const fn apply(checksum: u16, difference: u16) -> u16 {
    // At most 0x1fffe: the carry makes no other.
    let sum = (!checksum) as u32 + difference as u32;
    !((sum + (sum >> 16)) as u16)
}

/// A UDP checksum after a change: one that comes out as zero is sent as its other representation, since zero
/// means that there is none (RFC 768).
#[inline(always)]
pub(crate) fn apply_udp(checksum: u16, change: impl Change) -> u16 {
    match change.apply(checksum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// The difference that two changes make together.
#[inline(always)]
pub(crate) const fn both(a: u16, b: u16) -> u16 {
    Sum(a as u32 + b as u32).fold()
}

/// The difference of the opposite change: what a flow's answers need.
#[inline(always)]
pub(crate) const fn inverse(difference: u16) -> u16 {
    !difference
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use lb_common::{Addr4, Addr6};

    /// The definition (RFC 1071): the complement of the folded sum of all words.
    fn full(bytes: &[u8]) -> u16 {
        let mut sum =
            bytes.chunks(2).map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum::<u32>();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    /// A small generator, so that the test sees the same inputs each time.
    pub(crate) fn bytes<const N: usize>(seed: &mut u64) -> [u8; N] {
        core::array::from_fn(|_| {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*seed >> 56) as u8
        })
    }

    #[test]
    fn a_difference_gives_what_a_full_computation_gives() {
        let mut seed = 1;
        for _ in 0..100_000 {
            let mut header: [u8; 20] = bytes(&mut seed);
            let before = full(&header);
            let new: [u8; 8] = bytes(&mut seed);
            let [a, b, c, d, e, f, g, h] = new;
            let address = |at: usize| Addr4 { bytes: core::array::from_fn(|i| header[at + i]) };
            let difference = Sum::default()
                .address(address(12), Addr4 { bytes: [a, b, c, d] })
                .address(address(16), Addr4 { bytes: [e, f, g, h] })
                .fold();
            let old = header;
            header[12..].copy_from_slice(&new);
            assert_eq!(apply(before, difference), full(&header));
            assert_eq!(apply(full(&header), inverse(difference)), full(&old));
        }
    }

    #[test]
    fn a_difference_of_ipv6_addresses_covers_all_their_words() {
        let mut seed = 7;
        for _ in 0..10_000 {
            let (old, new): ([u8; 16], [u8; 16]) = (bytes(&mut seed), bytes(&mut seed));
            let difference = Sum::default().address(Addr6 { bytes: old }, Addr6 { bytes: new }).fold();
            assert_eq!(apply(full(&old), difference), full(&new));
        }
    }

    #[test]
    fn sums_of_machine_words_give_what_those_of_16_bits_do() {
        let mut seed = 3;
        for round in 0..10_000 {
            let (mut old, new): ([u8; 18], [u8; 18]) = (bytes(&mut seed), bytes(&mut seed));
            if round % 3 == 0 {
                old[..16].fill(0xff);
            }
            let side = |bytes: &[u8; 18]| {
                let word = |at| u64::from_ne_bytes(core::array::from_fn(|i| bytes[at + i]));
                ([word(0), word(8)], u16::from_ne_bytes([bytes[16], bytes[17]]))
            };
            let (before, after) = (side(&old), side(&new));
            let sum = WideSum::default().gone(before.0).port(before.1, after.1);
            let sum = WideSum::default().difference(sum.fold()).come(after.0);
            assert_eq!(apply(full(&old), sum.fold()), full(&new));
            assert_eq!(sum.apply(full(&old)), full(&new));
        }
    }

    #[test]
    fn decrementing_ttl() {
        let mut header =
            [0x45, 0, 0, 60, 0x1c, 0x46, 0x40, 0, 0x40, 6, 0, 0, 172, 16, 10, 99, 172, 16, 10, 12];
        let before = full(&header);
        header[8] -= 1;
        assert_eq!(apply(before, TTL_DECREMENT), full(&header));
        let (old, new) = ([172, 16, 10, 12], [10, 0, 0, 1]);
        let difference = Sum::default().address(Addr4 { bytes: old }, Addr4 { bytes: new }).fold();
        header[16..].copy_from_slice(&new);
        assert_eq!(apply(before, both(difference, TTL_DECREMENT)), full(&header));
    }

    #[test]
    fn udp_never_says_that_it_has_no_checksum() {
        // The sum of 0x1234 and its complement is all ones, whose checksum is zero.
        let difference = Sum::default().word(0x1234, !0x1234).fold();
        let checksum = full(&[0x34u8, 0x12, 0x34, 0x12].map(|byte| byte));
        let changed = apply(checksum, difference);
        assert_eq!(changed, 0);
        assert_eq!(apply_udp(checksum, difference), 0xffff);
    }
}
