//! Counters: per-CPU, so plain additions without atomics.

use lb_common::{Reason, Traffic};

use crate::maps::{BACKEND_COUNTERS, DROPS, LISTENER_COUNTERS};

/// Counts a packet of so many bytes that travels on, for its listener and its backend.
#[inline(always)]
pub(crate) fn packet(listener: u32, backend: u32, direction: u8, bytes: u16) {
    traffic(listener, backend, direction, &Traffic { packets: 1, bytes: bytes.into() });
}

/// The same of many.
#[inline(always)]
pub(crate) fn traffic(listener: u32, backend: u32, direction: u8, more: &Traffic) {
    for counters in [LISTENER_COUNTERS.get_ptr_mut(listener), BACKEND_COUNTERS.get_ptr_mut(backend)] {
        let Some(counters) = counters else { continue };
        // SAFETY: the slot belongs to this CPU and XDP programs do not interrupt each other on one CPU.
        unsafe { &mut *counters }.of_direction(direction).add(more);
    }
}

/// Counts a packet for its lane, from where it gets to listener and backend: see [`lb_common::Lane::traffic`].
#[inline(always)]
pub(crate) fn in_lane(traffic: &mut Traffic, bytes: u32) {
    traffic.add(&Traffic { packets: 1, bytes: bytes.into() });
}

/// Counts a new flow.
#[inline(always)]
pub(crate) fn new_flow(listener: u32, backend: u32) {
    for counters in [LISTENER_COUNTERS.get_ptr_mut(listener), BACKEND_COUNTERS.get_ptr_mut(backend)] {
        // SAFETY: as in `traffic`.
        if let Some(counters) = counters.map(|counters| unsafe { &mut *counters }) {
            counters.new_flows += 1;
        }
    }
}

/// Counts a connection that the backend refused.
#[inline(always)]
pub(crate) fn refused(listener: u32, backend: u32) {
    for counters in [LISTENER_COUNTERS.get_ptr_mut(listener), BACKEND_COUNTERS.get_ptr_mut(backend)] {
        // SAFETY: as in `traffic`.
        if let Some(counters) = counters.map(|counters| unsafe { &mut *counters }) {
            counters.refused += 1;
        }
    }
}

/// Counts a packet under the number of its reason. Index 0 of the map is for packets without a listener.
#[inline(always)]
pub(crate) fn reason(reason: u32, index: u32) {
    let Some(drops) = DROPS.get_ptr_mut(index) else { return };
    // The verifier must see the bound on the very register that is added; an unknown 64-bit number keeps the compiler
    // from narrowing it in between.
    let reason = core::hint::black_box(u64::from(reason));
    if reason >= Reason::ALL.len() as u64 {
        return;
    }
    // SAFETY: `Drops` is one u64 for each reason, in the order of their numbers (asserted beside it), and the
    // slot belongs to this CPU.
    unsafe { *drops.cast::<u64>().add(reason as usize) += 1 };
}
