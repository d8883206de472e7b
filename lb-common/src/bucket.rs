//! Hash tables of our own, in arrays: a bucket is a cache line of claims, each the tag of a tuple and a word for it, and whatever
//! else a claim stands for. One miss of memory finds a claim, or that there is none.
//!
//! Programs add claims while they hold the bucket's gate. Anybody may take one away, by comparing and swapping its word with 0, and
//! reads without asking: what a claim leads to is always compared with the tuple that was looked for.

use crate::cache::wire_ports;
use crate::{Addr4, Addr6, Address, FlowKey, Tuple};

/// Claims in a bucket.
pub const BUCKET_WAYS: usize = 7;

/// Bit of a gate: a program is adding a claim.
pub const GATE_HELD: u64 = 1 << 0;

/// Bit of a gate, never taken back: there were more claims than the bucket has room for, and the others are elsewhere.
pub const GATE_OVERFLOWED: u64 = 1 << 1;

/// The bucket of a tuple with this hash ([`crate::Tuple::hash`]), by multiplication (Lemire 2019).
#[inline(always)]
pub const fn bucket_of(hash: u64, buckets: u32) -> u32 {
    (((hash >> 32) * buckets as u64) >> 32) as u32
}

/// Buckets beside each other in which answers to consecutive ports are claimed; there have to be as many.
pub const NEIGHBOURS: u16 = 4;

/// Where the tuple of an answer is claimed: its bucket and its tag. SNAT ports are given out one after the other, and buckets that lie
/// together share pages of memory: looking up a page costs as much as the bucket. A port whose bucket is full, too, is followed by one
/// whose bucket is near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Home(u64);

impl Home {
    /// Among so many buckets, at least [`NEIGHBOURS`].
    #[inline(always)]
    pub fn of<A: Address>(answer: &FlowKey<A>, buckets: u32) -> Self {
        let aside = answer.destination_port % NEIGHBOURS;
        let ports = wire_ports(answer.source_port, answer.destination_port - aside);
        let first = Tuple::new(A::pair(answer.source, answer.destination), ports, answer.protocol).hash();
        let bucket = bucket_of(first, buckets.saturating_sub(NEIGHBOURS as u32 - 1)) + aside as u32;
        Self(claim_of(tag_of(first), bucket))
    }

    /// Index of its bucket.
    #[inline(always)]
    pub const fn bucket(self) -> u32 {
        claim_word(self.0)
    }

    /// Its tag. Of those that differ in nothing but the last bits of the port, no two are in one bucket.
    #[inline(always)]
    pub const fn tag(self) -> u32 {
        claim_tag(self.0)
    }
}

/// What tells the tuple from others in its bucket; never 0.
#[inline(always)]
pub const fn tag_of(hash: u64) -> u32 {
    hash as u32 | 1
}

/// Puts a claim together.
#[inline(always)]
pub const fn claim_of(tag: u32, word: u32) -> u64 {
    tag as u64 | (word as u64) << 32
}

/// The tag of a claim; 0: no claim.
#[inline(always)]
pub const fn claim_tag(claim: u64) -> u32 {
    claim as u32
}

/// The word of a claim.
#[inline(always)]
pub const fn claim_word(claim: u64) -> u32 {
    (claim >> 32) as u32
}

/// Value of the maps `answers_v4` and `answers_v6`: to which flows the answers with some tuples belong. The tag is that of a [`Home`];
/// the word has the ports of the client's packets, as they are in them. No two claims of a bucket have the same tag.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct AnswerBucket<A> {
    /// Bits of [`GATE_HELD`] and so on.
    pub gate: u64,
    /// The claims.
    pub claims: [u64; BUCKET_WAYS],
    /// Source and destination address of the client's packets, for each claim.
    pub clients: [[A; 2]; BUCKET_WAYS],
}

impl<A: Address> AnswerBucket<A> {
    /// Its size in words of 64 bits: how user space counts what it maps.
    pub const WORDS: u32 = (size_of::<Self>() / 8) as u32;
    /// Words of the addresses of a client.
    pub const CLIENT_WORDS: u32 = (size_of::<[A; 2]>() / 8) as u32;
    /// Word in which its claims begin.
    pub const CLAIMS: u32 = 1;
    /// Word in which its clients begin.
    pub const CLIENTS: u32 = 1 + BUCKET_WAYS as u32;
}

