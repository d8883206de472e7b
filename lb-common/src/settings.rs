//! What holds for the whole instance and may change while the program runs.

use crate::pod;

/// The only value of the map `settings`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// [`crate::LAYOUT_VERSION`] of whoever made the maps.
    pub layout_version: u32,
    /// Ticks in a second: the unit of `created` and `last_seen` of a flow (the kernel's HZ).
    pub ticks_per_second: u32,
    /// First SNAT port, host order.
    pub snat_port_first: u16,
    /// Last SNAT port, host order, inclusive.
    pub snat_port_last: u16,
    /// Addresses in use in `snat_addresses_v4`; 0: the listener's VIP.
    pub snat_addresses_v4: u16,
    /// Addresses in use in `snat_addresses_v6`; 0: the listener's VIP.
    pub snat_addresses_v6: u16,
    /// Bits of [`Settings::ICMP_ECHO`].
    pub flags: u32,
}

impl Settings {
    /// VIPs answer echo requests.
    pub const ICMP_ECHO: u32 = 1 << 0;
}

pod!(Settings);

const _: () = assert!(size_of::<Settings>() == 20);
