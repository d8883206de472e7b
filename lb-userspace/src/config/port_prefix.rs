//! Ranges of ports as prefixes of ports, which is what a trie can hold.

use super::schema::PortRange;

/// The ports whose first bits are those of `port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortPrefix {
    /// The first of them.
    pub port: u16,
    /// How many bits they share: 16 for a single port, 0 for every port.
    pub bits: u8,
}

impl PortPrefix {
    /// Every port.
    pub const EVERY: Self = Self { port: 0, bits: 0 };
}

impl PortRange {
    /// Whether it is one port.
    pub const fn is_single(self) -> bool {
        self.first == self.last
    }

    /// The fewest prefixes that make up the range, in the order of their ports: at most 30. Port 0 counts as part of
    /// [`PortRange::EVERY`], for no packet that is well-formed has it.
    pub fn prefixes(self) -> Vec<PortPrefix> {
        if self == Self::EVERY {
            return vec![PortPrefix::EVERY];
        }
        let mut prefixes = Vec::new();
        let (mut next, end) = (u32::from(self.first), u32::from(self.last) + 1);
        while next < end {
            // The largest block that begins here: as far as the port is aligned and the range reaches.
            let size = (1_u32 << next.trailing_zeros().min(16)).min(1 << (end - next).ilog2());
            prefixes.push(PortPrefix { port: next as u16, bits: 16 - size.trailing_zeros() as u8 });
            next += size;
        }
        prefixes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefixes(first: u16, last: u16) -> Vec<(u16, u8)> {
        let prefixes = PortRange { first, last }.prefixes();
        prefixes.into_iter().map(|PortPrefix { port, bits }| (port, bits)).collect()
    }

    #[test]
    fn ranges_become_as_few_prefixes_as_possible() {
        assert_eq!(prefixes(80, 80), [(80, 16)]);
        assert_eq!(prefixes(8000, 8100), [(8000, 10), (8064, 11), (8096, 14), (8100, 16)]);
        assert_eq!(prefixes(32_768, 65_535), [(32_768, 1)]);
        assert_eq!(prefixes(65_535, 65_535), [(65_535, 16)]);
        assert_eq!(prefixes(1, 65_534).len(), 30);
        assert_eq!(prefixes(1, 65_535), [(0, 0)]);
    }

    proptest! {
        #[test]
        fn prefixes_cover_the_range_and_nothing_else(a in 1..=u16::MAX, b in 1..=u16::MAX) {
            let (first, last) = (a.min(b), a.max(b));
            let mut next = u32::from(first);
            let prefixes = prefixes(first, last);
            prop_assume!(prefixes != [(0, 0)]);
            for &(port, bits) in &prefixes {
                let size = 1 << (16 - bits);
                prop_assert_eq!(u32::from(port), next);
                prop_assert_eq!(u32::from(port) % size, 0);
                next += size;
            }
            prop_assert_eq!(next, u32::from(last) + 1);
            prop_assert!(prefixes.len() <= 30);
        }
    }
}
