//! Part of a new flow: which source will the backend see? A SNAT port is claimed by inserting the reply half of
//! the flow under the key its answers will have, which the map allows once.
//!
//! Ports are handed out by counters, one for each group of destinations: the search goes on where the last one
//! ended, so a port that was just freed is the last to be used again (the backend may hold it in TIME_WAIT), and
//! a nearly full range still yields a port within few tries. Where it meets a block of taken ports it jumps.

use lb_common::{Address, Backend, FlowKey, Listener, Reason, SNAT_CURSORS, Settings, hash};

use crate::atomic;
use crate::checksum::Sum;
use crate::choose::{Choice, find_listener};
use crate::family::Family;
use crate::maps::{Opening, SETTINGS, SNAT_CURSOR};

/// Ports tried for one flow before it is refused.
const TRIES: u32 = 128;
/// Tries in a row. Later ones jump over the range, out of a block of ports that long-lived flows hold.
const TRIES_IN_ROW: u32 = 16;

const EEXIST: i32 = -17;
const BPF_NOEXIST: u64 = 1;

/// Claims a source for the flow with this key, as `opening.answers`, by inserting `opening.half`, which is the one
/// for the answers.
#[inline(always)]
pub(crate) fn claim<F: Family>(
    key: &FlowKey<F::Addr>,
    choice: &Choice<'_>,
    opening: &mut Opening<F::Addr>,
) -> Result<(), Reason> {
    let Choice { listener, backend, .. } = choice;
    let settings = SETTINGS.get(0).ok_or(Reason::SnatPortsExhausted)?;
    let translate = needs_translation::<F>(key.source, listener, backend);
    opening.answers = FlowKey {
        source: F::Addr::narrow(backend.address),
        source_port: if backend.port == 0 { key.destination_port } else { backend.port },
        destination: key.source,
        destination_port: key.source_port,
        protocol: key.protocol,
        _pad: [0; 3],
    };
    if !translate && try_claim::<F>(key, opening)? {
        return Ok(());
    }
    let group = group_of(&opening.answers);
    if translate {
        let number = hash::policy_hash(key, Listener::FIVE_TUPLE);
        opening.answers.destination = F::snat_address(settings, number).unwrap_or(key.destination);
    }
    let cursor = hash::finish(hash::mix_address(group, opening.answers.destination)) % SNAT_CURSORS;
    let cursor = SNAT_CURSOR.get_ptr_mut(cursor).ok_or(Reason::SnatPortsExhausted)?;
    for attempt in 0..TRIES {
        let step = if attempt < TRIES_IN_ROW { 1 } else { jump(settings) };
        opening.answers.destination_port = next_port(cursor, settings, step);
        let is_taken = translate && is_listened_on(&opening.answers);
        if !is_taken && try_claim::<F>(key, opening)? {
            return Ok(());
        }
    }
    Err(Reason::SnatPortsExhausted)
}

/// Whether the source must be translated for the answers to come back through the balancer.
#[inline(always)]
fn needs_translation<F: Family>(client: F::Addr, listener: &Listener, backend: &Backend) -> bool {
    match listener.snat {
        Listener::SNAT_NEVER => false,
        Listener::SNAT_AUTO => {
            let address = F::Addr::narrow(backend.address);
            let onlink = u32::from(backend.onlink_prefix_len);
            client == address || (onlink != 0 && F::common_prefix(client, address) >= onlink)
        }
        _ => true,
    }
}

/// Whether a SNAT port belongs to a listener, whose packets must not be taken for answers.
#[inline(always)]
fn is_listened_on<A: Address>(answers: &FlowKey<A>) -> bool {
    find_listener(answers.destination, answers.destination_port, answers.protocol).is_some()
}

/// Inserts the half for the answers unless another flow has the same source at the same backend.
#[inline(always)]
fn try_claim<F: Family>(key: &FlowKey<F::Addr>, opening: &mut Opening<F::Addr>) -> Result<bool, Reason> {
    let Opening { answers, half } = opening;
    (half.ip_difference, half.l4_difference) = differences::<F>(answers, &key.reversed());
    match F::connections().insert(&*answers, &*half, BPF_NOEXIST) {
        Ok(()) => Ok(true),
        Err(EEXIST) => Ok(false),
        Err(_) => Err(Reason::ConnectionsFull),
    }
}

/// The differences that translating one tuple into another makes to the header checksum and to that of TCP or
/// UDP.
#[inline(always)]
fn differences<F: Family>(from: &FlowKey<F::Addr>, to: &FlowKey<F::Addr>) -> (u16, u16) {
    let addresses = Sum::default().address(from.source, to.source).address(from.destination, to.destination);
    let ports = addresses
        .word(from.source_port.to_be(), to.source_port.to_be())
        .word(from.destination_port.to_be(), to.destination_port.to_be());
    (F::ip_difference(addresses.fold()), ports.fold())
}

/// The group of destinations that share a counter.
#[inline(always)]
fn group_of<A: Address>(answers: &FlowKey<A>) -> u32 {
    hash::mix(hash::mix_address(u32::from(answers.protocol), answers.source), u32::from(answers.source_port))
}

/// The next port of the range, counted round; the one after it will be `step` further.
#[inline(always)]
fn next_port(cursor: *mut u64, settings: &Settings, step: u64) -> u16 {
    // SAFETY: `cursor` points to a value of the map `snat_cursors`.
    let ticket = unsafe { atomic::fetch_add(cursor, step) };
    settings.snat_port_first.wrapping_add(ticket.checked_rem(ports(settings)).unwrap_or_default() as u16)
}

/// A step whose multiples spread evenly over the range: its length divided by the golden ratio.
#[inline(always)]
fn jump(settings: &Settings) -> u64 {
    ((ports(settings) * 40_503) >> 16) | 1
}

/// Number of ports in the range.
#[inline(always)]
fn ports(settings: &Settings) -> u64 {
    u64::from(settings.snat_port_last.wrapping_sub(settings.snat_port_first)) + 1
}
