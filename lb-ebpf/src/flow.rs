//! Second step: the flow of a packet, found by its tuple. Where flows stand is told in `lb_common::flow`.

use lb_common::{Address, Backend, Flow, FlowKey, InterfaceMac, MAX_BACKENDS, NextHop, PROTO_TCP, Tuple};

use crate::attend::{attend, learn_mtu, note};
use crate::bucket::hash_of;
use crate::family::Family;
use crate::frame::Frame;
use crate::maps::{BACKENDS, Opening};
use crate::ours::{Concern, may_be_ours};
use crate::parse::Packet;
use crate::stop::Stop;
use crate::translate::Translation;
use crate::whereabouts::{self, Spot};
use crate::wire::{TCP_ACK, TCP_RST, TCP_SYN};
use crate::{answers, cache, half_open};

/// A flow and the way its packet leaves.
pub(crate) struct Known<'a, A> {
    pub(crate) flow: &'a Flow<A>,
    /// The tuple of the client's packets.
    pub(crate) client: &'a FlowKey<A>,
    /// [`Flow::TO_BACKEND`] or [`Flow::TO_CLIENT`].
    pub(crate) direction: u8,
    pub(crate) next_hop: NextHop,
    /// MTU of the link it leaves by; 0 when unknown.
    pub(crate) mtu: u16,
}

impl<A: Address> Known<'_, A> {
    /// What becomes of the packet.
    #[inline(always)]
    pub(crate) fn translation<F: Family<Addr = A>>(&self) -> Translation<A> {
        Translation::of::<F>(self.flow, self.client, self.direction)
    }
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
    /// No flow that has been promoted.
    Unknown,
    /// Nothing that has to do with the balancer.
    Nothing,
    /// A flow, but the packet needs the long way.
    Unusual,
}

/// Finds the flow of a packet that needs nothing but translation.
#[inline(always)]
pub(crate) fn find_established<'a, F: Family>(
    frame: &Frame,
    packet: &'a Packet<F::Addr>,
    concern: Concern,
) -> Short<'a, F::Addr> {
    let Some(Opening { client, .. }) = F::opening() else { return Short::Unusual };
    let key = &packet.key;
    let is_answer = may_be_ours(key.source) && answers::client_of::<F>(key, client);
    // Whoever sends to somebody else has no flow to send in.
    if !is_answer && concern != Concern::ToOurs {
        return Short::Nothing;
    }
    // Saves a search in the connection map, which costs more than all else that the first packet of a flow does here.
    if !is_answer && !Spot::of::<F>(Tuple::of(key).hash()).is_some_and(|spot| spot.may_be_promoted()) {
        return Short::Unknown;
    }
    let (client, direction) =
        if is_answer { (&*client, Flow::<F::Addr>::TO_CLIENT) } else { (key, Flow::<F::Addr>::TO_BACKEND) };
    let Some(flow) = F::connections().get_ptr_mut(client) else { return Short::Unknown };
    // SAFETY: as in `find`.
    let flow = unsafe { &mut *flow };
    if is_answer && !flow.is_answered_by(key) {
        return Short::Unusual;
    }
    let is_unusual =
        packet.key.protocol == PROTO_TCP && packet.tcp_flags & (TCP_SYN | TCP_RST | TCP_ACK) != TCP_ACK;
    if !packet.is_sound || is_unusual || flow.flags != 0 {
        return Short::Unusual;
    }
    let Some(backend) = BACKENDS.get(flow.backend) else { return Short::Unusual };
    learn_mtu(flow);
    let (next_hop, mtu) = if direction == Flow::<F::Addr>::TO_BACKEND {
        if backend.flags & Backend::UNUSUAL != 0 || frame.sender() != Some(flow.client) {
            return Short::Unusual;
        }
        (backend.next_hop, backend.mtu)
    } else {
        // Nearly every answer comes to where the packets to its backend leave.
        if !frame.is_to(backend.next_hop.local) {
            return Short::Unusual;
        }
        (flow.client, flow.mtu)
    };
    if !is_within(packet.length, mtu) || !next_hop.is_resolved() {
        return Short::Unusual;
    }
    note::<F>(packet, flow, direction);
    Short::Known(Known { flow, client, direction, next_hop, mtu })
}

/// Finds the promoted flow of any packet and the way it goes on. `None` if the packet belongs to none, or to one that
/// must choose anew.
#[inline(always)]
pub(crate) fn find<'a, F: Family>(
    frame: &Frame,
    packet: &mut Packet<F::Addr>,
) -> Result<Option<Known<'a, F::Addr>>, Stop> {
    let Some(Opening { client, .. }) = F::opening() else { return Ok(None) };
    let Some((flow, direction)) = promoted::<F>(&packet.key, client) else { return Ok(None) };
    // SAFETY: the entry stays readable during this run of the program (RCU); concurrent writers touch single
    // words only, see the top of `attend`.
    let flow = unsafe { &mut *flow };
    match attend::<F>(frame, packet, flow, client, direction) {
        Ok(Some((next_hop, mtu))) => Ok(Some(Known { flow, client, direction, next_hop, mtu })),
        // A flow that is not understood is left alone: its packets are dropped.
        Ok(None) if flow.backend < MAX_BACKENDS => {
            close::<F>(client, flow);
            Ok(None)
        }
        not_found => not_found.map(|_| None),
    }
}

