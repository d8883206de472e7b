//! A flow: two linked entries of `connections_v4` or `connections_v6`, one for each direction.
//!
//! Why two entries and not one record: a packet of either direction then needs exactly one lookup, which is
//! what an established packet costs. The key is the tuple as it arrives, the value is the whole answer. The two
//! halves need no pointers to find each other: the translated tuple of one half, turned round, is the key of
//! the other ([`Flow::other_half`]). The reply half is inserted first and only if absent, which claims the
//! SNAT port; it is removed last, which releases it.

use crate::{Address, MAX_COPY_S, NextHop, PROTO_TCP, pod};

/// Key of the connection maps: the 5-tuple of a packet as it arrives, before translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Padding, always zero.
    pub _pad: [u8; 3],
}

impl<A: Address> FlowKey<A> {
    /// The tuple of the packets that answer this one.
    #[inline(always)]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..self
        }
    }
}

/// Value of the connection maps: what happens to a packet with this key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow<A> {
    /// Source address after translation.
    pub source: A,
    /// Destination address after translation.
    pub destination: A,
    /// Source port after translation, host order.
    pub source_port: u16,
    /// Destination port after translation, host order.
    pub destination_port: u16,
    /// Difference the translation makes to the IPv4 header checksum (RFC 1624); 0 for IPv6.
    pub ip_difference: u16,
    /// Difference it makes to the TCP or UDP checksum, pseudo-header included (RFC 1624).
    pub l4_difference: u16,
    /// Id of the backend.
    pub backend: u32,
    /// Id of the listener.
    pub listener: u32,
    /// The way back to the client: learnt from the link-layer source of its packets.
    pub client: NextHop,
    /// When the flow was made, in ticks (the low 32 bits of the kernel's jiffies).
    pub created: u32,
    /// When a packet last passed this half, in ticks; written at most [`crate::SEEN_PER_SECOND`] times a second. Packets that
    /// find a copy of the flow do not write it: see [`Flow::copy_s`].
    pub last_seen: u32,
    /// [`Flow::TO_BACKEND`] or [`Flow::TO_CLIENT`].
    pub direction: u8,
    /// What this direction has shown so far: bits of [`Flow::SYN`] and so on.
    pub seen: u8,
    /// MTU of the link to the client, in bytes from the IP header on; 0 when unknown. That to the backend stands in
    /// [`crate::Backend::mtu`].
    pub mtu: u16,
    /// Bits of [`Flow::CUT`]; a half with any of them leaves the short way through the program.
    pub flags: u8,
    /// Seconds for which copies of an established half are used: `last_seen` may be as much too early.
    pub copy_s: u8,
    /// Padding.
    pub _pad: [u8; 2],
}

impl<A> Flow<A> {
    /// Direction of packets from the client.
    pub const TO_BACKEND: u8 = 0;
    /// Direction of the answers.
    pub const TO_CLIENT: u8 = 1;

    /// A TCP SYN, or the UDP datagram that opened the flow.
    pub const SYN: u8 = 1 << 0;
    /// A TCP packet after the handshake (client: an ACK without SYN), or a further UDP datagram.
    pub const ESTABLISHED: u8 = 1 << 1;
    /// A TCP FIN.
    pub const FIN: u8 = 1 << 2;
    /// A TCP RST.
    pub const RST: u8 = 1 << 3;

    /// The controller has ended this TCP flow: its next packet is turned into a RST.
    pub const CUT: u8 = 1 << 0;
    /// Beside [`Flow::CUT`]: the flow has idled out, so either end gets the RST itself when it sends.
    pub const IDLE: u8 = 1 << 1;

    /// Seconds that its last packet may have come later than `last_seen` says. Of what is opened, closed or cut right now the
    /// time is known better.
    #[inline(always)]
    pub const fn lag_s(&self) -> u8 {
        let is_calm = self.seen & (Self::ESTABLISHED | Self::FIN | Self::RST) == Self::ESTABLISHED;
        match self.copy_s {
            // Also of flows that another version has made: lanes last only so long.
            copy_s if copy_s as u32 > MAX_COPY_S => MAX_COPY_S as u8,
            copy_s if copy_s > 1 && is_calm && self.flags == 0 => copy_s,
            _ => 1,
        }
    }
}

