//! Flows: found by the tuple of a packet, or opened for a new one. How the two halves of a flow belong together
//! is told in `lb_common::flow`.
//!
//! Two CPUs may open the same flow at once: the first to insert the half to the backend wins, the other gives
//! its claimed port back and uses the winner's. Fields of a half that change later (`last_seen`, `seen`,
//! `client`) are written without locks: each is idempotent, and a lost write is repeated by the next packet.

use lb_common::{
    Address, Backend, Flow, FlowKey, InterfaceMac, Listener, MAX_BACKENDS, NextHop, PROTO_TCP, PROTO_UDP,
    Reason, SEEN_PER_SECOND, copy_lifetime_s,
    flow::{is_closing, is_retried},
};

use crate::checksum;
use crate::choose::Choice;
use crate::clock::now;
use crate::family::Family;
use crate::frame::Frame;
use crate::maps::{BACKENDS, INTERFACES, Keys, Opening, TICKS_PER_SECOND};
use crate::parse::Packet;
use crate::stop::Stop;
use crate::wire::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use crate::{cache, count, half_open, snat};

/// A flow and the way its packet leaves.
pub(crate) struct Known<'a, A> {
    pub(crate) flow: &'a Flow<A>,
    pub(crate) next_hop: NextHop,
    /// MTU of the link it leaves by; 0 when unknown.
    pub(crate) mtu: u16,
}

/// Whether a packet of this length can leave by a link of this MTU. In the generic path it may be many segments in one.
#[inline(always)]
pub(crate) fn fits(frame: &Frame, length: u16, mtu: u16) -> bool {
    is_within(length, mtu)
        || frame.interface().is_some_and(|interface| interface.flags & InterfaceMac::GENERIC != 0)
}

#[inline(always)]
pub(crate) const fn is_within(length: u16, mtu: u16) -> bool {
    mtu == 0 || length <= mtu
}

/// What the short way finds.
pub(crate) enum Short<'a, A> {
    /// An established flow, and nothing about its packet is unusual.
    Known(Known<'a, A>),
    /// No flow.
    Unknown,
    /// A flow, but the packet needs the long way.
    Unusual,
}

const BPF_NOEXIST: u64 = 1;

/// Finds the flow of a packet that needs nothing but translation.
#[inline(always)]
pub(crate) fn find_established<'a, F: Family>(frame: &Frame, packet: &Packet<F::Addr>) -> Short<'a, F::Addr> {
    let Some(half) = F::connections().get_ptr_mut(&packet.key) else { return Short::Unknown };
    // SAFETY: as in `find`.
    let flow = unsafe { &mut *half };
    let is_unusual =
        packet.key.protocol == PROTO_TCP && packet.tcp_flags & (TCP_SYN | TCP_RST | TCP_ACK) != TCP_ACK;
    if !packet.is_sound || is_unusual || flow.flags != 0 {
        return Short::Unusual;
    }
    let Some(backend) = BACKENDS.get(flow.backend) else { return Short::Unusual };
    let (next_hop, mtu) = if flow.direction == Flow::<F::Addr>::TO_BACKEND {
        if backend.flags & Backend::UNUSUAL != 0 || frame.sender() != Some(flow.client) {
            return Short::Unusual;
        }
        (backend.next_hop, backend.mtu)
    } else {
        // Nearly every answer comes to where the packets to its backend leave.
        if !frame.is_to(backend.next_hop.local) {
            return Short::Unusual;
        }
        learn_mtu(flow);
        (flow.client, flow.mtu)
    };
    if !is_within(packet.length, mtu) || !next_hop.is_resolved() {
        return Short::Unusual;
    }
    note::<F>(packet, flow);
    Short::Known(Known { flow, next_hop, mtu })
}

/// Finds the flow of any packet and the way it goes on. `None` if the packet belongs to no flow, or to one that
/// must choose anew.
#[inline(always)]
pub(crate) fn find<'a, F: Family>(
    frame: &Frame,
    packet: &mut Packet<F::Addr>,
) -> Result<Option<Known<'a, F::Addr>>, Stop> {
    let Some(half) = F::connections().get_ptr_mut(&packet.key) else { return Ok(None) };
    // SAFETY: the entry stays readable during this run of the program (RCU); concurrent writers touch single
    // words only, see the top of this file.
    let flow = unsafe { &mut *half };
    if packet.is_sound {
        if is_astray(frame, flow) {
            return Err(Stop::pass(Reason::OtherHost));
        }
        learn_client::<F>(frame, packet, flow)?;
    }
    match way::<F>(packet, flow) {
        Ok(Some((next_hop, mtu))) => {
            if flow.direction == Flow::<F::Addr>::TO_CLIENT {
                flow.mtu = mtu;
            }
            note::<F>(packet, flow);
            Ok(Some(Known { flow, next_hop, mtu }))
        }
        Ok(None) => {
            packet.had_flow = true;
            // A flow that is not understood is left alone: its packets are dropped.
            if flow.backend < MAX_BACKENDS {
                close::<F>(packet, flow);
            }
            Ok(None)
        }
        Err(stop) => {
            if stop.ends_flow {
                flow.seen |= Flow::<F::Addr>::RST;
            }
            Err(stop)
        }
    }
}

