//! The exact-match cache in front of the connection maps.

use core::fmt::Debug;

use crate::addr::double_word;
use crate::{Address, FlowKey, MAX_CACHE_ENTRIES};

/// Tuples fall into so many groups, each with a generation of its own (power of two).
pub const GENERATIONS: u32 = 1024;

/// A flow has so many places in a cache, beside each other (power of two).
pub const WAYS: u32 = 4;

/// Source and destination address as the machine words that they are in a packet: one word of IPv4, four of IPv6.
pub trait Pair: Copy + Debug + Default + Eq {
    /// One of the two.
    type Half: Copy + Debug + Default + Eq;

    /// What is kept of checksum differences (RFC 1624) in a copy of a flow: nothing where there is no room for it.
    type Differences: Copy + Debug + Default;

    /// Puts two together.
    fn of(source: Self::Half, destination: Self::Half) -> Self;

    /// Source and destination.
    fn halves(self) -> (Self::Half, Self::Half);

    /// Whether it is the same pair.
    fn is(self, other: Self) -> bool;

    /// What it is hashed to, together with the rest of the tuple: see [`Tuple::hash`].
    fn hash(self, rest: u64) -> u64;

    /// What a half is hashed to, together with a word.
    fn hash_half(half: Self::Half, word: u64) -> u64;
}

/// Differences that translating makes to checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Differences {
    /// To that of the IP header, decrementing TTL included.
    pub ip: u16,
    /// To that of TCP or UDP.
    pub l4: u16,
}

impl Pair for [u64; 1] {
    type Half = u32;
    type Differences = Differences;

    #[inline(always)]
    fn of(source: u32, destination: u32) -> Self {
        [double_word(source, destination)]
    }

    #[inline(always)]
    fn halves(self) -> (u32, u32) {
        let [low, high] = [self[0] as u32, (self[0] >> 32) as u32];
        if cfg!(target_endian = "little") { (low, high) } else { (high, low) }
    }

    #[inline(always)]
    fn is(self, [other]: Self) -> bool {
        self[0] == other
    }

    #[inline(always)]
    fn hash(self, rest: u64) -> u64 {
        mixed(product(self[0], 0).wrapping_add(product(rest, 1)))
    }

    #[inline(always)]
    fn hash_half(half: u32, word: u64) -> u64 {
        round(round(0, half.into()), word)
    }
}

impl Pair for [u64; 4] {
    type Half = [u64; 2];
    type Differences = [u16; 0];

    #[inline(always)]
    fn of([a, b]: [u64; 2], [c, d]: [u64; 2]) -> Self {
        [a, b, c, d]
    }

    #[inline(always)]
    fn halves(self) -> ([u64; 2], [u64; 2]) {
        let [a, b, c, d] = self;
        ([a, b], [c, d])
    }

    #[inline(always)]
    fn is(self, [a, b, c, d]: Self) -> bool {
        (self[0] ^ a) | (self[1] ^ b) | (self[2] ^ c) | (self[3] ^ d) == 0
    }

    #[inline(always)]
    fn hash(self, rest: u64) -> u64 {
        let [a, b, c, d] = self;
        let source = product(a, 0).wrapping_add(product(b, 1));
        let destination = product(c, 2).wrapping_add(product(d, 3));
        mixed(source.wrapping_add(destination).wrapping_add(product(rest, 4)))
    }

    #[inline(always)]
    fn hash_half([a, b]: [u64; 2], word: u64) -> u64 {
        round(round(round(0, a), b), word)
    }
}

/// The tuple of a packet in machine words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tuple<P> {
    /// Source and destination address.
    pub addresses: P,
    /// Source and destination port as they are in the packet, then the IP protocol number.
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

    /// Its ports, as they are in a packet.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        self.rest as u32
    }

    /// Its IP protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        (self.rest >> 32) as u8
    }

    /// What it is hashed to. Only the high half depends on all of it: that is for its places in the cache, for its group, and for
    /// what tells it from others there. Tuples that collide can be made on purpose; wherever the hash is used, that costs a lookup, or
    /// another SNAT port.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        self.addresses.hash(self.rest)
    }
}