impl<A: Address> Flow<A> {
    /// Key of the other half: the translated tuple, turned round.
    #[inline(always)]
    pub fn other_half(&self, protocol: u8) -> FlowKey<A> {
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol,
            _pad: [0; 3],
        }
    }
}

/// Whether the two directions have closed the connection: both have sent FIN, or either has sent RST.
#[inline(always)]
pub const fn is_closing(seen: u8, seen_by_other: u8) -> bool {
    const FIN: u8 = Flow::<crate::Addr4>::FIN;
    const RST: u8 = Flow::<crate::Addr4>::RST;
    (seen & seen_by_other & FIN != 0) || ((seen | seen_by_other) & RST != 0)
}

/// Whether the client tries once more to open a connection that its backend took for an earlier one: it answered the SYN
/// with an ACK, which the client refused by a RST, as RFC 9293, 3.5.1 wants it. That RST has ended the earlier one, so that the
/// same source will do now, where another may be held by an earlier connection again.
#[inline(always)]
pub const fn is_retried(seen_to_backend: u8, seen_to_client: u8) -> bool {
    type Bits = Flow<crate::Addr4>;
    seen_to_backend & (Bits::ESTABLISHED | Bits::FIN) == 0 && seen_to_client == Bits::ESTABLISHED
}

/// Whether a flow waits for the client's first ACK: `seen` is that of the half to the backend.
#[inline(always)]
pub const fn is_half_open(protocol: u8, seen: u8) -> bool {
    protocol == PROTO_TCP && seen & Flow::<crate::Addr4>::ESTABLISHED == 0
}

/// Whether a flow has proved that its client exists: by an ACK that only a receiver of the SYN-ACK can send, or, for
/// UDP, by an answer from the backend or a second datagram. A TCP flow that was picked up without SYN has proved it once
/// its backend goes on with it. What has not is the first to go when room is needed.
#[inline(always)]
pub const fn is_promoted(protocol: u8, seen_to_backend: u8, seen_to_client: u8) -> bool {
    type Bits = Flow<crate::Addr4>;
    let is_established = seen_to_backend & Bits::ESTABLISHED != 0;
    if protocol != PROTO_TCP {
        return is_established || seen_to_client != 0;
    }
    let is_answered = seen_to_client & !Bits::RST != 0 && seen_to_client & Bits::RST == 0;
    is_established && (seen_to_backend & Bits::SYN != 0 || is_answered)
}

/// Value of the per-CPU rings `half_open_v4` and `half_open_v6`: a flow that was opened and has not been promoted yet.
/// A ring that comes round ends the oldest of them, so that no number of SYNs takes room from established flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HalfOpen<A> {
    /// Key of the half to the backend.
    pub key: FlowKey<A>,
    /// [`Flow::created`] of that flow: tells it from a later one of the same tuple.
    pub created: u32,
    /// 0, [`HalfOpen::OPENED`] or [`HalfOpen::PICKED_UP`].
    pub used: u32,
}

impl<A> HalfOpen<A> {
    /// The slot has been used, for a flow that began with its first packet.
    pub const OPENED: u32 = 1;
    /// The same, for TCP from the middle of a connection: the collector does not end it as half-open.
    pub const PICKED_UP: u32 = 2;
}

pod!(HalfOpen<crate::Addr4>, HalfOpen<crate::Addr6>);
pod!(FlowKey<crate::Addr4>, FlowKey<crate::Addr6>, Flow<crate::Addr4>, Flow<crate::Addr6>);

const _: () = assert!(size_of::<FlowKey<crate::Addr4>>() == 16);
const _: () = assert!(size_of::<FlowKey<crate::Addr6>>() == 40);
// One cache line for everything an established IPv4 packet needs of its flow.
const _: () = assert!(size_of::<Flow<crate::Addr4>>() == 56);
const _: () = assert!(size_of::<Flow<crate::Addr6>>() == 80);
