//! Lanes: what the cached flows of a CPU have in common.

use crate::cache::{Pair, round};
use crate::{MAX_COPY_S, NextHop};

/// Seconds without a new copy of one of its flows after which a lane may become another: by then none of them holds.
pub const LANE_S: u32 = MAX_COPY_S + 1;

/// Lanes of each CPU and family at most (power of two).
pub const MAX_LANES: u32 = 1 << 15;

/// A flow can be in one of so many lanes, beside each other (power of two).
pub const LANE_WAYS: u32 = 4;

/// Value of the maps `lanes_v4` and `lanes_v6`: what the flows of one listener to one backend have in common in one direction, and
/// over one next hop, in one cache line. Each CPU has lanes of its own, so nobody else writes one while it is read.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Lane<P: Pair> {
    /// What they have in common.
    pub course: Course<P>,
    /// When a flow was last copied, in ticks; see [`LANE_S`].
    pub used: u32,
}

/// What the flows of a lane have in common: all that decides about a packet and is not in [`CachedFlow`](crate::CachedFlow).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Course<P: Pair> {
    /// The address after translation that is not the flow's own: the backend's, or in the packets to the client the one that
    /// it talks to.
    pub address: P::Half,
    /// Where the packets go.
    pub next_hop: NextHop,
    /// The port that goes with the address, as it is in a packet; 0: the packets have the right one.
    pub port: u16,
    /// Id of the backend.
    pub backend: u16,
    /// Id of the listener.
    pub listener: u16,
    /// What translating this side adds to the checksum of TCP or UDP (RFC 1624); 0 where copies keep what both sides add.
    pub difference: u16,
    /// MTU of the link that the packets leave by, in bytes from the IP header on; 0 when unknown.
    pub mtu: u16,
    /// IP protocol number; 0: nobody's lane.
    pub protocol: u8,
    /// As in [`crate::Flow`].
    pub direction: u8,
    /// Seconds for which copies of its flows hold: [`crate::Flow::lag_s`].
    pub lag_s: u8,
    /// Padding, always zero.
    pub _pad: [u8; 3],
}

impl<P: Pair> Course<P> {
    /// What it is hashed to, for its places among the lanes.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        let [_, a, b, c] = self.next_hop.words().map(u64::from);
        let ids = u64::from(self.backend) << 32 | u64::from(self.listener) << 16 | u64::from(self.port);
        let rest = u64::from(self.lag_s) << 16 | u64::from(self.protocol) << 8 | u64::from(self.direction);
        // A round for each word, since what differs in one must not make up for what differs in another.
        (round(round(round(P::hash_half(self.address, ids), a << 32 | b), c), rest) >> 16) as u32
    }
}

const _: () = assert!(MAX_LANES.is_power_of_two() && MAX_LANES <= 1 << 16);
const _: () = assert!(size_of::<Lane<[u64; 1]>>() == 64 && size_of::<Lane<[u64; 4]>>() == 64);
// Ids that are 32 bits wide elsewhere.
const _: () = assert!(crate::MAX_BACKENDS <= 1 << 16 && crate::MAX_LISTENERS <= 1 << 16);

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
        let address = u32::from_ne_bytes(address);
        Course {
            address,
            next_hop,
            listener,
            backend,
            mtu: 1500,
            protocol: PROTO_TCP,
            lag_s: 4,
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