/// The next hop of a packet of this flow, and the MTU of the link there. `None` if the flow must choose anew. Changes
/// nothing.
#[inline(always)]
pub(crate) fn way<F: Family>(
    packet: &Packet<F::Addr>,
    flow: &Flow<F::Addr>,
) -> Result<Option<(NextHop, u16)>, Stop> {
    if !packet.is_sound {
        return Err(Stop::drop(Reason::Malformed, flow.listener));
    }
    let (next_hop, mtu) = if flow.direction == Flow::<F::Addr>::TO_BACKEND {
        let Some(backend) = BACKENDS.get(flow.backend) else { return Ok(None) };
        if chooses_anew::<F>(packet, flow, backend) {
            return Ok(None);
        }
        end_to_backend(packet, flow, backend)?;
        (backend.next_hop, backend.mtu)
    } else {
        if flow.flags & Flow::<F::Addr>::CUT != 0 {
            let answer = match () {
                () if flow.flags & Flow::<F::Addr>::IDLE == 0 => Stop::CUT,
                () if packet.is_reset() => Stop::NOTHING,
                () => Stop::RESET,
            };
            return Err(Stop::answer(Reason::FlowCut, flow.listener, answer));
        }
        (flow.client, mtu_to_client(flow))
    };
    if !next_hop.is_resolved() {
        return Err(Stop::drop(Reason::NextHopUnresolved, flow.listener));
    }
    Ok(Some((next_hop, mtu)))
}

/// Ends the journey of a packet whose backend must not get it any more. The client of a TCP flow is told.
#[inline(always)]
fn end_to_backend<A: Address>(packet: &Packet<A>, flow: &Flow<A>, backend: &Backend) -> Result<(), Stop> {
    let is_tcp = packet.key.protocol == PROTO_TCP;
    let reason = match () {
        () if flow.flags & Flow::<A>::CUT != 0 => Reason::FlowCut,
        () if backend.has(Backend::OFFLINE) => Reason::BackendOffline,
        () if is_tcp && backend.has(Backend::RESET_TCP) => Reason::BackendUnhealthy,
        () => return Ok(()),
    };
    Err(Stop::refuse(is_tcp && !packet.is_reset(), PROTO_TCP, reason, flow.listener).ending_flow(is_tcp))
}

/// Whether a packet to the backend must be treated as the first of a new flow: a SYN on a connection that is
/// closing or whose backend left the rotation, or any packet where the flows of its backend move.
#[inline(always)]
fn chooses_anew<F: Family>(packet: &Packet<F::Addr>, flow: &Flow<F::Addr>, backend: &Backend) -> bool {
    let moves = if packet.key.protocol == PROTO_UDP { Backend::MOVE_UDP } else { Backend::MOVE_TCP };
    if backend.has(moves) {
        return true;
    }
    if !packet.is_syn() {
        return false;
    }
    let answered = seen_by_other::<F>(packet, flow);
    !backend.has(Backend::IN_ROTATION) || is_closing(flow.seen, answered) && !is_retried(flow.seen, answered)
}

/// What the opposite direction of a flow has shown.
#[inline(always)]
fn seen_by_other<F: Family>(packet: &Packet<F::Addr>, flow: &Flow<F::Addr>) -> u8 {
    let Some(other_half) = other_half::<F>(packet.key.protocol, flow) else { return 0 };
    // SAFETY: a byte is read at once from an entry that stays readable (RCU).
    unsafe { F::connections().get(other_half) }.map_or(0, |other| other.seen)
}