/// Ports, host order, as the word that they are in a packet.
#[inline(always)]
pub const fn wire_ports(source: u16, destination: u16) -> u32 {
    join_ports(source.to_be() as u32, destination.to_be() as u32)
}

/// Ports of 16 bits, as they are in a packet, as one word.
#[inline(always)]
pub const fn join_ports(source: u32, destination: u32) -> u32 {
    if cfg!(target_endian = "little") { source | destination << 16 } else { source << 16 | destination }
}

/// The inverse of [`join_ports`].
#[inline(always)]
pub const fn split_ports(ports: u32) -> (u16, u16) {
    let [low, high] = [ports as u16, (ports >> 16) as u16];
    if cfg!(target_endian = "little") { (low, high) } else { (high, low) }
}

/// Odd numbers without a pattern: the first digits of the golden ratio and of square roots.
const FACTORS: [u64; 5] = [
    0x9e37_79b9_7f4a_7c15,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
];

/// A part of a sum over words, each with a factor of its own: a processor multiplies all of them at once, where rounds wait for each
/// other.
#[inline(always)]
pub const fn product(word: u64, number: usize) -> u64 {
    word.wrapping_mul(FACTORS[number])
}

/// Adds to the low half the high one, which depends on more of the words.
#[inline(always)]
const fn fold(sum: u64) -> u64 {
    sum ^ (sum >> 32)
}

/// What a sum of products is hashed to. They are multiplied once more, since on the high bytes of a word only the highest of its product
/// depend; and words that follow each other at the same distance do so no more after the last step.
#[inline(always)]
const fn mixed(sum: u64) -> u64 {
    let product = product(fold(sum), 0);
    product ^ (product >> 20)
}

#[inline(always)]
pub(crate) const fn round(state: u64, word: u64) -> u64 {
    fold(product(state ^ word, 0))
}

/// Value of the maps `cached_v4` and `cached_v6`: what an established flow does not share with others, in half a cache line. What it
/// shares with the other flows of its [`Lane`](crate::Lane) stands there. Each CPU has entries of its own, so nobody else writes one
/// while it is read. A flow has [`WAYS`] places.
///
/// A packet is of the entry's flow if it has the ports in [`CachedFlow::key`], and the protocol and both addresses that entry and
/// lane say together.
///
/// An entry is a copy, and what makes it stale is noticed in one of two ways. Whoever changes what it was made of raises
/// a generation, which is part of [`CachedFlow::key`]. And it holds for a few seconds only, counted from the flow's
/// `last_seen`: then the flow itself is looked at again, and its `last_seen` is written. From the first second on another flow may
/// take its place.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
pub struct CachedFlow<P: Pair> {
    /// Low half: both ports of the packets, as they are in them. High half, the guard, never zero: who sends the packets on the link,
    /// the tuple's hash, the generation, and how many entries are in use; all must be as they were. 0: no flow.
    pub key: u64,
    /// The client's address.
    pub client: P::Half,
    /// [`Flow::last_seen`](crate::Flow::last_seen) when it was copied.
    pub since: u32,
    /// The port on the client's side after translation, as it is in a packet.
    pub port: u16,
    /// Its lane: index among those of this CPU.
    pub lane: u16,
    /// What the translation adds to checksums, where it is kept.
    pub differences: P::Differences,
}

impl<P: Pair> CachedFlow<P> {
    /// Both ports of the packets, as they are in them.
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        self.key as u32
    }
}

/// The bit that is set in every [`CachedFlow::key`].
const KEY_IN_USE: u64 = 1 << 32;

/// What a generation is raised by: it counts in the bits of a [`CachedFlow::key`] above the one that is always set.
pub const ONE_GENERATION: u64 = KEY_IN_USE << 1;

/// Puts the part of a [`CachedFlow::key`] together that its packet tells: ports, and the bits of a hash where generations count.
#[inline(always)]
pub const fn mark_of(ports: u32, hash: u64) -> u64 {
    ports as u64 | (hash & !(ONE_GENERATION - 1))
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
    /// Index of its first lane.
    pub first_lane: u32,
    /// What the keys of these entries have in common, as [`CacheUse::salt_of`] says.
    pub salt: u64,
}

