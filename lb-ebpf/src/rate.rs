//! What a CPU says of itself, errors and events, is bounded: a flood must not become a flood of them.

use aya_ebpf::btf_maps::PerCpuArray;
use lb_common::RateWindow;

use crate::clock::second;

/// Counts one more in this CPU's running second. Whether it is within the limit.
#[inline(always)]
pub(crate) fn has_room(windows: &PerCpuArray<RateWindow, 1>, limit: u64) -> bool {
    let Some(window) = windows.get_ptr_mut(0) else { return false };
    // SAFETY: the slot belongs to this CPU and XDP programs do not interrupt each other on one CPU.
    let window = unsafe { &mut *window };
    let second = second();
    if window.second != second {
        *window = RateWindow { second, flows: 0 };
    }
    window.flows += 1;
    window.flows <= limit
}