/// Removes both halves; the one that claims the port last.
#[inline(always)]
fn close<F: Family>(packet: &Packet<F::Addr>, flow: &Flow<F::Addr>) {
    let Some(other_half) = other_half::<F>(packet.key.protocol, flow) else { return };
    // Either may be gone already, removed by another CPU or by the collector.
    let _ = F::connections().remove(&packet.key);
    let _ = F::connections().remove(other_half);
    // Others must not go on with copies when the port is somebody else's.
    cache::outdate(&packet.key);
    cache::outdate(other_half);
}

/// Key of the other half, in scratch memory: the stack is short.
#[inline(always)]
pub(crate) fn other_half<F: Family>(protocol: u8, flow: &Flow<F::Addr>) -> Option<&'static FlowKey<F::Addr>> {
    let opening = F::opening()?;
    opening.answers = flow.other_half(protocol);
    Some(&opening.answers)
}

/// Whether a packet of this flow was sent to another host. One that comes as those of its client do is not looked at.
#[inline(always)]
pub(crate) fn is_astray<A: Address>(frame: &Frame, flow: &Flow<A>) -> bool {
    let is_as_ever = flow.direction == Flow::<A>::TO_BACKEND && frame.sender() == Some(flow.client);
    !is_as_ever && !frame.is_to_this_host()
}

/// Follows a client whose packets begin to come another way, a router that took over for example.
#[inline(always)]
fn learn_client<F: Family>(
    frame: &Frame,
    packet: &Packet<F::Addr>,
    flow: &mut Flow<F::Addr>,
) -> Result<(), Stop> {
    let sender = frame.sender().ok_or(Stop::pass(Reason::OtherProtocol))?;
    if flow.direction != Flow::<F::Addr>::TO_BACKEND || flow.client == sender {
        return Ok(());
    }
    flow.client = sender;
    let Some(other_half) = other_half::<F>(packet.key.protocol, flow) else { return Ok(()) };
    if let Some(other) = F::connections().get_ptr_mut(other_half) {
        // SAFETY: see the top of this file.
        unsafe {
            (*other).client = sender;
            (*other).mtu = mtu_of(frame);
        }
        cache::outdate(other_half);
    }
    cache::outdate(&packet.key);
    Ok(())
}

/// MTU of the link to the client at this moment; 0 when unknown.
#[inline(always)]
fn mtu_to_client<A>(flow: &Flow<A>) -> u16 {
    // SAFETY: as in `Frame::interface`.
    unsafe { INTERFACES.get(&flow.client.ifindex) }.map_or(0, |interface| interface.mtu)
}

/// Follows the MTU of the link to the client, which may change while the flow lives, as often as `last_seen` is written.
#[inline(always)]
fn learn_mtu<A>(flow: &mut Flow<A>) {
    if is_note_due(flow) {
        flow.mtu = mtu_to_client(flow);
    }
}

/// Whether `last_seen` is to be written again.
#[inline(always)]
fn is_note_due<A>(flow: &Flow<A>) -> bool {
    now().wrapping_sub(flow.last_seen) >= TICKS_PER_SECOND.load() / SEEN_PER_SECOND
}

/// Notes that the flow lives and what its packet showed, writing only what changes.
#[inline(always)]
fn note<F: Family>(packet: &Packet<F::Addr>, flow: &mut Flow<F::Addr>) {
    let shows_news = cache::shows_news(packet);
    if shows_news {
        cache::forget::<F>(packet);
    }
    // Half-open and closed flows end by what showed that they are, to the tick.
    if shows_news || is_note_due(flow) {
        flow.last_seen = now();
    }
    let shown = shown(packet);
    if packet.fragment.is_later() {
        return;
    }
    // A flow that goes on after a RST was not ended by it: the RST was forged, or did not fit.
    let known = if packet.is_reset() { flow.seen } else { flow.seen & !Flow::<F::Addr>::RST };
    let seen = known | shown;
    if seen != flow.seen {
        // A RST that answers a SYN carries an ACK, one that answers anything else does not (RFC 9293, 3.10.7.1).
        let is_refusal = packet.key.protocol == PROTO_TCP
            && flow.direction == Flow::<F::Addr>::TO_CLIENT
            && flow.seen == 0
            && packet.tcp_flags & (TCP_RST | TCP_ACK) == TCP_RST | TCP_ACK;
        if is_refusal {
            count::refused(flow.listener, flow.backend);
        }
        flow.seen = seen;
    }
}

/// What a packet shows of its direction.
#[inline(always)]
fn shown<A: Address>(packet: &Packet<A>) -> u8 {
    let flags = packet.tcp_flags;
    match () {
        () if packet.is_reset() => Flow::<A>::RST,
        () if flags & TCP_SYN != 0 => Flow::<A>::SYN,
        () if flags & TCP_FIN != 0 => Flow::<A>::ESTABLISHED | Flow::<A>::FIN,
        () => Flow::<A>::ESTABLISHED,
    }
}

