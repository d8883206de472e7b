//! The exact-match cache in front of the connection maps.

use crate::{Address, FlowKey, NextHop};

/// Tuples fall into so many groups, each with a generation of its own (power of two).
pub const GENERATIONS: u32 = 1024;

/// Source and destination address as the machine words that they are in a packet: one word of IPv4, four of IPv6.
pub trait Pair: Copy {
    /// Whether it is the same pair.
    fn is(self, other: Self) -> bool;

    /// What it is hashed to, before the rest of the tuple.
    fn hash(self) -> u64;
}

impl Pair for [u64; 1] {
    #[inline(always)]
    fn is(self, [other]: Self) -> bool {
        self[0] == other
    }

    #[inline(always)]
    fn hash(self) -> u64 {
        round(0, self[0])
    }
}

impl Pair for [u64; 4] {
    #[inline(always)]
    fn is(self, [a, b, c, d]: Self) -> bool {
        (self[0] ^ a) | (self[1] ^ b) | (self[2] ^ c) | (self[3] ^ d) == 0
    }

    #[inline(always)]
    fn hash(self) -> u64 {
        let [a, b, c, d] = self;
        round(round(round(round(0, a), b), c), d)
    }
}

/// The tuple of a packet in machine words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tuple<P> {
    /// Source and destination address.
    pub addresses: P,
    /// Source and destination port as they are in the packet, then the IP protocol number; 0: no tuple.
    pub rest: u64,
}

impl<P: Pair> Tuple<P> {
    /// Puts a tuple together; `ports` as they are in the packet.
    #[inline(always)]
    pub const fn new(addresses: P, ports: u32, protocol: u8) -> Self {
        Self { addresses, rest: ports as u64 | (protocol as u64) << 32 }
    }

    /// That of a key of the connection maps.
    #[inline(always)]
    pub fn of<A: Address<Pair = P>>(key: &FlowKey<A>) -> Self {
        Self::new(
            A::pair(key.source, key.destination),
            wire_ports(key.source_port, key.destination_port),
            key.protocol,
        )
    }

    /// Whether it is the same tuple.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        self.rest == other.rest && self.addresses.is(other.addresses)
    }

    /// What it is hashed to, for its place in the cache and its group. A collision costs a lookup and nothing else.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        (round(self.addresses.hash(), self.rest) >> 16) as u32
    }
}

/// Ports, host order, as the word that they are in a packet.
#[inline(always)]
pub const fn wire_ports(source: u16, destination: u16) -> u32 {
    let ([a, b], [c, d]) = (source.to_be_bytes(), destination.to_be_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

#[inline(always)]
const fn round(state: u64, word: u64) -> u64 {
    let product = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 32)
}

/// Value of the maps `cached_v4` and `cached_v6`: all that a packet of an established flow needs, in one cache line (IPv6:
/// two). Each CPU has entries of its own, so nobody else writes one while it is read. A flow has two places, its own and
/// the one beside it.
///
/// An entry is a copy, and what makes it stale is noticed in one of two ways. Whoever changes what it was made of raises
/// a generation, which is part of [`CachedFlow::guard`]. And it holds for a few seconds only, counted from the flow's
/// `last_seen`: then the flow itself is looked at again, and its `last_seen` is written. From the first second on another flow may
/// take its place.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct CachedFlow<P> {
    /// The tuple of the packets, as they arrive.
    pub tuple: Tuple<P>,
    /// Who sends the packets on the link, and the generation: both must be as they were.
    pub guard: u32,
    /// [`crate::Flow::last_seen`] when it was copied.
    pub since: u32,
    /// Where the packets go. With IPv6 the first cache line ends here; what follows is read once the entry is found.
    pub next_hop: NextHop,
    /// Source and destination address after translation.
    pub addresses: P,
    /// Both ports after translation, as they are in a packet.
    pub ports: u32,
    /// [`crate::Flow::ip_difference`] and what decrementing TTL adds.
    pub ip_difference: u16,
    /// As in [`crate::Flow`].
    pub l4_difference: u16,
    /// Id of the backend.
    pub backend: u16,
    /// Id of the listener.
    pub listener: u16,
    /// MTU of the link that the packets leave by, in bytes from the IP header on; 0 when unknown.
    pub mtu: u16,
    /// As in [`crate::Flow`].
    pub direction: u8,
    /// Seconds for which it holds: [`crate::Flow::lag_s`].
    pub lag_s: u8,
}

