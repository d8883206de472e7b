//! An attached interface as the packet path sees it.

use crate::pod;

/// Value of the map `interfaces`, whose key is the interface index: what tells frames to this host from those that a
/// switch flooded, which XDP sees although the host's stack ignores them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct InterfaceMac {
    /// The interface's own MAC.
    pub mac: [u8; 6],
    /// Padding.
    pub _pad: [u8; 2],
}

pod!(InterfaceMac);

const _: () = assert!(size_of::<InterfaceMac>() == 8);
