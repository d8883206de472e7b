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

/// Enters a flow that was made at the tick `created`, and ends the one whose slot it takes if that has not been promoted.
#[inline(always)]
pub(crate) fn enter<F: Family>(key: &FlowKey<F::Addr>, created: u32) {
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
    slot.used = 1;
}

/// Ends the flow of a slot, unless it was promoted or is gone.
#[inline(always)]
fn evict<F: Family>(slot: &HalfOpen<F::Addr>) {
    // The collector ends half-open TCP flows by their age, which saves the lookup here.
    let age = now().wrapping_sub(slot.created);
    if slot.key.protocol == PROTO_TCP && age > (HALF_OPEN_S + 2) * TICKS_PER_SECOND.load() {
        return;
    }
    // SAFETY: the entry stays readable during this run of the program (RCU); only single words of it change.
    let Some(flow) = (unsafe { F::connections().get(&slot.key) }) else { return };
    let is_same = flow.created == slot.created && flow.direction == Flow::<F::Addr>::TO_BACKEND;
    if !is_same {
        return;
    }
    let listener = flow.listener;
    let Some(answers) = other_half::<F>(slot.key.protocol, flow) else { return };
    // SAFETY: as above.
    let seen_back = unsafe { F::connections().get(answers) }.map_or(0, |half| half.seen);
    if is_promoted(slot.key.protocol, flow.seen, seen_back) {
        return;
    }
    // The half that claims the port goes last. Either may be gone already.
    let _ = F::connections().remove(&slot.key);
    let _ = F::connections().remove(answers);
    if seen_back & Flow::<F::Addr>::ESTABLISHED != 0 {
        cache::outdate(&slot.key);
        cache::outdate(answers);
    }
    count::reason(Reason::HalfOpenEvicted as u32, listener + 1);
}
