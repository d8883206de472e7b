//! An end of the journey that is not the wire.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use lb_common::Reason;

use crate::count;

/// Why a packet does not travel on.
///
/// A plain struct whose fields are always written: of an enum the compiler leaves parts undefined that a variant
/// does not use, and the verifier refuses to see such a register shifted.
#[derive(Clone, Copy)]
pub(crate) struct Stop {
    /// The number of a [`Reason`], or [`Stop::NOT_DROPPED`].
    reason: u32,
    /// Index of the counters in the map `drops`.
    drops: u32,
}

impl Stop {
    const NOT_DROPPED: u32 = u32::MAX;

    /// It is not ours, or the kernel handles it better.
    pub(crate) const TO_KERNEL: Self = Self { reason: Self::NOT_DROPPED, drops: 0 };

    /// It belongs to a listener and is dropped.
    #[inline(always)]
    pub(crate) const fn drop(reason: Reason, listener: u32) -> Self {
        Self { reason: reason as u32, drops: listener + 1 }
    }

    /// The number of the reason, if it is dropped.
    #[inline(always)]
    pub(crate) fn reason(self) -> Option<u32> {
        (self.reason != Self::NOT_DROPPED).then_some(self.reason)
    }

    /// Counts a drop and gives the XDP action.
    #[inline(always)]
    pub(crate) fn act(self) -> u32 {
        match self.reason() {
            Some(reason) => {
                count::drop(reason, self.drops);
                XDP_DROP
            }
            None => XDP_PASS,
        }
    }
}
