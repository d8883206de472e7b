//! A listener as the packet path sees it.

use crate::{Addr6, pod};

/// Key of the map `listeners`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ListenerKey {
    /// The VIP; IPv4 as IPv4-mapped IPv6.
    pub address: Addr6,
    /// Destination port, host order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Padding, always zero.
    pub _pad: u8,
}

/// Value of the map `listeners`: read for a packet that belongs to no flow yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Listener {
    /// Index of its counters; stable across reloads.
    pub id: u32,
    /// Id of its backend set: index into `maglev` and `backend_sets`.
    pub set: u32,
    /// Seconds without a packet after which a TCP flow ends.
    pub tcp_idle_timeout_s: u32,
    /// Seconds without a packet after which a UDP flow ends.
    pub udp_idle_timeout_s: u32,
    /// What is hashed to choose a backend: [`Listener::FIVE_TUPLE`] and so on.
    pub policy: u8,
    /// When the source is translated: [`Listener::SNAT_ALWAYS`] and so on.
    pub snat: u8,
    /// TCP without a flow and without SYN: [`Listener::PICKUP`], [`Listener::DROP`] or [`Listener::RESET`].
    pub on_untracked_tcp: u8,
    /// Bits of [`Listener::DSR`] and so on.
    pub flags: u8,
    /// New flows a second over all CPUs; 0: no limit.
    pub max_new_flows_per_s: u32,
}

impl Listener {
    /// Seconds without a packet after which a flow of this protocol ends.
    #[inline(always)]
    pub const fn idle_timeout_s(&self, protocol: u8) -> u32 {
        if protocol == crate::PROTO_TCP { self.tcp_idle_timeout_s } else { self.udp_idle_timeout_s }
    }

    /// Hash addresses, ports and protocol.
    pub const FIVE_TUPLE: u8 = 0;
    /// Hash addresses and protocol.
    pub const THREE_TUPLE: u8 = 1;
    /// Hash both addresses.
    pub const TWO_TUPLE: u8 = 2;
    /// Hash the client's address alone.
    pub const SOURCE_IP: u8 = 3;

    /// Translate the source of every flow.
    pub const SNAT_ALWAYS: u8 = 0;
    /// Translate it where the answer would otherwise bypass the balancer.
    pub const SNAT_AUTO: u8 = 1;
    /// Translate only the port, and only where two flows would collide at the backend.
    pub const SNAT_NEVER: u8 = 2;

    /// Make a flow for it, choosing by the same hash.
    pub const PICKUP: u8 = 0;
    /// Drop it.
    pub const DROP: u8 = 1;
    /// Answer it with a RST.
    pub const RESET: u8 = 2;

    /// Packets go to the backend with their addresses and ports as they are (`mode = "dsr"`).
    pub const DSR: u8 = 1 << 0;
    /// Without a backend, clients are told so by RST or ICMP (`no_backend_action = "reset"`).
    pub const REFUSE: u8 = 1 << 1;
    /// There are rules for it in the map `source_rules`.
    pub const SOURCE_RULES: u8 = 1 << 2;
    /// A source without a rule is denied: `allow_sources` is not empty.
    pub const DENY_UNLISTED: u8 = 1 << 3;
}

/// Value of the map `vips`, whose key is the address: one entry for each address that has listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Vip {
    /// Packets that came to this address but to no listener, and belong to no flow; the kernel answered them.
    pub strays: u64,
    /// Bits of [`Vip::HAS_RANGES`] and so on.
    pub flags: u32,
    /// Padding.
    pub _pad: u32,
}

impl Vip {
    /// Some of its listeners stand in the map `listener_ranges`.
    pub const HAS_RANGES: u32 = 1 << 0;
    /// It has listeners. Without this bit it is an address of `snat_addresses` alone.
    pub const LISTENS: u32 = 1 << 1;
}

/// Data of the LPM keys of the map `listener_ranges`: listeners of many ports. A range is a few prefixes of ports; every
/// port is the prefix that ends before them ([`RangeKey::BITS_BEFORE_PORT`]). The value is a [`Listener`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RangeKey {
    /// The VIP; IPv4 as IPv4-mapped IPv6.
    pub address: Addr6,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _zero: u8,
    /// Destination port, network order, so that prefixes of it are ranges.
    pub port: [u8; 2],
}

impl RangeKey {
    /// Length of the prefix that every port shares, in bits.
    pub const BITS_BEFORE_PORT: u32 = 144;
}

/// Data of the LPM keys of the map `source_rules`: who may open flows through a listener. The longest prefix decides;
/// the controller has seen to it that a denied one is never hidden behind a longer allowed one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SourceKey {
    /// Id of the listener.
    pub listener: u32,
    /// The source; IPv4 as IPv4-mapped IPv6.
    pub address: Addr6,
}

impl SourceKey {
    /// Length of the prefix that names the listener, in bits.
    pub const BITS_BEFORE_ADDRESS: u32 = 32;
    /// Value of a prefix whose sources may open flows.
    pub const ALLOW: u32 = 1;
    /// Value of a prefix whose sources may not.
    pub const DENY: u32 = 2;
}

/// Value of the map `new_flow_rates`, by listener id: how many flows the running second has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RateWindow {
    /// Number of the second: ticks divided by their rate.
    pub second: u64,
    /// New flows asked for in it.
    pub flows: u64,
}

/// Value of the map `backend_sets`: the name behind a set id, for adoption and for readers of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SetName {
    /// UTF-8, padded with zero bytes; all zero while the id is free.
    pub name: [u8; 64],
}

pod!(ListenerKey, Listener, SetName, Vip, RangeKey, SourceKey, RateWindow);

const _: () = assert!(size_of::<ListenerKey>() == 20);
const _: () = assert!(size_of::<Listener>() == 24);