impl CacheUse {
    /// Before the first packet.
    pub const NONE: Self =
        Self { hits: 0, crowded: 0, pause: 0, entries: 0, first: 0, mask: 0, first_lane: 0, salt: 0 };

    /// Part of every key while these entries are in use: no key is zero, and what was kept where it is not looked for any more does
    /// not come back.
    #[inline(always)]
    pub const fn salt_of(mask: u32) -> u64 {
        KEY_IN_USE | (mask as u64) << 43
    }
}

/// The first of a tuple's places, by its hash: modulo the number of entries in use.
#[inline(always)]
pub const fn place_of(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The generation that is raised when a flow goes or changes whose tuple has this hash: its index among all of them.
#[inline(always)]
pub const fn generation_of(hash: u64) -> u32 {
    // The bits above those that places are told apart by.
    (place_of(hash) >> MAX_CACHE_ENTRIES.ilog2()) % GENERATIONS
}

const _: () = assert!(GENERATIONS.is_power_of_two());
const _: () =
    assert!(MAX_CACHE_ENTRIES.is_power_of_two() && MAX_CACHE_ENTRIES as u64 * GENERATIONS as u64 <= 1 << 32);
const _: () = assert!(size_of::<CachedFlow<[u64; 1]>>() == 32);
const _: () = assert!(size_of::<CachedFlow<[u64; 4]>>() == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Addr4, Addr6, PROTO_TCP, PROTO_UDP};

    const PLACES: usize = 1 << 12;

    /// The share of places that as many flows as there are places fall to; 63 % if they fall at random.
    fn spread<A: Address>(keys: impl Iterator<Item = FlowKey<A>>) -> usize {
        let mut used = [false; PLACES];
        keys.take(PLACES).for_each(|key| used[place_of(Tuple::of(&key).hash()) as usize % PLACES] = true);
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

    fn of_one_client(key: FlowKey<Addr4>) -> FlowKey<Addr4> {
        let [.., high, low] = key.source.bytes;
        FlowKey {
            source: Addr4 { bytes: [10, 9, 0, 1] },
            source_port: u16::from_be_bytes([high, low]),
            ..key
        }
    }

    fn of_64_ports(key: FlowKey<Addr4>) -> FlowKey<Addr4> {
        let [.., high, low] = key.source.bytes;
        let number = u16::from_be_bytes([high, low]);
        let [high, low] = (number / 64).to_be_bytes();
        FlowKey { source: Addr4 { bytes: [10, 9, high, low] }, source_port: 32_768 + number % 64, ..key }
    }

    /// 64 ports of each of 64 clients.
    fn grid(key: FlowKey<Addr6>) -> FlowKey<Addr6> {
        let [.., high, low] = key.source.bytes;
        let number = u16::from_be_bytes([high, low]);
        let mut source = key.source;
        source.bytes[14..].copy_from_slice(&[0, (number / 64) as u8]);
        FlowKey { source, source_port: 32_768 + number % 64, ..key }
    }

    #[test]
    fn neighbouring_clients_and_ports_fall_to_places_of_their_own() {
        for share in [
            spread(keys_v4()),
            spread(keys_v4().map(|key| FlowKey { source_port: key.source.words()[0] as u16, ..key })),
            spread(keys_v4().map(FlowKey::reversed)),
            spread(keys_v4().map(of_one_client)),
            spread(keys_v4().map(of_one_client).map(FlowKey::reversed)),
            spread(keys_v4().map(of_64_ports)),
            spread(keys_v4().map(of_64_ports).map(FlowKey::reversed)),
            spread(keys_v6(false)),
            spread(keys_v6(true)),
            spread(keys_v6(true).map(FlowKey::reversed)),
            spread(keys_v6(false).map(FlowKey::reversed)),
            spread(keys_v6(false).map(grid)),
            spread(keys_v6(false).map(grid).map(FlowKey::reversed)),
        ] {
            assert!((58..=100).contains(&share), "{share} %");
        }
    }
}
