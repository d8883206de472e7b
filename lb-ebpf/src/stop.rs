//! An end of the journey that is not the next hop.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use lb_common::{PROTO_TCP, Reason};

use crate::count;

/// Why a packet does not travel on.
///
/// A plain struct whose fields are always written: of an enum the compiler leaves parts undefined that a variant
/// does not use, and the verifier refuses to see such a register shifted.
#[derive(Clone, Copy)]
pub(crate) struct Stop {
    /// XDP action.
    pub(crate) action: u32,
    /// The number of a [`Reason`].
    pub(crate) reason: u32,
    /// Index of the counters in the map `drops`.
    pub(crate) counters: u32,
    /// What the sender is told: [`Stop::NOTHING`], or a kind of answer.
    pub(crate) answer: u32,
    /// For [`Stop::TOO_BIG`]: the MTU.
    pub(crate) mtu: u32,
    /// Whether the TCP flow it belongs to ends with it.
    pub(crate) ends_flow: bool,
}

impl Stop {
    /// The packet disappears.
    pub(crate) const NOTHING: u32 = 0;
    /// The sender gets a RST.
    pub(crate) const RESET: u32 = 1;
    /// The packet is turned into a RST to the client of its flow.
    pub(crate) const CUT: u32 = 2;
    /// The sender gets an ICMP port unreachable.
    pub(crate) const UNREACHABLE: u32 = 3;
    /// The sender gets an ICMP error with the MTU.
    pub(crate) const TOO_BIG: u32 = 4;

    /// It is not ours, or the kernel handles it better.
    #[inline(always)]
    pub(crate) const fn pass(reason: Reason) -> Self {
        Self {
            action: XDP_PASS,
            reason: reason as u32,
            counters: 0,
            answer: Self::NOTHING,
            mtu: 0,
            ends_flow: false,
        }
    }

    /// It is dropped here, of which its reason has been told already.
    pub(crate) const NOTED: Self =
        Self { reason: Self::NO_REASON, ..Self::drop_unknown(Reason::FragmentHeld) };

    /// In place of the number of a [`Reason`].
    pub(crate) const NO_REASON: u32 = u32::MAX;

    /// It is dropped before its listener is known.
    #[inline(always)]
    pub(crate) const fn drop_unknown(reason: Reason) -> Self {
        Self { action: XDP_DROP, ..Self::pass(reason) }
    }

    /// It belongs to a listener and is dropped.
    #[inline(always)]
    pub(crate) const fn drop(reason: Reason, listener: u32) -> Self {
        Self { counters: listener + 1, ..Self::drop_unknown(reason) }
    }

    /// It belongs to a listener and is dropped, and somebody is told.
    #[inline(always)]
    pub(crate) const fn answer(reason: Reason, listener: u32, answer: u32) -> Self {
        Self { answer, ..Self::drop(reason, listener) }
    }

    /// It is larger than the link it would leave by can carry.
    #[inline(always)]
    pub(crate) const fn too_big(listener: u32, mtu: u16) -> Self {
        Self { mtu: mtu as u32, ..Self::answer(Reason::TooBig, listener, Self::TOO_BIG) }
    }

    /// It is dropped, and if `told`, its sender is told in the way of its protocol.
    #[inline(always)]
    pub(crate) const fn refuse(told: bool, protocol: u8, reason: Reason, listener: u32) -> Self {
        let answer = match (told, protocol) {
            (false, _) => Self::NOTHING,
            (true, PROTO_TCP) => Self::RESET,
            (true, _) => Self::UNREACHABLE,
        };
        Self::answer(reason, listener, answer)
    }

    /// The same, and whether its TCP flow ends with it.
    #[inline(always)]
    pub(crate) const fn ending_flow(self, ends_flow: bool) -> Self {
        Self { ends_flow, ..self }
    }

    /// Counts it.
    #[inline(always)]
    pub(crate) fn count(self) {
        count::reason(self.reason, self.counters);
    }

    /// Whether it is worth an event.
    #[inline(always)]
    pub(crate) const fn is_drop(self) -> bool {
        self.action == XDP_DROP && self.reason != Self::NO_REASON
    }
}