/// How a CPU gets on with its cache. It uses as much of it as its flows need: entries that lie close together share pages of
/// memory, and looking up a page costs as much as an entry. Where more flows are under way than all of it holds, looking into it
/// costs more than it saves, and the CPU does without for a while.
///
/// It takes two cache lines, since `.bss` does not begin with one: what a CPU counts must not lie beside what another reads.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(128))]
pub struct CacheUse {
    /// Packets whose flow was found in it, since they were counted last.
    pub hits: u32,
    /// Packets whose flow was not, and had no place to go to.
    pub crowded: u32,
    /// Packets that it is not asked for.
    pub pause: u32,
    /// Entries that it uses, unless it pauses: a power of two; 0 before the first packet.
    pub entries: u32,
    /// Index of its first entry.
    pub first: u32,
    /// What selects one of the entries that it uses; 0 while it uses none.
    pub mask: u32,
}

impl CacheUse {
    /// Before the first packet.
    pub const NONE: Self = Self { hits: 0, crowded: 0, pause: 0, entries: 0, first: 0, mask: 0 };
}

/// The generation that is raised when a flow goes or changes whose tuple has this hash: its index among all of them.
#[inline(always)]
pub const fn generation_of(hash: u32) -> u32 {
    // The bits above those that places are told apart by.
    (hash >> 20) % GENERATIONS
}

const _: () = assert!(GENERATIONS.is_power_of_two());
const _: () = assert!(crate::MAX_CACHE_ENTRIES <= 1 << 20);
const _: () = assert!(size_of::<CachedFlow<[u64; 1]>>() == 64);
const _: () = assert!(size_of::<CachedFlow<[u64; 4]>>() == 128);
// Ids that are 32 bits wide elsewhere.
const _: () = assert!(crate::MAX_BACKENDS <= 1 << 16 && crate::MAX_LISTENERS <= 1 << 16);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Addr4, Addr6, PROTO_TCP, PROTO_UDP};

    const PLACES: usize = 1 << 12;

    /// The share of places that as many flows as there are places fall to; 63 % if they fall at random.
    fn spread<A: Address>(keys: impl Iterator<Item = FlowKey<A>>) -> usize {
        let mut used = [false; PLACES];
        keys.take(PLACES).for_each(|key| used[Tuple::of(&key).hash() as usize % PLACES] = true);
        100 * used.iter().filter(|&&used| used).count() / PLACES
    }

    fn keys_v4() -> impl Iterator<Item = FlowKey<Addr4>> {
        (0..=u16::MAX).map(|number| {
            let [high, low] = number.to_be_bytes();
            FlowKey {
                source: Addr4 { bytes: [10, 9, high, low] },
                destination: Addr4 { bytes: [10, 0, 0, 100] },
                source_port: 20_000,
                destination_port: 80,
                protocol: PROTO_TCP,
                _pad: [0; 3],
            }
        })
    }

    fn keys_v6(vary_port: bool) -> impl Iterator<Item = FlowKey<Addr6>> {
        (0..=u16::MAX).map(move |number| {
            let mut source = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
            if !vary_port {
                source[14..].copy_from_slice(&number.to_be_bytes());
            }
            FlowKey {
                source: Addr6 { bytes: source },
                destination: Addr6 { bytes: [0xfd; 16] },
                source_port: if vary_port { number } else { 20_000 },
                destination_port: 80,
                protocol: PROTO_UDP,
                _pad: [0; 3],
            }
        })
    }

    #[test]
    fn neighbouring_clients_and_ports_fall_to_places_of_their_own() {
        for share in [
            spread(keys_v4()),
            spread(keys_v4().map(|key| FlowKey { source_port: key.source.words()[0] as u16, ..key })),
            spread(keys_v4().map(FlowKey::reversed)),
            spread(keys_v6(false)),
            spread(keys_v6(true)),
            spread(keys_v6(true).map(FlowKey::reversed)),
        ] {
            assert!((58..=100).contains(&share), "{share} %");
        }
    }
}
