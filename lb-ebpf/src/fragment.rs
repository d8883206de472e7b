//! Fragments follow the first one, which alone has ports. Until it comes, later ones wait in user space: the program
//! cannot keep a frame, so it hands a copy over and gets it back by BPF_PROG_TEST_RUN.

use core::hint::black_box;

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::helpers::bpf_xdp_load_bytes;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::fragment::HELD_FRAME;
use lb_common::{Address, FragmentKey, FragmentPorts, PROTO_TCP, PROTO_UDP, Reason};

use crate::clock::now;
use crate::count;
use crate::frame::{Frame, L3};
use crate::maps::{FRAGMENTS, HELD_FRAGMENTS, TICKS_PER_SECOND, VIPS};
use crate::parse::{Packet, is_hidden};
use crate::stop::Stop;

/// How long the first fragment speaks for the others: what Linux waits for the rest of a datagram (ipfrag_time).
const LIFETIME_S: u32 = 30;

/// Gives a later fragment the ports of its datagram. One that comes too early is held if it may be ours.
#[inline(always)]
pub(crate) fn recall<A: Address>(frame: &Frame, packet: &mut Packet<A>) -> Result<(), Stop> {
    if !packet.fragment.is_later() {
        return Ok(());
    }
    if is_hidden::<A>(packet.key.protocol, packet.fragment) {
        // No two datagrams of IPv6 under way share an identification, whatever their protocols.
        return match know(packet, PROTO_UDP).or_else(|| know(packet, PROTO_TCP)) {
            Some(()) => Ok(()),
            None => Err(Stop::pass(Reason::OtherProtocol)),
        };
    }
    if know(packet, packet.key.protocol).is_some() {
        return Ok(());
    }
    let key = key_of(packet);
    if VIPS.get_ptr_mut(&key.destination).is_none() {
        return Err(Stop::pass(Reason::NotOurs));
    }
    if !frame.is_to_this_host() {
        return Err(Stop::pass(Reason::OtherHost));
    }
    match hold(frame, &key) {
        Some(()) => Err(Stop::NOTED),
        None => Err(Stop::drop_unknown(Reason::Fragment)),
    }
}

/// Completes a later fragment if the first of a datagram of this protocol has come.
#[inline(always)]
fn know<A: Address>(packet: &mut Packet<A>, protocol: u8) -> Option<()> {
    // SAFETY: the value is two words; one that is replaced meanwhile is the old datagram's or the new one's.
    let ports = unsafe { FRAGMENTS.get(&FragmentKey { protocol, ..key_of(packet) }) }?;
    if now().wrapping_sub(ports.since) >= LIFETIME_S * TICKS_PER_SECOND.load() {
        return None;
    }
    packet.key.protocol = protocol;
    packet.key.source_port = ports.source_port;
    packet.key.destination_port = ports.destination_port;
    Some(())
}

/// Notes the ports of a first fragment that travels on.
#[inline(always)]
pub(crate) fn remember<A: Address>(packet: &Packet<A>) {
    if packet.fragment.is_first() {
        let ports = FragmentPorts {
            source_port: packet.key.source_port,
            destination_port: packet.key.destination_port,
            since: now(),
        };
        // A full map evicts; where it cannot, the later fragments are lost, as they would be on the wire.
        let _ = FRAGMENTS.insert(&key_of(packet), &ports, 0);
    }
}

#[inline(always)]
fn key_of<A: Address>(packet: &Packet<A>) -> FragmentKey {
    FragmentKey {
        source: packet.key.source.widen(),
        destination: packet.key.destination.widen(),
        identification: packet.fragment.identification,
        protocol: packet.key.protocol,
        _pad: [0; 3],
    }
}

/// Copies the frame for user space.
#[inline(always)]
fn hold(frame: &Frame, key: &FragmentKey) -> Option<()> {
    // Opaque, and each bound by itself: Linux 6.1 wants to see both on the very register that the helper gets, and the
    // compiler would make one comparison of them, on another.
    let length = black_box(frame.length() as usize);
    if length > HELD_FRAME {
        return None;
    }
    let length = black_box(length);
    if length < L3 {
        return None;
    }
    let mut entry = HELD_FRAGMENTS.reserve(0)?;
    let held = entry.as_mut_ptr();
    // SAFETY: the entry is as large as the struct, and no more than `length` bytes are written behind `frame`, which
    // the comparison above bounds.
    let result = unsafe {
        (*held).key = *key;
        (*held).ingress = frame.ingress();
        (*held).length = length as u32;
        let bytes = (&raw mut (*held).frame).cast();
        bpf_xdp_load_bytes(frame.context(), 0, bytes, length as u32)
    };
    if result != 0 {
        entry.discard(0);
        return None;
    }
    entry.submit(0);
    count::reason(Reason::FragmentHeld as u32, 0);
    Some(())
}

/// Counts a fragment that was held and whose first did not come in time. Never attached: the controller runs it by
/// BPF_PROG_TEST_RUN, once for each, since it cannot add to counters of the program.
#[xdp]
pub(crate) fn lose_fragment(_ctx: XdpContext) -> u32 {
    count::reason(Reason::Fragment as u32, 0);
    XDP_DROP
}
