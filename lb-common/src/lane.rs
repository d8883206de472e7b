//! Lanes: what the cached flows of a CPU have in common.

use crate::cache::{Pair, round};
use crate::{MAX_COPY_S, NextHop, Traffic};

/// Seconds without a new copy of one of its flows after which a lane may become another: by then none of them holds.
pub const LANE_S: u32 = MAX_COPY_S + 1;

/// Lanes of each CPU and family at most (power of two).
pub const MAX_LANES: u32 = 1 << 14;

/// A flow can be in one of so many lanes, beside each other (power of two).
pub const LANE_WAYS: u32 = 4;

/// Value of the maps `lanes_v4` and `lanes_v6`: what the flows of one listener to one backend have in common in one direction,
/// from one interface and over one next hop, in one cache line (IPv6: two). Each CPU has lanes of its own, so nobody else writes one while it is read.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Lane<P: Pair> {
    /// What they have in common.
    pub course: Course<P>,
    /// When a flow was last copied, in ticks; see [`LANE_S`].
    pub used: u32,
    /// Packets that have found a copy, and are not in `listener_counters` and `backend_counters`: there they are added before the
    /// lane becomes another.
    pub traffic: Traffic,
}

/// What the flows of a lane have in common: all that decides about a packet and is not in [`CachedFlow`](crate::CachedFlow).
/// One side of a packet is the client's, at the backend perhaps with a SNAT address; the other is the listener's or the backend's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Course<P: Pair> {
    /// Where the packets go.
    pub next_hop: NextHop,
    /// The other side's address as the packets arrive: the VIP, or in those to the client the backend's.
    pub arrives: P::Half,
    /// The same as they leave.
    pub leaves: P::Half,
    /// The client's address at the backend, if it is another than the client's own; see [`Course::hides_client`].
    pub snat: P::Half,
    /// The other side's port as the packets leave, as it is in them; 0: they have the right one.
    pub port: u16,
    /// Id of the backend.
    pub backend: u16,
    /// Id of the listener.
    pub listener: u16,
    /// What the addresses here and the other side's port add to the checksum of TCP or UDP (RFC 1624); 0 where copies keep all of it.
    pub difference: u16,
    /// MTU of the link that the packets leave by, in bytes from the IP header on; the largest number when unknown.
    pub mtu: u16,
    /// Ticks for which copies of its flows hold: [`crate::Flow::lag_s`].
    pub lag: u16,
    /// IP protocol number; 0: nobody's lane.
    pub protocol: u8,
    /// As in [`crate::Flow`].
    pub direction: u8,
    /// 1: `snat` stands for the client at the backend; 0: the client's own address does.
    pub hides_client: u8,
    /// 1: the packets leave by the interface that they came in by.
    pub turns_back: u8,
}

impl<P: Pair> Course<P> {
    /// What it is hashed to, for its places among the lanes.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        let [_, a, b, c] = self.next_hop.words().map(u64::from);
        let ids = u64::from(self.backend) << 32 | u64::from(self.listener) << 16 | u64::from(self.port);
        let rest = u64::from(self.lag) << 16 | u64::from(self.protocol) << 8 | u64::from(self.direction);
        // A round for each word, since what differs in one must not make up for what differs in another.
        let addresses = P::hash_half(self.leaves, P::hash_half(self.arrives, ids));
        let state = round(round(round(addresses, a << 32 | b), c), rest);
        (P::hash_half(self.snat, state) >> 16) as u32
    }

    /// Whether its packets come from clients.
    #[inline(always)]
    pub const fn is_to_backend(&self) -> bool {
        self.direction == crate::Flow::<crate::Addr4>::TO_BACKEND
    }

    /// The address by which the backend knows a client.
    #[inline(always)]
    pub const fn at_backend(&self, client: P::Half) -> P::Half {
        if self.hides_client == 0 { client } else { self.snat }
    }
}

/// Value of the map `lane_books`, one for each CPU and family: tells the controller which lanes to look at, and whether they are still
/// what they were when it looked.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct LaneBook {
    /// Raised before a lane is made another one and after that: odd while it happens.
    pub changes: u64,
    /// A bit for each lane that has ever been used.
    pub marks: [u64; MARK_WORDS],
}

/// Words of [`LaneBook::marks`].
pub const MARK_WORDS: usize = MAX_LANES as usize / 64;

impl LaneBook {
    /// Words of one, the padding included.
    pub const WORDS: u32 = (size_of::<Self>() / 8) as u32;
    /// Index of the word `changes`.
    pub const CHANGES: u32 = (core::mem::offset_of!(Self, changes) / 8) as u32;
    /// Index of the first word of `marks`.
    pub const MARKS: u32 = (core::mem::offset_of!(Self, marks) / 8) as u32;
}

/// The number of IPv4 among families.
pub const FAMILY_V4: u32 = 0;
/// The number of IPv6 among families.
pub const FAMILY_V6: u32 = 1;

/// Index of a CPU's book of a family.
#[inline(always)]
pub const fn book_of(cpu: u32, family: u32) -> u32 {
    2 * cpu + family
}

#[cfg(feature = "user")]
// SAFETY: the type is repr(C), Copy, has no references and no invalid bit patterns. What pads it to whole cache lines is never
// read, and user space makes none of its values.
unsafe impl<P: Pair + 'static> aya::Pod for Lane<P> {}

const _: () = assert!(MAX_LANES.is_power_of_two() && MAX_LANES <= 1 << 16);
const _: () = assert!(size_of::<Lane<[u64; 1]>>() == 64 && size_of::<Lane<[u64; 4]>>() == 128);
// Ids that are 32 bits wide elsewhere.
const _: () = assert!(crate::MAX_BACKENDS <= 1 << 16 && crate::LISTENER_IDS <= 1 << 16);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PROTO_TCP;

    const LANES: usize = 1 << 14;

    /// How many of these courses find no place among the lanes, in percent.
    fn unplaced(courses: &[Course<[u64; 1]>]) -> usize {
        let mut taken = [false; LANES];
        let without = courses.iter().filter(|course| {
            let begin = course.hash() as usize % LANES;
            let free = (0..LANE_WAYS as usize).map(|way| begin ^ way).find(|&place| !taken[place]);
            free.map(|place| taken[place] = true).is_none()
        });
        100 * without.count() / courses.len()
    }

    fn course(address: [u8; 4], listener: u16, backend: u16, mac: u8) -> Course<[u64; 1]> {
        let next_hop =
            NextHop { ifindex: 2, peer: [2, 0x42, 0xac, 0x11, 0, mac], local: [2, 0x42, 0xac, 0x11, 0, 1] };
        let vip = u32::from_ne_bytes([10, 1, 0, listener as u8]);
        Course {
            arrives: vip,
            leaves: u32::from_ne_bytes(address),
            snat: vip,
            hides_client: 1,
            next_hop,
            listener,
            backend,
            mtu: 1500,
            protocol: PROTO_TCP,
            lag: 1000,
            ..Course::default()
        }
    }

    #[test]
    fn courses_that_differ_little_fall_to_places_of_their_own() {
        let vips: [_; 400] = core::array::from_fn(|n| {
            let [vip, backend] = [n / 8, n % 8];
            course([10, 0, vip as u8, 100], vip as u16, backend as u16, 1)
        });
        let clients: [_; 4000] = core::array::from_fn(|n| {
            let [listener, backend, client] = [n / 200, n / 100 % 2, n % 100];
            course([10, 0, 0, 100], listener as u16, backend as u16, client as u8)
        });
        assert_eq!((unplaced(&vips), unplaced(&clients)), (0, 0));
    }
}
