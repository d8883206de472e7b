//! What a packet does to its flow, and the flow to it: where it goes on, whether the flow has to choose anew or ends, and what the
//! packet tells of it.
//!
//! Fields of a flow that change (`last_seen`, what was seen, `client`) are written without locks: each is idempotent, and a lost
//! write is repeated by the next packet.

use lb_common::{Address, Backend, Flow, FlowKey, NextHop, PROTO_TCP, PROTO_UDP, Reason, SEEN_PER_SECOND};

use crate::clock::now;
use crate::family::Family;
use crate::frame::Frame;
use crate::maps::{BACKENDS, INTERFACES, TICKS_PER_SECOND};
use crate::parse::Packet;
use crate::stop::Stop;
use crate::wire::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use crate::{cache, count};

/// Sees to a packet of a flow: where it goes on, and what it tells of the flow. `None` if the flow must choose anew.
#[inline(always)]
pub(crate) fn attend<F: Family>(
    frame: &Frame,
    packet: &mut Packet<F::Addr>,
    flow: &mut Flow<F::Addr>,
    client: &FlowKey<F::Addr>,
    direction: u8,
) -> Result<Option<(NextHop, u16)>, Stop> {
    if packet.is_sound {
        if is_astray(frame, flow, direction) {
            return Err(Stop::pass(Reason::OtherHost));
        }
        learn_client(frame, client, flow, direction)?;
    }
    match way(packet, flow, direction) {
        Ok(Some((next_hop, mtu))) => {
            // Whoever writes when the flow was seen has to, since answers do it as often.
            if direction == Flow::<F::Addr>::TO_CLIENT {
                flow.mtu = mtu;
            } else {
                learn_mtu(flow);
            }
            note::<F>(packet, flow, direction);
            Ok(Some((next_hop, mtu)))
        }
        Ok(None) => {
            packet.had_flow = true;
            Ok(None)
        }
        Err(stop) => {
            if stop.ends_flow {
                *flow.seen_mut(direction) |= Flow::<F::Addr>::RST;
            }
            Err(stop)
        }
    }
}

/// The next hop of a packet of this flow, and the MTU of the link there. `None` if the flow must choose anew. Changes
/// nothing.
#[inline(always)]
pub(crate) fn way<A: Address>(
    packet: &Packet<A>,
    flow: &Flow<A>,
    direction: u8,
) -> Result<Option<(NextHop, u16)>, Stop> {
    if !packet.is_sound {
        return Err(Stop::drop(Reason::Malformed, flow.listener));
    }
    let (next_hop, mtu) = if direction == Flow::<A>::TO_BACKEND {
        let Some(backend) = BACKENDS.get(flow.backend) else { return Ok(None) };
        if chooses_anew(packet, flow, backend) {
            return Ok(None);
        }
        end_to_backend(packet, flow, backend)?;
        (backend.next_hop, backend.mtu)
    } else {
        if flow.flags & Flow::<A>::CUT != 0 {
            let answer = match () {
                () if flow.flags & Flow::<A>::IDLE == 0 => Stop::CUT,
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
fn chooses_anew<A: Address>(packet: &Packet<A>, flow: &Flow<A>, backend: &Backend) -> bool {
    let moves = if packet.key.protocol == PROTO_UDP { Backend::MOVE_UDP } else { Backend::MOVE_TCP };
    if backend.has(moves) {
        return true;
    }
    packet.is_syn() && (!backend.has(Backend::IN_ROTATION) || flow.is_closing() && !flow.is_retried())
}

/// Whether a packet of this flow was sent to another host. One that comes as those of its client do is not looked at.
#[inline(always)]
pub(crate) fn is_astray<A: Address>(frame: &Frame, flow: &Flow<A>, direction: u8) -> bool {
    let is_as_ever = direction == Flow::<A>::TO_BACKEND && frame.sender() == Some(flow.client);
    !is_as_ever && !frame.is_to_this_host()
}

/// Follows a client whose packets begin to come another way, a router that took over for example.
#[inline(always)]
fn learn_client<A: Address>(
    frame: &Frame,
    client: &FlowKey<A>,
    flow: &mut Flow<A>,
    direction: u8,
) -> Result<(), Stop> {
    let sender = frame.sender().ok_or(Stop::pass(Reason::OtherProtocol))?;
    if direction != Flow::<A>::TO_BACKEND || flow.client == sender {
        return Ok(());
    }
    flow.client = sender;
    flow.mtu = mtu_to_client(flow);
    cache::outdate(client);
    cache::outdate(&flow.answers(client.protocol));
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
pub(crate) fn learn_mtu<A>(flow: &mut Flow<A>) {
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
pub(crate) fn note<F: Family>(packet: &Packet<F::Addr>, flow: &mut Flow<F::Addr>, direction: u8) {
    let shows_news = cache::shows_news(packet);
    if shows_news {
        cache::forget::<F>(packet);
    }
    let is_to_client = direction == Flow::<F::Addr>::TO_CLIENT;
    // Half-open and closed flows end by what showed that they are, to the tick. A backend that repeats its SYN-ACK keeps none alive.
    let keeps_alive = !(is_to_client && flow.is_half_open(packet.key.protocol));
    if keeps_alive && (shows_news || is_note_due(flow)) {
        flow.last_seen = now();
    }
    let shown = shown(packet);
    if packet.fragment.is_later() {
        return;
    }
    let before = flow.seen(direction);
    // A flow that goes on after a RST was not ended by it: the RST was forged, or did not fit.
    let known = if packet.is_reset() { before } else { before & !Flow::<F::Addr>::RST };
    let seen = known | shown;
    if seen != before {
        // A RST that answers a SYN carries an ACK, one that answers anything else does not (RFC 9293, 3.10.7.1).
        let is_refusal = packet.key.protocol == PROTO_TCP
            && is_to_client
            && before == 0
            && packet.tcp_flags & (TCP_RST | TCP_ACK) == TCP_RST | TCP_ACK;
        if is_refusal {
            count::refused(flow.listener, flow.backend);
        }
        *flow.seen_mut(direction) = seen;
    }
}

/// What a packet shows of its direction.
#[inline(always)]
pub(crate) fn shown<A: Address>(packet: &Packet<A>) -> u8 {
    let flags = packet.tcp_flags;
    match () {
        () if packet.is_reset() => Flow::<A>::RST,
        () if flags & TCP_SYN != 0 => Flow::<A>::SYN,
        () if flags & TCP_FIN != 0 => Flow::<A>::ESTABLISHED | Flow::<A>::FIN,
        () => Flow::<A>::ESTABLISHED,
    }
}
