//! Part of a new flow: which source will the backend see? A SNAT port is claimed by claiming the tuple that the flow's answers will
//! have, which [`answers`] grants once.
//!
//! Ports are handed out by counters, one for each group of destinations: the search goes on where the last one
//! ended, so a port that was just freed is the last to be used again (the backend may hold it in TIME_WAIT), and
//! a nearly full range still yields a port within few tries. Where it meets a block of taken ports it jumps. Where it
//! meets one flow after the other whose client has not proved that it exists, this is a flood, and the next of them has to
//! give its port: else as many SYNs as there are ports would keep every client out.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::listener::Vip;
use lb_common::{Address, Backend, Flow, FlowKey, Listener, Reason, SNAT_CURSORS, Settings, hash};

use crate::bucket::hash_of;
use crate::checksum::Sum;
use crate::choose::{Choice, find_listener, vip_flags};
use crate::family::Family;
use crate::maps::{Keys, Opening, RESERVED_PORTS, SETTINGS, SNAT_CURSOR};
use crate::ours::may_listen;
use crate::{answers, atomic, half_open};

/// Ports tried for one flow before it is refused.
const TRIES: u32 = 128;
/// Tries in a row. Later ones jump over the range, out of a block of ports that long-lived flows hold.
const TRIES_IN_ROW: u32 = 16;

/// Flows without proof that a search meets before one of them has to go. A range that is nearly full of others has a few
/// in the midst of their handshake.
const UNPROVEN: u32 = 4;

/// Claims a source for the flow with this key, as `opening.answers`, and writes the translation to `opening.flow`. Without `CLAIM` it
/// only looks for the source, and changes nothing.
#[inline(always)]
pub(crate) fn claim<F: Family, const CLAIM: bool>(
    key: &FlowKey<F::Addr>,
    choice: &Choice<'_>,
    opening: &mut Opening<F::Addr>,
    keys: &mut Keys,
) -> Result<(), Reason> {
    let Choice { listener, backend, .. } = choice;
    if listener.flags & Listener::DSR != 0 {
        opening.answers = key.reversed();
        let fixed = fixed_part(&opening.answers, key);
        // Taken by nobody but an earlier flow of the same tuple that ends at this moment: nothing is translated, so no other has these
        // answers.
        return try_claim::<F, CLAIM>(key, opening, fixed, true).map(drop);
    }
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
    if !translate && try_claim::<F, CLAIM>(key, opening, fixed_part(&opening.answers, key), true)? {
        return Ok(());
    }
    let group = group_of(&opening.answers);
    let addresses = if translate { F::snat_addresses(settings) } else { 0 };
    if translate && addresses == 0 {
        opening.answers.destination = key.destination;
    }
    let space = if addresses == 0 { hash::mix_address(group, opening.answers.destination) } else { group };
    let cursor = hash::finish(space) % SNAT_CURSORS;
    let fixed = fixed_part(&opening.answers, key);
    keys.search = Search {
        cursor,
        addresses,
        translate: translate.into(),
        found: Search::NOTHING,
        unproven: 0,
        ahead: 0,
        fixed,
    };
    let mut attempts = Attempts::<F> { key, opening, keys };
    // SAFETY: the callback has the signature the helper wants (kernel 5.17), and `attempts` lives until it returns.
    unsafe { bpf_loop(TRIES, attempt::<F, CLAIM> as *mut c_void, (&raw mut attempts).cast(), 0) };
    match attempts.keys.search.found {
        Search::CLAIMED => Ok(()),
        Search::FULL => Err(Reason::ConnectionsFull),
        _ => Err(Reason::SnatPortsExhausted),
    }
}

/// A search for a free port. It stands in scratch memory, since the stack is short.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Search {
    /// Index of the counter.
    cursor: u32,
    /// SNAT addresses to choose from; 0: the address stands fast.
    addresses: u32,
    /// Whether the source is translated, so that its port must not be anybody else's.
    translate: u32,
    /// How it ended.
    found: u32,
    /// Flows met that have not proved that their client exists.
    unproven: u32,
    /// How far a search that claims nothing has come beyond the counter.
    ahead: u64,
    /// What does not change from one attempt to the next.
    fixed: Fixed,
}

impl Search {
    const NOTHING: u32 = 0;
    const CLAIMED: u32 = 1;
    const FULL: u32 = 2;

