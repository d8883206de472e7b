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
    /// TCP without a flow and without SYN: [`Listener::PICKUP`] or [`Listener::DROP`].
    pub on_untracked_tcp: u8,
    /// Padding.
    pub _pad: u8,
}

impl Listener {
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
}

/// Value of the map `vips`, whose key is the address: one entry for each address that has listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Vip {
    /// Packets that came to this address but to no listener, and belong to no flow; the kernel answered them.
    pub strays: u64,
}

/// Value of the map `backend_sets`: the name behind a set id, for adoption and for readers of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SetName {
    /// UTF-8, padded with zero bytes; all zero while the id is free.
    pub name: [u8; 64],
}

pod!(ListenerKey, Listener, SetName, Vip);

const _: () = assert!(size_of::<ListenerKey>() == 20);
const _: () = assert!(size_of::<Listener>() == 20);
