//! Part of a new flow: which source will the backend see? A SNAT port is claimed by inserting the reply half of
//! the flow under the key its answers will have, which the map allows once.
//!
//! Ports are handed out by counters, one for each group of destinations: the search goes on where the last one
//! ended, so a port that was just freed is the last to be used again (the backend may hold it in TIME_WAIT), and
//! a nearly full range still yields a port within few tries. Where it meets a block of taken ports it jumps. Where it
//! meets one flow after the other whose client has not proved that it exists, this is a flood, and the next of them has to
//! give its port: else as many SYNs as there are ports would keep every client out.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use lb_common::flow::is_promoted;
use lb_common::listener::Vip;
use lb_common::{Address, Backend, Flow, FlowKey, Listener, Reason, SNAT_CURSORS, Settings, hash};

use crate::atomic;
use crate::checksum::Sum;
use crate::choose::{Choice, find_listener, vip_flags};
use crate::family::Family;
use crate::half_open;
use crate::maps::{Keys, Opening, RESERVED_PORTS, SETTINGS, SNAT_CURSOR};
use crate::ours::may_listen;

/// Ports tried for one flow before it is refused.
const TRIES: u32 = 128;
/// Tries in a row. Later ones jump over the range, out of a block of ports that long-lived flows hold.
const TRIES_IN_ROW: u32 = 16;

/// Flows without proof that a search meets before one of them has to go. A range that is nearly full of others has a few
/// in the midst of their handshake.
const UNPROVEN: u32 = 4;

const EEXIST: i32 = -17;
const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

/// Claims a source for the flow with this key, as `opening.answers`, by inserting `opening.half`, which is the one
/// for the answers. Without `CLAIM` it only looks for the source, and changes nothing.
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
        // Nothing is claimed: another CPU that opens the flow at this moment, too, writes the same under this key.
        return try_claim::<F, CLAIM>(key, opening, fixed, BPF_ANY).map(drop);
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
    if !translate && try_claim::<F, CLAIM>(key, opening, fixed_part(&opening.answers, key), BPF_NOEXIST)? {
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
    let claimed = match try_claim::<F, CLAIM>(key, opening, keys.search.fixed, BPF_NOEXIST) {
        Ok(false) if !gives_way::<F, CLAIM>(opening, &mut keys.search.unproven) => return 0,
        // Looking for a source, that of a flow which has to go is as good as a free one.
        Ok(false) if !CLAIM => Ok(true),
        Ok(false) => try_claim::<F, CLAIM>(key, opening, keys.search.fixed, BPF_NOEXIST),
        claimed => claimed,
    };
    keys.search.found = match claimed {
        Ok(false) => return 0,
        Ok(true) => Search::CLAIMED,
        Err(_) => Search::FULL,
    };
    1
}

/// Whether the flow that holds the source has to go, after the search has met others that have not proved that their client
/// exists either. With `CLAIM` it ends here.
#[inline(always)]
fn gives_way<F: Family, const CLAIM: bool>(opening: &mut Opening<F::Addr>, unproven: &mut u32) -> bool {
    let Opening { answers, holder, .. } = opening;
    // SAFETY: the entry stays readable during this run of the program (RCU); only single words of it change.
    let Some(back) = (unsafe { F::connections().get(&*answers) }) else { return false };
    // Most flows are answered by more than a SYN-ACK, which spares the other lookup.
    let is_answered = back.seen & Flow::<F::Addr>::ESTABLISHED != 0 && back.seen & Flow::<F::Addr>::RST == 0;
    if is_answered || back.direction != Flow::<F::Addr>::TO_CLIENT {
        return false;
    }
    *holder = back.other_half(answers.protocol);
    // SAFETY: as above.
    let Some(flow) = (unsafe { F::connections().get(&*holder) }) else { return false };
    let is_same = flow.created == back.created && flow.source_port == answers.destination_port;
    if !is_same || is_promoted(answers.protocol, flow.seen, back.seen) {
        return false;
    }
    *unproven += 1;
    if *unproven < UNPROVEN {
        return false;
    }
    if CLAIM {
        half_open::end::<F>(holder, flow, answers, back.last_seen);
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

/// Inserts the half for the answers unless another flow has the same source at the same backend.
#[inline(always)]
fn try_claim<F: Family, const CLAIM: bool>(
    key: &FlowKey<F::Addr>,
    opening: &mut Opening<F::Addr>,
    fixed: Fixed,
    mode: u64,
) -> Result<bool, Reason> {
    let Opening { answers, half, .. } = opening;
    if !CLAIM {
        // SAFETY: nothing of the entry is read.
        return Ok(unsafe { F::connections().get(&*answers) }.is_none());
    }
    (half.ip_difference, half.l4_difference) = differences::<F>(answers, key, fixed);
    match F::connections().insert(&*answers, &*half, mode) {
        Ok(()) => Ok(true),
        Err(EEXIST) => Ok(false),
        Err(_) => Err(Reason::ConnectionsFull),
    }
}

/// What translating an answer into what the client of the flow `key` expects adds to the checksums, as far as it is
/// known before a source is claimed: by address and port of the backend.
#[inline(always)]
fn fixed_part<A: Address>(answer: &FlowKey<A>, key: &FlowKey<A>) -> Fixed {
    Fixed {
        addresses: Sum::default().address(answer.source, key.destination),
        ports: Sum::default().word(answer.source_port.to_be(), key.destination_port.to_be()),
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
fn differences<F: Family>(answer: &FlowKey<F::Addr>, key: &FlowKey<F::Addr>, fixed: Fixed) -> (u16, u16) {
    let addresses = fixed.addresses.address(answer.destination, key.source);
    let ports = addresses.and(fixed.ports).word(answer.destination_port.to_be(), key.source_port.to_be());
    (F::ip_difference(addresses.fold()), ports.fold())
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
