//! Flows: found by the tuple of a packet, or opened for a new one. How the two halves of a flow belong together
//! is told in `lb_common::flow`.
//!
//! Two CPUs may open the same flow at once: the first to insert the half to the backend wins, the other gives
//! its claimed port back and uses the winner's. Fields of a half that change later (`last_seen`, `seen`,
//! `client`) are written without locks: each is idempotent, and a lost write is repeated by the next packet.

use lb_common::{Address, Backend, Flow, NextHop, PROTO_UDP, Reason, SEEN_PER_SECOND, flow::is_closing};

use crate::checksum;
use crate::choose::Choice;
use crate::clock::now;
use crate::family::Family;
use crate::frame::Frame;
use crate::maps::{BACKENDS, Opening, TICKS_PER_SECOND};
use crate::parse::Packet;
use crate::stop::Stop;
use crate::wire::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use crate::{count, snat};

/// A flow and the way its packet leaves.
pub(crate) type Known<'a, A> = (&'a Flow<A>, NextHop);

const BPF_NOEXIST: u64 = 1;

/// Finds the flow of a packet and the way it goes on. `None` if the packet belongs to no flow, or to one that
/// must choose anew.
#[inline(always)]
pub(crate) fn find<'a, F: Family>(
    frame: &Frame,
    packet: &Packet<F::Addr>,
) -> Result<Option<Known<'a, F::Addr>>, Stop> {
    let Some(half) = F::connections().get_ptr_mut(&packet.key) else { return Ok(None) };
    // SAFETY: the entry stays readable during this run of the program (RCU); concurrent writers touch single
    // words only, see the top of this file.
    let flow = unsafe { &mut *half };
    if !packet.is_sound {
        return Err(Stop::drop(Reason::Malformed, flow.listener));
    }
    if packet.is_fragment {
        return Err(Stop::drop(Reason::Fragment, flow.listener));
    }
    let next_hop = if flow.direction == Flow::<F::Addr>::TO_BACKEND {
        learn_client::<F>(frame, packet, flow)?;
        let Some(backend) = BACKENDS.get(flow.backend) else { return Ok(None) };
        if chooses_anew::<F>(packet, flow, backend) {
            close::<F>(packet, flow);
            return Ok(None);
        }
        if backend.has(Backend::OFFLINE) {
            return Err(Stop::drop(Reason::BackendOffline, flow.listener));
        }
        backend.next_hop
    } else {
        flow.client
    };
    if !next_hop.is_resolved() {
        return Err(Stop::drop(Reason::NextHopUnresolved, flow.listener));
    }
    note::<F>(packet, flow);
    Ok(Some((flow, next_hop)))
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
    !backend.has(Backend::IN_ROTATION) || is_closing(flow.seen, seen_by_other::<F>(packet, flow))
}

/// What the opposite direction of a flow has shown.
#[inline(always)]
fn seen_by_other<F: Family>(packet: &Packet<F::Addr>, flow: &Flow<F::Addr>) -> u8 {
    // SAFETY: a byte is read at once from an entry that stays readable (RCU).
    unsafe { F::connections().get(&flow.other_half(packet.key.protocol)) }.map_or(0, |other| other.seen)
}

/// Removes both halves; the one that claims the port last.
#[inline(always)]
fn close<F: Family>(packet: &Packet<F::Addr>, flow: &Flow<F::Addr>) {
    let other_half = flow.other_half(packet.key.protocol);
    // Either may be gone already, removed by another CPU or by the collector.
    let _ = F::connections().remove(&packet.key);
    let _ = F::connections().remove(&other_half);
}

/// Follows a client whose packets begin to come another way, a router that took over for example. What was sent to
/// another host teaches nothing, nor does it travel on.
#[inline(always)]
fn learn_client<F: Family>(
    frame: &Frame,
    packet: &Packet<F::Addr>,
    flow: &mut Flow<F::Addr>,
) -> Result<(), Stop> {
    let sender = frame.sender().ok_or(Stop::TO_KERNEL)?;
    if flow.client == sender {
        return Ok(());
    }
    if !frame.is_to_this_host() {
        return Err(Stop::TO_KERNEL);
    }
    flow.client = sender;
    if let Some(other) = F::connections().get_ptr_mut(&flow.other_half(packet.key.protocol)) {
        // SAFETY: see the top of this file.
        unsafe { (*other).client = sender };
    }
    Ok(())
}