/// Value of the maps `flows_at_v4` and `flows_at_v6`: which tuples of clients' packets have flows, and where those stand. The tag is that
/// of the tuple, the word is [`FlowBucket::PROMOTED`], or an index into the map of half-open flows. A tuple without a claim has no flow,
/// unless the gate has its bit of [`FlowBucket::lost`]: then it may have a promoted one. No two claims of a bucket have the same tag.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct FlowBucket {
    /// Bits of [`GATE_HELD`] and [`FlowBucket::lost`].
    pub gate: u64,
    /// The claims.
    pub claims: [u64; BUCKET_WAYS],
}

impl FlowBucket {
    /// In place of an index: the flow is in the connection map.
    pub const PROMOTED: u32 = u32::MAX;

    /// The bit of a gate, never taken back, that a promoted flow with such a tag has lost its claim to one that needed the room; some other
    /// tags have the same.
    #[inline(always)]
    pub const fn lost(tag: u32) -> u64 {
        1 << (32 + (tag >> 27))
    }

    /// Its size in words of 64 bits.
    pub const WORDS: u32 = (size_of::<Self>() / 8) as u32;
    /// Word in which its claims begin.
    pub const CLAIMS: u32 = 1;
}

const _: () = assert!(size_of::<AnswerBucket<Addr4>>() == 128);
const _: () = assert!(size_of::<AnswerBucket<Addr6>>() == 320);
const _: () = assert!(size_of::<FlowBucket>() == 64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PROTO_TCP;

    const BUCKETS: u32 = 1 << 10;

    /// How many of so many keys find their bucket full, and how many find their tag taken in it.
    fn crowd<A: Address>(keys: impl Iterator<Item = FlowKey<A>>) -> (usize, usize) {
        let mut buckets = [[0_u32; BUCKET_WAYS]; BUCKETS as usize];
        let (mut full, mut taken) = (0, 0);
        for key in keys {
            let home = Home::of(&key, BUCKETS);
            let bucket = &mut buckets[home.bucket() as usize];
            let tag = home.tag();
            if bucket.contains(&tag) {
                taken += 1;
            } else if let Some(free) = bucket.iter_mut().find(|way| **way == 0) {
                *free = tag;
            } else {
                full += 1;
            }
        }
        (full, taken)
    }

    fn answer<A: Address>(backend: A, snat: A, port: u16) -> FlowKey<A> {
        FlowKey {
            source: backend,
            destination: snat,
            source_port: 8080,
            destination_port: port,
            protocol: PROTO_TCP,
            _pad: [0; 3],
        }
    }

    #[test]
    fn answers_to_consecutive_ports_are_claimed_beside_each_other() {
        let (backend, snat) = (Addr4 { bytes: [10, 0, 1, 10] }, Addr4 { bytes: [10, 0, 1, 100] });
        let of = |port| Home::of(&answer(backend, snat, port), BUCKETS);
        let first = of(32_000);
        for aside in 0..4 {
            assert_eq!(of(32_000 + aside).bucket(), first.bucket() + u32::from(aside));
            assert_eq!(of(32_000 + aside).tag(), first.tag());
        }
        assert_ne!(of(32_004).tag(), first.tag());
        assert!((0..=u16::MAX).all(|port| of(port).bucket() < BUCKETS));
    }

    #[test]
    fn answers_spread_over_buckets_and_tags_as_if_by_chance() {
        let v4 = |host| Addr4 { bytes: [10, 0, 1, host] };
        let v6 = |host| Addr6 { bytes: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host] };
        let load = 3 * BUCKETS as u16;
        // Of three in a bucket on the average, 1.2 % find it full by chance.
        for (full, taken) in [
            crowd((0..load).map(|port| answer(v4(10), v4(100), 1024 + port))),
            crowd((0..load).map(|port| answer(v4((port % 16) as u8), v4(100), 1024 + port / 16))),
            crowd((0..load).map(|number| answer(v4(10), v4((number % 256) as u8), 40_000 + number / 256))),
            crowd((0..load).map(|port| answer(v6(10), v6(100), 1024 + port))),
            crowd((0..load).map(|port| answer(v6((port % 16) as u8), v6(100), 1024 + port / 16))),
        ] {
            assert!(full < 100 && taken == 0, "{full} full, {taken} taken");
        }
    }
}
