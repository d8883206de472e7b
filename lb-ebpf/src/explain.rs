//! What would become of a packet: the steps of the journey, without those that leave a trace. No flow, counter or rate
//! changes.
//!
//! Before Linux 6.12 a packet may arrive on this CPU in the middle of it and use the same scratch memory: the packet ends
//! its journey before this goes on, so nothing happens to it, but the answer may be a mixture. Who asks, asks twice.

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use lb_common::{Address, Explanation, Flow, NextHop, Reason};

use crate::family::Family;
use crate::flow::Seen;
use crate::frame::Frame;
use crate::maps::{Keys, Scratch};
use crate::parse::{self, Packet};
use crate::stop::Stop;
use crate::translate::Translation;
use crate::wire::{ETHER_IPV4, ETHER_IPV6};
use crate::{admit, attend, choose, flow, open, snat};

/// Writes an [`Explanation`] over the first bytes of the frame.
#[inline(always)]
pub(crate) fn answer<F: Family>(frame: &mut Frame) -> Option<()> {
    let (kind, l3) = frame.carries()?;
    let Scratch { packet, keys, explanation, .. } = F::scratch()?;
    (explanation.listener, explanation.backend, explanation.flags) =
        (Explanation::NONE, Explanation::NONE, 0);
    let is_ip = kind == ETHER_IPV4 || kind == ETHER_IPV6;
    let known = if is_ip { parse::whole::<F>(frame, l3, packet) } else { Err(Stop::pass(Reason::NotIp)) };
    let stop = known.and_then(|()| travel::<F>(frame, packet, keys, explanation));
    if let Err(stop) = stop {
        write_stop(stop, explanation);
    }
    frame.overwrite(explanation)
}

/// The journey of a packet of a flow, or of one that opens a flow.
#[inline(always)]
fn travel<F: Family>(
    frame: &Frame,
    packet: &mut Packet<F::Addr>,
    keys: &mut Keys,
    explanation: &mut Explanation,
) -> Result<(), Stop> {
    if let Some(Seen { flow, client, direction }) = flow::look::<F>(&packet.key) {
        (explanation.listener, explanation.backend) = (flow.listener, flow.backend);
        if direction == Flow::<F::Addr>::TO_CLIENT {
            explanation.flags = Explanation::TO_CLIENT;
        }
        if packet.is_sound && attend::is_astray(frame, flow, direction) {
            return Err(Stop::pass(Reason::OtherHost));
        }
        if let Some((next_hop, mtu)) = attend::way(packet, flow, direction)? {
            if !flow::fits(frame, packet.length, mtu) {
                return Err(Stop::too_big(flow.listener, mtu));
            }
            let to = Translation::of::<F>(flow, client, direction);
            explanation.source = to.source.widen();
            explanation.destination = to.destination.widen();
            (explanation.source_port, explanation.destination_port) = (to.source_port, to.destination_port);
            write_way(&next_hop, mtu, explanation);
            return Ok(());
        }
        packet.had_flow = true;
    }
    begin::<F>(frame, packet, keys, explanation)
}

/// The detour of a packet without a flow.
#[inline(always)]
fn begin<F: Family>(
    frame: &Frame,
    packet: &Packet<F::Addr>,
    keys: &mut Keys,
    explanation: &mut Explanation,
) -> Result<(), Stop> {
    explanation.backend = Explanation::NONE;
    let choice = choose::choose::<F>(frame, packet, keys)?;
    (explanation.listener, explanation.backend) = (choice.listener.id, choice.backend_id);
    explanation.flags = Explanation::NEW;
    let drop = |reason| Stop::drop(reason, choice.listener.id);
    if admit::is_over_limit(choice.listener) {
        return Err(drop(Reason::RateLimited));
    }
    open::require_room::<F>(packet, choice.listener)?;
    let opening = F::opening().ok_or(drop(Reason::ConnectionsFull))?;
    snat::claim::<F, false>(&packet.key, &choice, opening, keys).map_err(drop)?;
    if !flow::fits(frame, packet.length, choice.backend.mtu) {
        return Err(Stop::too_big(choice.listener.id, choice.backend.mtu));
    }
    let answers = &opening.answers;
    explanation.source = answers.destination.widen();
    explanation.destination = answers.source.widen();
    (explanation.source_port, explanation.destination_port) = (answers.destination_port, answers.source_port);
    write_way(&choice.backend.next_hop, choice.backend.mtu, explanation);
    Ok(())
}

#[inline(always)]
fn write_way(next_hop: &NextHop, mtu: u16, explanation: &mut Explanation) {
    explanation.verdict = Explanation::FORWARD;
    explanation.reason = Explanation::NONE;
    explanation.next_hop = *next_hop;
    explanation.mtu = mtu.into();
}

#[inline(always)]
fn write_stop(stop: Stop, explanation: &mut Explanation) {
    explanation.verdict = if stop.action == XDP_DROP { Explanation::DROP } else { Explanation::PASS };
    explanation.reason = stop.reason;
    explanation.mtu = stop.mtu;
    if stop.counters != 0 {
        explanation.listener = stop.counters - 1;
    }
    explanation.flags |= match stop.answer {
        Stop::NOTHING => 0,
        Stop::RESET | Stop::CUT => Explanation::RESET,
        _ => Explanation::ERROR,
    };
}