/// Opens a flow to a backend: claims its source by inserting the half for the answers, then inserts the half to
/// the backend.
#[inline(always)]
pub(crate) fn open<'a, F: Family>(
    frame: &Frame,
    packet: &Packet<F::Addr>,
    choice: &Choice<'_>,
    keys: &mut Keys,
) -> Result<Known<'a, F::Addr>, Stop> {
    let Choice { listener, backend_id, .. } = *choice;
    let drop = |reason| Stop::drop(reason, listener.id);
    let opening = F::opening().ok_or(drop(Reason::ConnectionsFull))?;
    write_answering_half(frame, packet, choice, &mut opening.half).ok_or(drop(Reason::Malformed))?;
    snat::claim::<F, true>(&packet.key, choice, opening, keys).map_err(drop)?;
    turn_to_backend::<F>(packet, opening);
    if F::connections().insert(&packet.key, &opening.half, BPF_NOEXIST).is_ok() {
        count::new_flow(listener.id, backend_id);
        half_open::enter::<F>(&packet.key, &opening.half);
        let Backend { next_hop, mtu, .. } = *choice.backend;
        return Ok(Known { flow: &opening.half, next_hop, mtu });
    }
    // SAFETY: as in `find`.
    let flow = unsafe { F::connections().get(&packet.key) };
    // Without translation it is the other CPU's half as well.
    if flow.is_none() || listener.flags & Listener::DSR == 0 {
        let _ = F::connections().remove(&opening.answers);
    }
    let flow = flow.ok_or(drop(Reason::ConnectionsFull))?;
    // Another CPU was first: its choice holds, and it may have chosen from another rotation.
    let backend = BACKENDS.get(flow.backend).ok_or(drop(Reason::NoBackend))?;
    if !backend.next_hop.is_resolved() {
        return Err(drop(Reason::NextHopUnresolved));
    }
    Ok(Known { flow, next_hop: backend.next_hop, mtu: backend.mtu })
}

/// The half for the answers, its translation apart: back to the client as its packet came.
#[inline(always)]
fn write_answering_half<A: Address>(
    frame: &Frame,
    packet: &Packet<A>,
    choice: &Choice<'_>,
    half: &mut Flow<A>,
) -> Option<()> {
    let now = now();
    // The answers of a DSR flow are never seen, so nothing but the client's FIN can tell that it is over. UDP has none, and
    // here whatever was seen would be an answer.
    let is_closed = choice.listener.flags & Listener::DSR != 0 && packet.key.protocol == PROTO_TCP;
    // Field by field into the map: a whole value would first be built on the stack.
    half.source = packet.key.destination;
    half.destination = packet.key.source;
    half.source_port = packet.key.destination_port;
    half.destination_port = packet.key.source_port;
    half.backend = choice.backend_id;
    half.listener = choice.listener.id;
    half.client = frame.sender()?;
    half.created = now;
    half.last_seen = now;
    half.direction = Flow::<A>::TO_CLIENT;
    half.seen = if is_closed { Flow::<A>::FIN } else { 0 };
    half.mtu = mtu_of(frame);
    half.flags = 0;
    half.copy_s = copy_lifetime_s(choice.listener.idle_timeout_s(packet.key.protocol));
    half._pad = [0; 2];
    Some(())
}

/// MTU of the link that a frame came by; 0 when unknown.
#[inline(always)]
fn mtu_of(frame: &Frame) -> u16 {
    frame.interface().map_or(0, |interface| interface.mtu)
}

/// Makes the half to the backend out of the one for the answers: the opposite translation.
#[inline(always)]
fn turn_to_backend<F: Family>(packet: &Packet<F::Addr>, opening: &mut Opening<F::Addr>) {
    let Opening { answers, half, .. } = opening;
    half.source = answers.destination;
    half.destination = answers.source;
    half.source_port = answers.destination_port;
    half.destination_port = answers.source_port;
    half.ip_difference = F::ip_difference(checksum::inverse(half.ip_difference));
    half.l4_difference = checksum::inverse(half.l4_difference);
    half.direction = Flow::<F::Addr>::TO_BACKEND;
    // A UDP flow is established by its second datagram or by an answer.
    half.seen = if packet.key.protocol == PROTO_UDP { Flow::<F::Addr>::SYN } else { shown(packet) };
}
