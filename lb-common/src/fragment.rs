//! Fragments: only the first has ports, the others are recognised by what they share with it.

use crate::{Addr6, FlowKey, pod};

/// Largest frame that is held for its first fragment, in bytes; one that is larger is lost if it comes too early.
pub const HELD_FRAME: usize = 2048;

/// Entries in the map `fragments`: datagrams under way at once. An LRU map that is much smaller evicts long before it
/// is full.
pub const MAX_FRAGMENTED: u32 = 16_384;

/// Key of the map `fragments`: what the fragments of one datagram share (RFC 791, 3.2; RFC 8200, 4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// Source as it arrives; IPv4 as IPv4-mapped IPv6.
    pub source: Addr6,
    /// Destination as it arrives; IPv4 as IPv4-mapped IPv6.
    pub destination: Addr6,
    /// Identification, network order as a number of the machine.
    pub identification: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Padding, always zero.
    pub _pad: [u8; 3],
}

/// Value of the map `fragments`: what the first fragment told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentPorts {
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
    /// When the first fragment came, in ticks.
    pub since: u32,
}

/// Record in the ring `held_fragments`: a fragment that came before its first. The controller hands it to the program
/// again when that has come.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct HeldFragment {
    /// The datagram it is of.
    pub key: FragmentKey,
    /// Index of the interface it came in through.
    pub ingress: u32,
    /// Bytes of the frame that count.
    pub length: u32,
    /// The frame, from the Ethernet header on.
    pub frame: [u8; HELD_FRAME],
}

/// Record in the ring `events`: a sample of what happened to packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// The packet's tuple as it arrived; zero where it was not understood that far.
    pub key: FlowKey<Addr6>,
    /// Number of the [`crate::Reason`].
    pub reason: u32,
    /// Id of the listener plus one; 0 where none is known.
    pub listener: u32,
    /// Index of the interface it came in through.
    pub ingress: u32,
    /// When, in ticks.
    pub tick: u32,
}

pod!(FragmentKey, FragmentPorts, HeldFragment, Event);

const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<FragmentPorts>() == 8);
const _: () = assert!(size_of::<HeldFragment>() == 48 + HELD_FRAME);
const _: () = assert!(size_of::<Event>() == 56);
