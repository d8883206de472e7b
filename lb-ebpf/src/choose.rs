//! Second step for a packet without a flow: which listener is it for, and which backend gets it?

use lb_common::listener::Vip;
use lb_common::{Address, Backend, FlowKey, Listener, ListenerKey, NO_BACKEND, PROTO_TCP, Reason, hash};

use crate::atomic;
use crate::count;
use crate::family::Family;
use crate::frame::Frame;
use crate::maps::{BACKENDS, LISTENERS, MAGLEV, STRAYS, VIPS};
use crate::parse::Packet;
use crate::stop::Stop;
use crate::wire::TCP_RST;

/// Who takes a new flow.
#[derive(Clone, Copy)]
pub(crate) struct Choice<'a> {
    pub(crate) listener: &'a Listener,
    pub(crate) backend_id: u32,
    pub(crate) backend: &'a Backend,
}

/// Chooses a backend from the rotation of the listener's set, or says why there is none.
#[inline(always)]
pub(crate) fn choose<'a, F: Family>(frame: &Frame, packet: &Packet<F::Addr>) -> Result<Choice<'a>, Stop> {
    let key = &packet.key;
    // A notation, never the address of a packet (RFC 4291, 2.5.5.2): it would find the IPv4 listener of this key.
    if F::Addr::VERSION == 6 && key.destination.widen().is_ipv4_mapped() {
        return Err(Stop::TO_KERNEL);
    }
    // One small lookup settles the most common case of all: traffic of the host itself.
    let vip = VIPS.get_ptr_mut(&key.destination.widen()).ok_or(Stop::TO_KERNEL)?;
    if !frame.is_to_this_host() {
        return Err(Stop::TO_KERNEL);
    }
    let Some(listener) = find_listener(key.destination, key.destination_port, key.protocol) else {
        return Err(stray(key, vip));
    };
    let drop = |reason| Stop::drop(reason, listener.id);
    // Port 0 is reserved (RFC 6335, 6): nobody could answer it.
    if !packet.is_sound || key.source_port == 0 {
        return Err(drop(Reason::Malformed));
    }
    if packet.is_fragment {
        return Err(drop(Reason::Fragment));
    }
    if is_untracked(packet, listener) {
        return Err(drop(Reason::Untracked));
    }
    let slot = hash::maglev_slot(key, listener.policy);
    let backend_id = table_entry(listener.set, slot).ok_or(drop(Reason::NoBackend))?;
    let backend = BACKENDS.get(backend_id).ok_or(drop(Reason::NoBackend))?;
    if !backend.next_hop.is_resolved() {
        return Err(drop(Reason::NextHopUnresolved));
    }
    Ok(Choice { listener, backend_id, backend })
}

/// The listener for an address, port and protocol.
#[inline(always)]
pub(crate) fn find_listener<'a, A: Address>(address: A, port: u16, protocol: u8) -> Option<&'a Listener> {
    let key = ListenerKey { address: address.widen(), port, protocol, _pad: 0 };
    // SAFETY: the map is preallocated and only the controller writes it; an entry replaced meanwhile is read
    // as the old listener or the new one, and both were valid.
    unsafe { LISTENERS.get(&key) }
}

/// A packet that came to a VIP but that no listener takes. It is counted, so that a listener on the wrong port can be
/// told from one that nobody talks to.
#[inline(always)]
fn stray<A: Address>(key: &FlowKey<A>, vip: *mut Vip) -> Stop {
    // SAFETY: a value of the map `vips` is one aligned u64.
    unsafe { atomic::fetch_add(vip.cast(), 1) };
    count::drop(Reason::NoListener as u32, 0);
    let address = key.destination.widen();
    let key = ListenerKey { address, port: key.destination_port, protocol: key.protocol, _pad: 0 };
    match STRAYS.get_ptr_mut(&key) {
        // SAFETY: the value is an aligned u64 of the map.
        Some(packets) => drop(unsafe { atomic::fetch_add(packets, 1) }),
        // A full map evicts; an insertion that fails all the same costs a count and nothing else.
        None => drop(STRAYS.insert(&key, 1, 0)),
    }
    Stop::TO_KERNEL
}

/// The backend id in a slot of a set's table.
#[inline(always)]
fn table_entry(set: u32, slot: u32) -> Option<u32> {
    let table = MAGLEV.get_value(set, &0)?;
    // The verifier must see the bound that `slot_of` guarantees.
    let slot = core::hint::black_box(slot) as usize;
    match *table.get(slot)? {
        NO_BACKEND => None,
        id => Some(id),
    }
}

/// Whether it is TCP from the middle of a connection that the listener does not pick up. A RST never begins a
/// flow: there is nothing left to pick up.
#[inline(always)]
fn is_untracked<A: Address>(packet: &Packet<A>, listener: &Listener) -> bool {
    packet.key.protocol == PROTO_TCP
        && !packet.is_syn()
        && (listener.on_untracked_tcp == Listener::DROP || packet.tcp_flags & TCP_RST != 0)
}
