//! Second step for a packet without a flow: which listener is it for, and which backend gets it?

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::listener::Vip;
use lb_common::{
    Addr6, Address, Backend, Features, Listener, ListenerKey, NO_BACKEND, PROTO_TCP, RangeKey, Reason, hash,
};

use crate::admit;
use crate::atomic;
use crate::family::Family;
use crate::features::uses;
use crate::frame::Frame;
use crate::maps::{BACKENDS, Keys, LISTENER_RANGES, LISTENERS, MAGLEV, STRAYS, VIPS};
use crate::ours::may_be_ours;
use crate::parse::Packet;
use crate::stop::Stop;

/// Who takes a new flow.
#[derive(Clone, Copy)]
pub(crate) struct Choice<'a> {
    pub(crate) listener: &'a Listener,
    pub(crate) backend_id: u32,
    pub(crate) backend: &'a Backend,
    /// MTU of the link that the packet came by; 0 when unknown.
    pub(crate) client_mtu: u16,
}

/// Chooses a backend from the rotation of the listener's set, or says why there is none. Changes nothing but `keys`.
#[inline(always)]
pub(crate) fn choose<'a, F: Family>(
    frame: &Frame,
    packet: &Packet<F::Addr>,
    keys: &mut Keys,
) -> Result<Choice<'a>, Stop> {
    let key = &packet.key;
    // A notation, never the address of a packet (RFC 4291, 2.5.5.2): it would find the IPv4 listener of this key.
    if F::Addr::VERSION == 6 && key.destination.widen().is_ipv4_mapped() {
        return Err(Stop::pass(Reason::NotOurs));
    }
    keys.listener.address = key.destination.widen();
    let vip_flags = vip_flags(&keys.listener.address).ok_or(Stop::pass(Reason::NotOurs))?;
    let interface = frame.interface();
    if !frame.is_to_this(interface) {
        return Err(Stop::pass(Reason::OtherHost));
    }
    let Some(listener) = find_listener(keys, key.destination_port, key.protocol, vip_flags) else {
        let is_stray = vip_flags & Vip::LISTENS != 0;
        return Err(Stop::pass(if is_stray { Reason::NoListener } else { Reason::NotOurs }));
    };
    let drop = |reason| Stop::drop(reason, listener.id);
    // Port 0 is reserved (RFC 6335, 6): nobody could answer it.
    if !packet.is_sound || key.source_port == 0 || key.destination_port == 0 {
        return Err(drop(Reason::Malformed));
    }
    // A VIP sends nothing by itself. What a backend answered would come back here, and go round for ever.
    if may_be_ours(key.source) && self::vip_flags(&key.source.widen()).is_some() {
        return Err(drop(Reason::Malformed));
    }
    // The first fragment opened a flow, or would have been dropped itself.
    if packet.fragment.is_later() {
        return Err(drop(Reason::Fragment));
    }
    if admit::is_denied(key.source, listener, &mut keys.source) {
        return Err(drop(Reason::SourceDenied));
    }
    if is_untracked(packet, listener) {
        let refuses = listener.on_untracked_tcp == Listener::RESET && !packet.is_reset();
        return Err(Stop::refuse(refuses, key.protocol, Reason::Untracked, listener.id));
    }
    let refuses = listener.flags & Listener::REFUSE != 0;
    let no_backend = Stop::refuse(refuses, key.protocol, Reason::NoBackend, listener.id);
    let slot = hash::maglev_slot(key, listener.policy);
    let backend_id = table_entry(listener.set, slot).ok_or(no_backend)?;
    let backend = BACKENDS.get(backend_id).ok_or(no_backend)?;
    if !backend.next_hop.is_resolved() {
        return Err(drop(Reason::NextHopUnresolved));
    }
    let client_mtu = interface.map_or(0, |interface| interface.mtu);
    Ok(Choice { listener, backend_id, backend, client_mtu })
}

/// What is known of a VIP: bits of [`Vip::LISTENS`] and so on. `None` if the address is none.
#[inline(always)]
pub(crate) fn vip_flags(address: &Addr6) -> Option<u32> {
    // SAFETY: a value of the map `vips` stays readable; its flags are one aligned word.
    VIPS.get_ptr_mut(address).map(|vip| unsafe { (*vip).flags })
}

/// The listener for `keys.listener.address` and a port and protocol. The other keys are scratch memory.
#[inline(always)]
pub(crate) fn find_listener<'a>(
    keys: &mut Keys,
    port: u16,
    protocol: u8,
    vip_flags: u32,
) -> Option<&'a Listener> {
    let Keys { listener: key, range, .. } = keys;
    (key.port, key.protocol, key._pad) = (port, protocol, 0);
    // SAFETY: the map is preallocated and only the controller writes it; an entry replaced meanwhile is read
    // as the old listener or the new one, and both were valid.
    let listener = unsafe { LISTENERS.get(&*key) };
    if listener.is_some() || vip_flags & Vip::HAS_RANGES == 0 || !uses(Features::PORT_RANGES) {
        return listener;
    }
    let data = RangeKey { address: key.address, protocol, _zero: 0, port: port.to_be_bytes() };
    *range = Key::new(8 * size_of::<RangeKey>() as u32, data);
    LISTENER_RANGES.get(&*range)
}

/// Counts a packet to a VIP that no listener takes, so that a listener on the wrong port can be told from one that nobody
/// talks to. `key` is what [`choose`] left.
#[inline(always)]
pub(crate) fn count_stray(key: &ListenerKey) {
    let Some(vip) = VIPS.get_ptr_mut(&key.address) else { return };
    // SAFETY: a value of the map `vips` begins with one aligned u64.
    unsafe { atomic::fetch_add(vip.cast(), 1) };
    match STRAYS.get_ptr_mut(key) {
        // SAFETY: the value is an aligned u64 of the map.
        Some(packets) => drop(unsafe { atomic::fetch_add(packets, 1) }),
        // A full map evicts; an insertion that fails all the same costs a count and nothing else.
        None => drop(STRAYS.insert(key, 1, 0)),
    }
}

/// The backend id in a slot of a set's table.
#[inline(always)]
fn table_entry(set: u32, slot: u32) -> Option<u32> {
    let table = MAGLEV.get_value(set, &0)?;
    // The verifier must see the bound that `slot_of` guarantees.
    let slot = core::hint::black_box(slot) as usize;
    match *table.get(slot)? {
        NO_BACKEND => None,
        id => Some(id.into()),
    }
}

/// Whether it is TCP from the middle of a connection that the listener does not pick up; one whose backend was taken from
/// it is known, and moves. A RST never begins a flow: there is nothing left to pick up.
#[inline(always)]
fn is_untracked<A: Address>(packet: &Packet<A>, listener: &Listener) -> bool {
    packet.key.protocol == PROTO_TCP
        && !packet.is_syn()
        && (packet.is_reset() || (listener.on_untracked_tcp != Listener::PICKUP && !packet.had_flow))
}
