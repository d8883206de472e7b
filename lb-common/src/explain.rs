//! What the loaded program says of a packet when it is asked.

use crate::{Addr6, NextHop, pod};

/// What would become of a packet: the answer of the programs `explain_v4` and `explain_v6`, which write it over the first
/// bytes of the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Explanation {
    /// [`Explanation::FORWARD`], [`Explanation::DROP`] or [`Explanation::PASS`].
    pub verdict: u32,
    /// The number of a [`crate::Reason`]; [`Explanation::NONE`] where it is forwarded.
    pub reason: u32,
    /// Id of the listener; [`Explanation::NONE`] if there is none.
    pub listener: u32,
    /// Id of the backend; [`Explanation::NONE`] if none was chosen.
    pub backend: u32,
    /// Bits of [`Explanation::NEW`] and so on.
    pub flags: u32,
    /// MTU of the link it would leave by, in bytes from the IP header on; 0 when unknown.
    pub mtu: u32,
    /// Where it would go.
    pub next_hop: NextHop,
    /// Source address after translation; IPv4 as IPv4-mapped IPv6.
    pub source: Addr6,
    /// Destination address after translation.
    pub destination: Addr6,
    /// Source port after translation, host order.
    pub source_port: u16,
    /// Destination port after translation, host order.
    pub destination_port: u16,
}

impl Explanation {
    /// In place of an id or of a reason.
    pub const NONE: u32 = u32::MAX;

    /// Translated and sent to the next hop.
    pub const FORWARD: u32 = 1;
    /// Dropped, whether somebody is told or not.
    pub const DROP: u32 = 2;
    /// Left to the kernel, untouched.
    pub const PASS: u32 = 3;

    /// It would open a flow.
    pub const NEW: u32 = 1 << 0;
    /// It goes to the client, not to the backend.
    pub const TO_CLIENT: u32 = 1 << 1;
    /// Its sender, or the client of its flow, would get a RST.
    pub const RESET: u32 = 1 << 2;
    /// Its sender would get an ICMP error.
    pub const ERROR: u32 = 1 << 3;
}

pod!(Explanation);

const _: () = assert!(size_of::<Explanation>() == 76);
