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

impl Traffic {
    /// Adds more of it.
    #[inline(always)]
    pub const fn add(&mut self, more: &Self) {
        self.packets += more.packets;
        self.bytes += more.bytes;
    }

    /// What there is beyond an earlier count.
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(earlier.packets),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}

impl Counters {
    /// The traffic in a direction of [`crate::Flow`].
    #[inline(always)]
    pub const fn of_direction(&mut self, direction: u8) -> &mut Traffic {
        if direction == crate::Flow::<crate::Addr4>::TO_BACKEND {
            &mut self.to_backend
        } else {
            &mut self.to_client
        }
    }

    /// Adds what others have counted.
    pub const fn add(&mut self, more: &Self) {
        self.to_backend.add(&more.to_backend);
        self.to_client.add(&more.to_client);
        self.new_flows += more.new_flows;
        self.refused += more.refused;
    }

    /// What has been counted since an earlier count.
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            to_backend: self.to_backend.since(&earlier.to_backend),
            to_client: self.to_client.since(&earlier.to_client),
            new_flows: self.new_flows.saturating_sub(earlier.new_flows),
            refused: self.refused.saturating_sub(earlier.refused),
        }
    }
}

pod!(Traffic, Counters);

const _: () = assert!(size_of::<Counters>() == 48);
