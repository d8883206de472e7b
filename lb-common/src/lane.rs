//! Lanes: what the cached flows of a CPU have in common.

use crate::cache::Pair;
use crate::{MAX_COPY_S, NextHop};

/// Seconds without a new copy of one of its flows after which a lane may become another: by then none of them holds.
pub const LANE_S: u32 = MAX_COPY_S + 1;

/// Lanes of each CPU and family at most (power of two).
pub const MAX_LANES: u32 = 1 << 14;

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

/// What the flows of a lane have in common.
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
        (P::hash_half(self.address, ids ^ a << 16 ^ b << 8 ^ c ^ u64::from(self.direction)) >> 16) as u32
    }
}

const _: () = assert!(MAX_LANES.is_power_of_two() && MAX_LANES <= 1 << 16);
const _: () = assert!(size_of::<Lane<[u64; 1]>>() == 64 && size_of::<Lane<[u64; 4]>>() == 64);
// Ids that are 32 bits wide elsewhere.
const _: () = assert!(crate::MAX_BACKENDS <= 1 << 16 && crate::MAX_LISTENERS <= 1 << 16);