    /// The ticket that [`next_ticket`] would give next. The counter stays.
    #[inline(always)]
    fn look_ahead(&mut self, cursor: *const u64, step: u64) -> u64 {
        // SAFETY: `cursor` points to an aligned value of the map `snat_cursors`.
        let ticket = unsafe { *cursor }.wrapping_add(self.ahead);
        self.ahead = self.ahead.wrapping_add(step);
        ticket
    }
}

/// What each attempt gets. The kernel runs the loop: written out, the verifier would walk through each attempt anew.
struct Attempts<'a, F: Family> {
    key: &'a FlowKey<F::Addr>,
    opening: &'a mut Opening<F::Addr>,
    keys: &'a mut Keys,
}

/// Tries the next port. Returns 0 to go on, 1 to end the loop.
#[inline(never)]
unsafe extern "C" fn attempt<F: Family, const CLAIM: bool>(number: u32, attempts: *mut c_void) -> i64 {
    // SAFETY: `claim` passes its own `Attempts`, which nobody else holds meanwhile.
    let Attempts { key, opening, keys } = unsafe { &mut *attempts.cast::<Attempts<'_, F>>() };
    let (Some(settings), Some(cursor)) = (SETTINGS.get(0), SNAT_CURSOR.get_ptr_mut(keys.search.cursor))
    else {
        return 1;
    };
    let addresses = keys.search.addresses;
    let step = step(number, settings, addresses);
    let ticket = if CLAIM { next_ticket(cursor, step) } else { keys.search.look_ahead(cursor, step) };
    opening.answers.destination_port = port_of(ticket, settings, addresses);
    if let Some(address) = F::snat_address(ticket, addresses) {
        opening.answers.destination = address;
    }
    if keys.search.translate != 0 && !is_free_for_snat(&opening.answers, keys) {
        return 0;
    }
    // Another port costs less than a place elsewhere, as long as they are plenty.
    let insists = number >= TRIES_IN_ROW;
    let claimed = match try_claim::<F, CLAIM>(key, opening, keys.search.fixed, insists) {
        Ok(false) if !gives_way::<F, CLAIM>(opening, &mut keys.search.unproven) => return 0,
        // Looking for a source, that of a flow which has to go is as good as a free one.
        Ok(false) if !CLAIM => Ok(true),
        Ok(false) => try_claim::<F, CLAIM>(key, opening, keys.search.fixed, insists),
        claimed => claimed,
    };
    keys.search.found = match claimed {
        Ok(false) => return 0,
        Ok(true) => Search::CLAIMED,
        // Another port may find room where this one has none.
        Err(_) if number + 1 < TRIES => return 0,
        Err(_) => Search::FULL,
    };
    1
}

/// Whether the flow that holds the source has to go, after the search has met others that have not proved that their client
/// exists either. With `CLAIM` it ends here.
#[inline(always)]
fn gives_way<F: Family, const CLAIM: bool>(opening: &mut Opening<F::Addr>, unproven: &mut u32) -> bool {
    let Opening { answers, holder, holder_flow, .. } = opening;
    if !answers::client_of::<F>(answers, holder) {
        return false;
    }
    // One that has been promoted is not there.
    let Some(place) = half_open::find::<F>(hash_of(holder), holder, holder_flow) else { return false };
    let back = holder_flow.seen_to_client;
    let is_answered = back & Flow::<F::Addr>::ESTABLISHED != 0 && back & Flow::<F::Addr>::RST == 0;
    if is_answered || !holder_flow.is_answered_by(answers) {
        return false;
    }
    *unproven += 1;
    if *unproven < UNPROVEN {
        return false;
    }
    if CLAIM {
        half_open::make_room::<F>(place, holder, holder_flow);
    }
    true
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

/// Whether a SNAT port belongs neither to the host nor to a listener, whose packets must not be taken for answers.
#[inline(always)]
fn is_free_for_snat<A: Address>(answers: &FlowKey<A>, keys: &mut Keys) -> bool {
    let port = answers.destination_port;
    let reserved = RESERVED_PORTS.get(u32::from(port >> 6)).copied().unwrap_or_default();
    if (reserved >> (port & 63)) & 1 != 0 {
        return false;
    }
    if !may_listen(port) {
        return true;
    }
    keys.listener.address = answers.destination.widen();
    let vip_flags = vip_flags(&keys.listener.address).unwrap_or_default();
    vip_flags & Vip::LISTENS == 0 || find_listener(keys, port, answers.protocol, vip_flags).is_none()
}

/// Claims the answers unless another flow has the same source at the same backend. Called, since it is asked for in several places and
/// the stack is short.
#[inline(never)]
fn try_claim<F: Family, const CLAIM: bool>(
    key: &FlowKey<F::Addr>,
    opening: &mut Opening<F::Addr>,
    fixed: Fixed,
    insists: bool,
) -> Result<bool, Reason> {
    let Opening { answers, flow, holder, .. } = opening;
    if !CLAIM {
        return Ok(!answers::client_of::<F>(answers, holder));
    }
    // The translation is written while what the claim needs is on its way.
    let home = answers::fetch::<F>(answers);
    write_translation::<F>(flow, answers, key, fixed);
    answers::claim::<F>(answers, key, home, insists)
}

/// The translation of packets to the backend: answers have the tuple that it leads to, turned round.
#[inline(always)]
fn write_translation<F: Family>(
    flow: &mut Flow<F::Addr>,
    answers: &FlowKey<F::Addr>,
    key: &FlowKey<F::Addr>,
    fixed: Fixed,
) {
    flow.source = answers.destination;
    flow.destination = answers.source;
    flow.source_port = answers.destination_port;
    flow.destination_port = answers.source_port;
    let (ip_difference, l4_difference) = differences(answers, key, fixed);
    flow.ip_difference = F::ip_difference(ip_difference);
    flow.l4_difference = l4_difference;
}

/// What translating a packet of the flow `key` adds to the checksums, as far as it is known before a source is claimed: by address
/// and port of the backend.
#[inline(always)]
fn fixed_part<A: Address>(answer: &FlowKey<A>, key: &FlowKey<A>) -> Fixed {
    Fixed {
        addresses: Sum::default().address(key.destination, answer.source),
        ports: Sum::default().word(key.destination_port.to_be(), answer.source_port.to_be()),
    }
}

/// See [`fixed_part`].
#[derive(Clone, Copy)]
#[repr(C)]
struct Fixed {
    addresses: Sum,
    ports: Sum,
}

/// The differences that this translation makes to the header checksum and to that of TCP or UDP.
#[inline(always)]
fn differences<A: Address>(answer: &FlowKey<A>, key: &FlowKey<A>, fixed: Fixed) -> (u16, u16) {
    let addresses = fixed.addresses.address(key.source, answer.destination);
    let ports = addresses.and(fixed.ports).word(key.source_port.to_be(), answer.destination_port.to_be());
    (addresses.fold(), ports.fold())
}

/// The group of destinations that share a counter.
#[inline(always)]
fn group_of<A: Address>(answers: &FlowKey<A>) -> u32 {
    hash::mix(hash::mix_address(u32::from(answers.protocol), answers.source), u32::from(answers.source_port))
}

/// The next ticket of a counter; the one after it will be `step` further.
#[inline(always)]
fn next_ticket(cursor: *mut u64, step: u64) -> u64 {
    // SAFETY: `cursor` points to a value of the map `snat_cursors`.
    unsafe { atomic::fetch_add(cursor, step) }
}

/// The port a ticket stands for. Tickets go round over the addresses first, then over the ports of the range.
#[inline(always)]
fn port_of(ticket: u64, settings: &Settings, addresses: u32) -> u16 {
    let round = ticket.checked_div(u64::from(addresses)).unwrap_or(ticket);
    settings.snat_port_first.wrapping_add(round.checked_rem(ports(settings)).unwrap_or_default() as u16)
}

/// How far it is to the try after this one. A small range is searched to its end. In a larger one the jumps spread evenly: by
/// its length divided by the golden ratio, and by one more every other time, so that none is a way round a part of it.
#[inline(always)]
fn step(number: u32, settings: &Settings, addresses: u32) -> u64 {
    let sources = ports(settings) * u64::from(addresses.max(1));
    if number < TRIES_IN_ROW || sources <= u64::from(TRIES) {
        return 1;
    }
    ((sources * 40_503) >> 16) + u64::from(number & 1)
}

/// Number of ports in the range.
#[inline(always)]
fn ports(settings: &Settings) -> u64 {
    u64::from(settings.snat_port_last.wrapping_sub(settings.snat_port_first)) + 1
}