/// Notes that the flow lives and what its packet showed, writing only what changes.
#[inline(always)]
fn note<F: Family>(packet: &Packet<F::Addr>, flow: &mut Flow<F::Addr>) {
    let now = now();
    if now.wrapping_sub(flow.last_seen) >= TICKS_PER_SECOND.load() / SEEN_PER_SECOND {
        flow.last_seen = now;
    }
    let seen = flow.seen | shown(packet);
    if seen != flow.seen {
        // A RST that answers a SYN carries an ACK, one that answers anything else does not (RFC 9293, 3.10.7.1).
        let is_refusal = flow.direction == Flow::<F::Addr>::TO_CLIENT
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
    let mut shown = if flags & TCP_SYN != 0 { Flow::<A>::SYN } else { Flow::<A>::ESTABLISHED };
    if flags & TCP_FIN != 0 {
        shown |= Flow::<A>::FIN;
    }
    if flags & TCP_RST != 0 {
        shown = Flow::<A>::RST;
    }
    shown
}

/// Opens a flow to a backend: claims its source by inserting the half for the answers, then inserts the half to
/// the backend.
#[inline(always)]
pub(crate) fn open<'a, F: Family>(
    frame: &Frame,
    packet: &Packet<F::Addr>,
    choice: &Choice<'_>,
) -> Result<Known<'a, F::Addr>, Stop> {
    let Choice { listener, backend_id, backend } = *choice;
    let drop = |reason| Stop::drop(reason, listener.id);
    let opening = F::opening().ok_or(Stop::TO_KERNEL)?;
    opening.half = answering_half(frame, packet, choice).ok_or(Stop::TO_KERNEL)?;
    snat::claim::<F>(&packet.key, choice, opening).map_err(drop)?;
    turn_to_backend::<F>(packet, opening);
    let inserted = F::connections().insert(&packet.key, &opening.half, BPF_NOEXIST).is_ok();
    if !inserted {
        let _ = F::connections().remove(&opening.answers);
    }
    // SAFETY: as in `find`.
    let flow = unsafe { F::connections().get(&packet.key) }.ok_or(drop(Reason::ConnectionsFull))?;
    if inserted {
        count::new_flow(listener.id, backend_id);
    }
    Ok((flow, backend.next_hop))
}

/// The half for the answers, its translation apart: back to the client as its packet came.
#[inline(always)]
fn answering_half<A: Address>(frame: &Frame, packet: &Packet<A>, choice: &Choice<'_>) -> Option<Flow<A>> {
    let now = now();
    Some(Flow {
        source: packet.key.destination,
        destination: packet.key.source,
        source_port: packet.key.destination_port,
        destination_port: packet.key.source_port,
        ip_difference: 0,
        l4_difference: 0,
        backend: choice.backend_id,
        listener: choice.listener.id,
        client: frame.sender()?,
        created: now,
        last_seen: now,
        direction: Flow::<A>::TO_CLIENT,
        seen: 0,
        mtu: 0,
        flags: 0,
        _pad: [0; 3],
    })
}

/// Makes the half to the backend out of the one for the answers: the opposite translation.
#[inline(always)]
fn turn_to_backend<F: Family>(packet: &Packet<F::Addr>, opening: &mut Opening<F::Addr>) {
    let Opening { answers, half } = opening;
    half.source = answers.destination;
    half.destination = answers.source;
    half.source_port = answers.destination_port;
    half.destination_port = answers.source_port;
    half.ip_difference = F::ip_difference(checksum::inverse(half.ip_difference));
    half.l4_difference = checksum::inverse(half.l4_difference);
    half.direction = Flow::<F::Addr>::TO_BACKEND;
    half.seen = shown(packet);
}
