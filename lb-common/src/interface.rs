//! An attached interface as the packet path sees it.

use crate::pod;

/// Value of the map `interfaces`, whose key is the interface index: what tells frames to this host from those that a
/// switch flooded, which XDP sees although the host's stack ignores them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceMac {
    /// The interface's own MAC.
    pub mac: [u8; 6],
    /// Its MTU, in bytes from the IP header on; 0 when unknown.
    pub mtu: u16,
    /// Bits of [`InterfaceMac::GENERIC`].
    pub flags: u32,
}

impl InterfaceMac {
    /// The program runs in the kernel's generic path, where a packet may be many segments in one that the kernel cuts
    /// again on the way out: its length says nothing of the MTU.
    pub const GENERIC: u32 = 1 << 0;
}

pod!(InterfaceMac);

const _: () = assert!(size_of::<InterfaceMac>() == 12);
