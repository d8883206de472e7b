//! Flows whose client has not proved that it exists stand in a ring, besides the connection map. When the ring comes
//! round, the oldest of them ends; so they take no more room than the ring has slots, and no number of SYNs takes any
//! from established flows. A flow is promoted by what its packets show, without a write to the ring.

use lb_common::flow::is_promoted;
use lb_common::{Flow, FlowKey, HALF_OPEN_S, HalfOpen, PROTO_TCP, Reason};

use crate::cache;
use crate::clock::now;
use crate::count;
use crate::family::Family;
use crate::flow::other_half;
use crate::maps::{HALF_OPEN_NEXT, HALF_OPEN_PER_CPU, TICKS_PER_SECOND};

/// Enters a flow that was made just now, and ends the one whose slot it takes if that has not been promoted.
#[inline(always)]
pub(crate) fn enter<F: Family>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) {
    let created = flow.created;
    let is_picked_up = flow.seen & Flow::<F::Addr>::ESTABLISHED != 0;
    let (ring, index) = F::half_open();
    let Some(next) = HALF_OPEN_NEXT.get_ptr_mut(0) else { return };
    // SAFETY: the slot belongs to this CPU and XDP programs do not interrupt each other on one CPU; the same holds
    // for the slot of the ring below.
    let next = unsafe { &mut (*next)[index] };
    let Some(slot) = ring.get_ptr_mut(*next) else {
        *next = 0;
        return;
    };
    *next = if *next + 1 < HALF_OPEN_PER_CPU.load() { *next + 1 } else { 0 };
    // SAFETY: see above.
    let slot = unsafe { &mut *slot };
    if slot.used != 0 {
        evict::<F>(slot);
    }
    slot.key = *key;
    slot.created = created;
    slot.used = if is_picked_up { HalfOpen::<F::Addr>::PICKED_UP } else { HalfOpen::<F::Addr>::OPENED };
}

/// Ends the flow of a slot, unless it was promoted or is gone.
#[inline(always)]
fn evict<F: Family>(slot: &HalfOpen<F::Addr>) {
    // The collector ends half-open TCP flows by their age, which saves the lookup here.
    let age = now().wrapping_sub(slot.created);
    let is_half_open = slot.key.protocol == PROTO_TCP && slot.used == HalfOpen::<F::Addr>::OPENED;
    if is_half_open && age > (HALF_OPEN_S + 2) * TICKS_PER_SECOND.load() {
        return;
    }
    // SAFETY: the entry stays readable during this run of the program (RCU); only single words of it change.
    let Some(flow) = (unsafe { F::connections().get(&slot.key) }) else { return };
    let is_same = flow.created == slot.created && flow.direction == Flow::<F::Addr>::TO_BACKEND;
    if !is_same {
        return;
    }
    let Some(answers) = other_half::<F>(slot.key.protocol, flow) else { return };
    // SAFETY: as above.
    let back = unsafe { F::connections().get(answers) };
    let (seen_back, last_seen_back) = back.map_or((0, flow.last_seen), |half| (half.seen, half.last_seen));
    if !is_promoted(slot.key.protocol, flow.seen, seen_back) {
        end::<F>(&slot.key, flow, answers, last_seen_back);
    }
}

/// Ends a flow that was not promoted. `last_seen_back` is that of the half with the key `answers`.
#[inline(always)]
pub(crate) fn end<F: Family>(
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    answers: &FlowKey<F::Addr>,
    last_seen_back: u32,
) {
    let (listener, last_seen) = (flow.listener, flow.last_seen);
    // The half that claims the port goes last. Either may be gone already.
    let _ = F::connections().remove(key);
    let _ = F::connections().remove(answers);
    // Of a flow that has been silent for longer nobody has a copy that counts.
    let now = now();
    let silence = now.wrapping_sub(last_seen).min(now.wrapping_sub(last_seen_back));
    if silence <= TICKS_PER_SECOND.load() * u32::from(flow.copy_s.max(1)) {
        cache::outdate(key);
        cache::outdate(answers);
    }
    count::reason(Reason::HalfOpenEvicted as u32, listener + 1);
}