/// The promoted flow of a tuple, and the direction of packets with it. `client` becomes the tuple of the client's packets.
#[inline(always)]
fn promoted<F: Family>(
    key: &FlowKey<F::Addr>,
    client: &mut FlowKey<F::Addr>,
) -> Option<(*mut Flow<F::Addr>, u8)> {
    if may_be_ours(key.source)
        && answers::client_of::<F>(key, client)
        && let Some(flow) = F::connections().get_ptr_mut(&*client)
        // SAFETY: as in `find`.
        && unsafe { &*flow }.is_answered_by(key)
    {
        return Some((flow, Flow::<F::Addr>::TO_CLIENT));
    }
    *client = *key;
    Some((F::connections().get_ptr_mut(&*client)?, Flow::<F::Addr>::TO_BACKEND))
}

/// The same of a flow that has not been promoted, by the hash of the tuple, too; it is copied to `flow`.
#[inline(always)]
fn half_opened<F: Family>(
    hash: u64,
    key: &FlowKey<F::Addr>,
    client: &mut FlowKey<F::Addr>,
    flow: &mut Flow<F::Addr>,
) -> Option<(half_open::Place<F::Addr>, u8)> {
    if may_be_ours(key.source)
        && answers::client_of::<F>(key, client)
        && let Some(place) = half_open::find::<F>(hash_of(client), client, flow)
        && flow.is_answered_by(key)
    {
        return Some((place, Flow::<F::Addr>::TO_CLIENT));
    }
    *client = *key;
    Some((half_open::find::<F>(hash, client, flow)?, Flow::<F::Addr>::TO_BACKEND))
}

/// A flow to be looked at, and not changed.
pub(crate) struct Seen<A: 'static> {
    pub(crate) flow: &'static Flow<A>,
    /// The tuple of the client's packets.
    pub(crate) client: &'static FlowKey<A>,
    /// That of packets with the tuple it was found by.
    pub(crate) direction: u8,
}

/// The flow of a tuple, wherever it stands.
#[inline(always)]
pub(crate) fn look<F: Family>(key: &FlowKey<F::Addr>) -> Option<Seen<F::Addr>> {
    let Opening { client, flow, .. } = F::opening()?;
    if let Some((flow, direction)) = promoted::<F>(key, client) {
        // SAFETY: as in `find`.
        return Some(Seen { flow: unsafe { &*flow }, client, direction });
    }
    let (_, direction) = half_opened::<F>(hash_of(key), key, client, flow)?;
    Some(Seen { flow, client, direction })
}

/// Finds the flow of a packet, whose tuple has this hash, among those that have not been promoted. What the packet shows may promote it.
#[inline(always)]
pub(crate) fn find_half_open<'a, F: Family>(
    frame: &Frame,
    packet: &mut Packet<F::Addr>,
    hash: u64,
) -> Result<Option<Known<'a, F::Addr>>, Stop> {
    let Some(Opening { client, flow, .. }) = F::opening() else { return Ok(None) };
    let Some((place, direction)) = half_opened::<F>(hash, &packet.key, client, flow) else {
        return if may_have_moved::<F>(hash, packet, client) { find::<F>(frame, packet) } else { Ok(None) };
    };
    let attended = attend::<F>(frame, packet, flow, client, direction);
    let Ok(Some((next_hop, mtu))) = attended else {
        match attended {
            Ok(_) if flow.backend < MAX_BACKENDS => {
                place.end::<F>(client, flow);
            }
            _ => place.update(flow, direction),
        }
        return attended.map(|_| None);
    };
    if flow.is_promoted(packet.key.protocol) {
        let listener = flow.listener;
        if !place.promote::<F>(client, flow, direction).map_err(|reason| Stop::drop(reason, listener))? {
            return Ok(None);
        }
    } else {
        place.update(flow, direction);
    }
    Ok(Some(Known { flow, client, direction, next_hop, mtu }))
}

/// Whether the flow of a packet, whose tuple has this hash, may have been promoted since it was looked for among the promoted ones. Never
/// where a client's first packet tells that it is one, which is what most are that come here.
#[inline(always)]
fn may_have_moved<F: Family>(hash: u64, packet: &Packet<F::Addr>, client: &mut FlowKey<F::Addr>) -> bool {
    let goes_on = packet.key.protocol == PROTO_TCP && !packet.is_syn();
    !packet.had_flow
        && (goes_on
            || Spot::of::<F>(hash).is_some_and(|spot| spot.may_be_promoted())
            || may_be_ours(packet.key.source) && answers::client_of::<F>(&packet.key, client))
}

/// Ends a promoted flow, unless another CPU or the collector has: whoever does gives its answers back.
#[inline(always)]
fn close<F: Family>(client: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) {
    let Some(Opening { ended, .. }) = F::opening() else { return };
    *ended = flow.answers(client.protocol);
    if F::connections().remove(client).is_ok() {
        whereabouts::forget_promoted::<F>(client);
        answers::give_back::<F>(ended, client);
    }
    // Others must not go on with copies when the port is somebody else's.
    cache::outdate(client);
    cache::outdate(ended);
}
