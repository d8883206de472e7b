//! Per-CPU counters of listeners and backends; the controller sums them over the CPUs.

use crate::pod;

/// Packets and bytes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes of the IP packets: headers included, link layer not.
    pub bytes: u64,
}

/// Value of the maps `listener_counters` and `backend_counters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// From clients to backends.
    pub to_backend: Traffic,
    /// From backends to clients.
    pub to_client: Traffic,
    /// Flows made.
    pub new_flows: u64,
    /// TCP flows whose SYN the backend refused with a RST.
    pub refused: u64,
}

pod!(Traffic, Counters);

const _: () = assert!(size_of::<Counters>() == 48);
