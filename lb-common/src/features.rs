//! What a configuration makes use of. The programs are made for it when they are loaded: the kernel cuts out what is behind a
//! bit that is not set, before it verifies and translates the rest.

/// A set of such things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// Listeners on IPv4 addresses, or flows of one that was.
    pub const IPV4: Self = Self(1 << 0);
    /// The same with IPv6.
    pub const IPV6: Self = Self(1 << 1);
    /// Listeners of more than one port.
    pub const PORT_RANGES: Self = Self(1 << 2);
    /// Listeners that not everybody may use.
    pub const SOURCE_RULES: Self = Self(1 << 3);
    /// Listeners with a limit of new flows.
    pub const FLOW_LIMITS: Self = Self(1 << 4);

    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(u32::MAX);

    /// Those of either set.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of the set, if this is so.
    #[must_use]
    pub const fn only_if(self, is_so: bool) -> Self {
        if is_so { self } else { Self::NONE }
    }

    /// Whether all of another set are in this one.
    #[inline(always)]
    pub const fn include(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// As a number.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// From a number.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

impl Default for Features {
    fn default() -> Self {
        Self::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_includes_what_it_was_made_of() {
        let set = Features::IPV4.and(Features::PORT_RANGES).and(Features::IPV6.only_if(false));
        assert!(
            set.include(Features::IPV4) && set.include(Features::PORT_RANGES) && set.include(Features::NONE)
        );
        assert!(!set.include(Features::IPV6) && !set.include(Features::ALL) && Features::ALL.include(set));
        assert_eq!(Features::from_bits(set.bits()), set);
    }
}
