//! What follows the choice of a backend: the flow is made. Two CPUs may want to open the same one at once: one has its turn, the
//! other waits and uses what the first has made.

use lb_common::{Address, Backend, Flow, Listener, PROTO_TCP, PROTO_UDP, Reason, copy_lifetime_s};

use crate::attend::shown;
use crate::choose::Choice;
use crate::clock::now;
use crate::family::Family;
use crate::flow::Known;
use crate::frame::Frame;
use crate::half_open::Turn;
use crate::maps::{BACKENDS, Keys, Opening};
use crate::parse::Packet;
use crate::stop::Stop;
use crate::{count, half_open, snat};

/// Opens a flow to a backend, when it is this CPU's turn: claims its source, and with that the tuple of its answers, then enters it.
#[inline(always)]
pub(crate) fn open<'a, F: Family>(
    frame: &Frame,
    packet: &'a Packet<F::Addr>,
    hash: u64,
    choice: &Choice<'_>,
    keys: &mut Keys,
) -> Result<Known<'a, F::Addr>, Stop> {
    let Choice { listener, backend_id, .. } = *choice;
    let drop = |reason| Stop::drop(reason, listener.id);
    require_room::<F>(packet, listener)?;
    let full = drop(Reason::ConnectionsFull);
    let opening = F::opening().ok_or(full)?;
    let turn = Turn::take::<F>(hash).ok_or(full)?;
    if turn.is_late::<F>(&packet.key) {
        turn.leave();
        return join::<F>(packet, hash, opening).map_err(drop);
    }
    let made = write(frame, packet, choice, &mut opening.flow).ok_or(Reason::Malformed);
    if let Err(reason) = made.and_then(|()| snat::claim::<F, true>(&packet.key, choice, opening, keys)) {
        turn.leave();
        return Err(drop(reason));
    }
    if !turn.enter::<F>(&packet.key, &opening.flow) {
        return Err(full);
    }
    count::new_flow(listener.id, backend_id);
    let Backend { next_hop, mtu, .. } = *choice.backend;
    let direction = Flow::<F::Addr>::TO_BACKEND;
    Ok(Known { flow: &opening.flow, client: &packet.key, direction, next_hop, mtu })
}

/// Refuses a packet that would open a flow while there is no room for one that is promoted.
#[inline(always)]
pub(crate) fn require_room<F: Family>(packet: &Packet<F::Addr>, listener: &Listener) -> Result<(), Stop> {
    // A flow that moves gives back the room that it needs.
    if F::is_full() && !packet.had_flow {
        return Err(Stop::drop(Reason::ConnectionsFull, listener.id));
    }
    Ok(())
}

/// Another CPU was first to open the flow: its choice holds, and it may have chosen from another rotation.
#[inline(always)]
fn join<'a, F: Family>(
    packet: &'a Packet<F::Addr>,
    hash: u64,
    opening: &'a mut Opening<F::Addr>,
) -> Result<Known<'a, F::Addr>, Reason> {
    let Opening { flow, .. } = opening;
    let flow = match half_open::find::<F>(hash, &packet.key, flow) {
        Some(_) => flow,
        None => match F::connections().get_ptr_mut(&packet.key) {
            // SAFETY: as in `flow::find`.
            Some(flow) => unsafe { &*flow },
            None => return Err(Reason::ConnectionsFull),
        },
    };
    let backend = BACKENDS.get(flow.backend).ok_or(Reason::NoBackend)?;
    if !backend.next_hop.is_resolved() {
        return Err(Reason::NextHopUnresolved);
    }
    let direction = Flow::<F::Addr>::TO_BACKEND;
    Ok(Known { flow, client: &packet.key, direction, next_hop: backend.next_hop, mtu: backend.mtu })
}

/// A new flow, all but its translation.
#[inline(always)]
fn write<A: Address>(
    frame: &Frame,
    packet: &Packet<A>,
    choice: &Choice<'_>,
    flow: &mut Flow<A>,
) -> Option<()> {
    let now = now();
    let protocol = packet.key.protocol;
    // The answers of a DSR flow are never seen, so nothing but the client's FIN can tell that it is over. UDP has none, and
    // here whatever was seen would be an answer.
    let is_closed = choice.listener.flags & Listener::DSR != 0 && protocol == PROTO_TCP;
    // Field by field into the map: a whole value would first be built on the stack.
    flow.backend = choice.backend_id;
    flow.listener = choice.listener.id;
    flow.client = frame.sender()?;
    flow.created = now;
    flow.last_seen = now;
    // A UDP flow is established by its second datagram or by an answer.
    flow.seen_to_backend = if protocol == PROTO_UDP { Flow::<A>::SYN } else { shown(packet) };
    flow.seen_to_client = if is_closed { Flow::<A>::FIN } else { 0 };
    flow.mtu = choice.client_mtu;
    flow.flags = 0;
    flow.copy_s = copy_lifetime_s(choice.listener.idle_timeout_s(protocol));
    flow._pad = [0; 2];
    Some(())
}
