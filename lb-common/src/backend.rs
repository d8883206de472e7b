//! A backend as the packet path sees it: where to translate to, and how to reach it on the link.

use core::mem::offset_of;

use crate::{Addr6, pod};

/// How a packet leaves the host: the interface and both link-layer addresses. Resolved by the controller
/// (routes and neighbours through netlink) so that the packet path never asks the kernel.
#[derive(Clone, Copy, Debug, Default, Eq)]
#[repr(C)]
pub struct NextHop {
    /// Egress interface index; 0 while the next hop is not resolved.
    pub ifindex: u32,
    /// Destination MAC: the neighbour's.
    pub peer: [u8; 6],
    /// Source MAC: the egress interface's own.
    pub local: [u8; 6],
}

impl NextHop {
    /// The same as four words: the interface, then both addresses as they follow each other in a frame.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        // SAFETY: both are 16 bytes without padding, aligned as words, and every bit pattern is one of either. Byte by byte,
        // the compiler would take the words apart.
        unsafe { core::mem::transmute::<Self, [u32; 4]>(self) }
    }

    /// The inverse of [`NextHop::words`].
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // SAFETY: as in `words`.
        unsafe { core::mem::transmute::<[u32; 4], Self>(words) }
    }

    /// Whether a packet can be sent this way.
    #[inline(always)]
    pub const fn is_resolved(&self) -> bool {
        self.ifindex != 0
    }
}

impl PartialEq for NextHop {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.words(), other.words());
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }
}

/// Value of the map `backends`, indexed by backend id. Ids are stable for as long as a flow may refer to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// Address; IPv4 as IPv4-mapped IPv6.
    pub address: Addr6,
    /// Port; 0 keeps the destination port of the packet.
    pub port: u16,
    /// Bits of [`Backend`]`::IN_USE` and so on.
    pub flags: u16,
    /// Id of the set this backend belongs to.
    pub set: u32,
    /// The way to it.
    pub next_hop: NextHop,
    /// Length of the on-link prefix it shares with the balancer, in bits of its own family; 0 when it is reached
    /// through a gateway. A client in that prefix is answered past the balancer unless its source is translated.
    pub onlink_prefix_len: u8,
    /// Padding.
    pub _pad: u8,
    /// MTU of the way to it, in bytes from the IP header on; 0 when unknown.
    pub mtu: u16,
}

impl Backend {
    /// The slot is taken.
    pub const IN_USE: u16 = 1 << 0;
    /// New flows may be given to it: it stands in the Maglev table of its set.
    pub const IN_ROTATION: u16 = 1 << 1;
    /// Neither new nor existing flows reach it (`offline = true`).
    pub const OFFLINE: u16 = 1 << 2;
    /// Existing UDP flows choose anew at their next packet.
    pub const MOVE_UDP: u16 = 1 << 3;
    /// Existing TCP flows choose anew at their next packet.
    pub const MOVE_TCP: u16 = 1 << 4;
    /// It has been removed from the configuration and drains.
    pub const REMOVED: u16 = 1 << 5;
    /// Existing TCP flows are reset at their next packet (`on_unhealthy = "reset"`).
    pub const RESET_TCP: u16 = 1 << 6;

    /// Flags that existing flows must be looked at for.
    pub const UNUSUAL: u16 = Self::OFFLINE | Self::MOVE_UDP | Self::MOVE_TCP | Self::RESET_TCP;

    /// Whether all bits of `flags` are set.
    #[inline(always)]
    pub const fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

pod!(NextHop, Backend);

const _: () = assert!(size_of::<NextHop>() == 16);
const _: () = assert!(offset_of!(NextHop, peer) == 4 && offset_of!(NextHop, local) == 10);
const _: () = assert!(size_of::<Backend>() == 44);
