//! A flow: one entry of `connections_v4` or `connections_v6`, once its client has proved that it exists; until then a record of
//! `half_open_v4` or `half_open_v6`. The key is the tuple of the client's packets, the value says what becomes of the packets of
//! both directions.
//!
//! An answer comes with another tuple. `answers_v4` and `answers_v6` tell whose it is, and are what claims a SNAT port: a tuple is
//! claimed before its flow is entered anywhere, and given back when the flow is gone (see [`crate::AnswerBucket`]).

use crate::{Address, MAX_COPY_S, NextHop, PROTO_TCP, pod};

/// The 5-tuple of a packet as it arrives, before translation. Key of the connection maps, for packets from the client.
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
    /// Whether it is the same tuple. Word by word, and each only if those before are the same: a program has few registers.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        self.source_port == other.source_port
            && self.destination_port == other.destination_port
            && self.protocol == other.protocol
            && self.source.is(other.source)
            && self.destination.is(other.destination)
    }

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

/// Value of the connection maps: what happens to the packets of a flow. What is said of addresses and ports holds for those to the
/// backend; an answer is translated the opposite way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow<A> {
    /// Source address after translation: the SNAT address, or the client's.
    pub source: A,
    /// Destination address after translation: the backend's.
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
    /// When a packet of either direction last looked at the flow, in ticks, but for answers before the client's first ACK, which keep
    /// nothing alive; written at most [`crate::SEEN_PER_SECOND`] times a second.
    /// Packets that find a copy of the flow do not write it: see [`Flow::copy_s`].
    pub last_seen: u32,
    /// What the packets to the backend have shown so far: bits of [`Flow::SYN`] and so on.
    pub seen_to_backend: u8,
    /// The same of the answers.
    pub seen_to_client: u8,
    /// MTU of the link to the client, in bytes from the IP header on; 0 when unknown. That to the backend stands in
    /// [`crate::Backend::mtu`].
    pub mtu: u16,
    /// Bits of [`Flow::CUT`]; a flow with any of them leaves the short way through the program.
    pub flags: u8,
    /// Seconds for which copies of an established flow are used: `last_seen` may be as much too early.
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

    /// What one direction has shown.
    #[inline(always)]
    pub const fn seen(&self, direction: u8) -> u8 {
        if direction == Self::TO_BACKEND { self.seen_to_backend } else { self.seen_to_client }
    }

    /// The same, to be changed.
    #[inline(always)]
    pub const fn seen_mut(&mut self, direction: u8) -> &mut u8 {
        if direction == Self::TO_BACKEND { &mut self.seen_to_backend } else { &mut self.seen_to_client }
    }

    /// Whether packets with these marks go on as they did, so that copies of the flow may be in use for them.
    #[inline(always)]
    const fn is_calm(seen: u8) -> bool {
        seen & (Self::ESTABLISHED | Self::FIN | Self::RST) == Self::ESTABLISHED
    }

    /// Seconds that its last packet may have come later than `last_seen` says. Of what is opened, closed or cut right now the
    /// time is known better.
    #[inline(always)]
    pub const fn lag_s(&self) -> u8 {
        let may_be_copied = self.flags == 0
            && !self.is_closing()
            && (Self::is_calm(self.seen_to_backend) || Self::is_calm(self.seen_to_client));
        match self.copy_s {
            // Also of flows that another version has made: lanes last only so long.
            copy_s if copy_s as u32 > MAX_COPY_S => MAX_COPY_S as u8,
            copy_s if copy_s > 1 && may_be_copied => copy_s,
            _ => 1,
        }
    }

    /// Whether the two directions have closed the connection: both have sent FIN, or either has sent RST.
    #[inline(always)]
    pub const fn is_closing(&self) -> bool {
        (self.seen_to_backend & self.seen_to_client & Self::FIN)
            | ((self.seen_to_backend | self.seen_to_client) & Self::RST)
            != 0
    }

    /// Whether the client tries once more to open a connection that its backend took for an earlier one: it answered the SYN
    /// with an ACK, which the client refused by a RST, as RFC 9293, 3.5.1 wants it. That RST has ended the earlier one, so that the
    /// same source will do now, where another may be held by an earlier connection again.
    #[inline(always)]
    pub const fn is_retried(&self) -> bool {
        self.seen_to_backend & (Self::ESTABLISHED | Self::FIN) == 0
            && self.seen_to_client == Self::ESTABLISHED
    }

    /// Whether it waits for the client's first ACK.
    #[inline(always)]
    pub const fn is_half_open(&self, protocol: u8) -> bool {
        protocol == PROTO_TCP && self.seen_to_backend & Self::ESTABLISHED == 0
    }

    /// Whether it has proved that its client exists: by an ACK that only a receiver of the SYN-ACK can send, or, for
    /// UDP, by an answer from the backend or a second datagram. A TCP flow that was picked up without SYN has proved it once
    /// its backend goes on with it. What has not is the first to go when room is needed.
    #[inline(always)]
    pub const fn is_promoted(&self, protocol: u8) -> bool {
        let is_established = self.seen_to_backend & Self::ESTABLISHED != 0;
        if protocol != PROTO_TCP {
            return is_established || self.seen_to_client != 0;
        }
        let is_answered = self.seen_to_client & !Self::RST != 0 && self.seen_to_client & Self::RST == 0;
        is_established && (self.seen_to_backend & Self::SYN != 0 || is_answered)
    }
}

impl<A: Address> Flow<A> {
    /// Whether packets with this tuple are its answers.
    #[inline(always)]
    pub fn is_answered_by(&self, key: &FlowKey<A>) -> bool {
        self.destination_port == key.source_port
            && self.source_port == key.destination_port
            && self.destination.is(key.source)
            && self.source.is(key.destination)
    }

    /// The tuple of its answers: the translated one, turned round.
    #[inline(always)]
    pub fn answers(&self, protocol: u8) -> FlowKey<A> {
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

/// Value of the maps `half_open_v4` and `half_open_v6`: a flow that was opened and has not been promoted yet. Each CPU enters
/// those that it opens into a ring of its own, which ends the oldest when it comes round, so that no number of SYNs takes room from
/// established flows. `flows_at_v4` and `flows_at_v6` tell where in the rings a tuple's flow is: see [`crate::bucket`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HalfOpen<A> {
    /// Tells one flow in this slot from the next: flows are counted on each CPU, from 1 on. 0: no flow. Whoever makes it 0, which
    /// is done by comparing and swapping, has ended or promoted the flow, and nobody else has.
    pub number: u64,
    /// The tuple of the client's packets.
    pub key: FlowKey<A>,
    /// What becomes of them.
    pub flow: Flow<A>,
}

pod!(HalfOpen<crate::Addr4>, HalfOpen<crate::Addr6>);
pod!(FlowKey<crate::Addr4>, FlowKey<crate::Addr6>, Flow<crate::Addr4>, Flow<crate::Addr6>);

const _: () = assert!(size_of::<FlowKey<crate::Addr4>>() == 16);
const _: () = assert!(size_of::<FlowKey<crate::Addr6>>() == 40);
// One cache line for everything an established IPv4 packet needs of its flow.
const _: () = assert!(size_of::<Flow<crate::Addr4>>() == 56);
const _: () = assert!(size_of::<Flow<crate::Addr6>>() == 80);
const _: () = assert!(size_of::<HalfOpen<crate::Addr4>>() == 80);
const _: () = assert!(size_of::<HalfOpen<crate::Addr6>>() == 128);
