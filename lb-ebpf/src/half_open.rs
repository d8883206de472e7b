//! Flows whose client has not proved that it exists stand in rings, one for each CPU, and not in the connection map. When a ring comes
//! round, the oldest of its flows ends; so they take no more room than the rings have slots, no number of SYNs takes any
//! from established flows, and a new flow costs a few writes. The packet that proves the client promotes its flow to the map.
//!
//! Any CPU may find, promote or end what another has opened. A record is written by the CPU of its ring alone and while it is of no
//! flow; whoever reads one copies it, and looks whether it is still the same flow's afterwards. What changes later (what packets have
//! shown, `last_seen`, the client's MAC) is written into it after one more look: should the slot become another flow's at that very
//! moment, that one's next packets put it right.

use core::ptr;

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use lb_common::bucket::{claim_of, claim_tag, claim_word};
use lb_common::{Address, Flow, FlowBucket, FlowKey, HalfOpen, Reason};

use crate::bucket::{self, Gate, hash_of};
use crate::family::Family;
use crate::maps::{BPF_NOEXIST, E2BIG, EEXIST, HALF_OPEN_NEXT, HALF_OPEN_PER_CPU, Opening};
use crate::whereabouts::Spot;
use crate::{answers, atomic, cache, count};

/// Where a flow was found.
pub(crate) struct Place<A> {
    record: *mut HalfOpen<A>,
    /// [`HalfOpen::number`] of the flow.
    number: u64,
    /// What says where it stands, and what that says.
    at: *mut u64,
    claim: u64,
}

/// Finds the flow of a client's tuple, which has this hash, and copies it.
#[inline(always)]
pub(crate) fn find<F: Family>(
    hash: u64,
    key: &FlowKey<F::Addr>,
    flow: &mut Flow<F::Addr>,
) -> Option<Place<F::Addr>> {
    let (claim, at) = Spot::of::<F>(hash)?.find();
    if claim == 0 {
        return None;
    }
    // Of a promoted flow there is none.
    let record = F::half_open(claim_word(claim))?;
    // SAFETY: a record in a map; its bytes are valid whatever they are, and what is copied counts only if no other flow has come into
    // it until then.
    let number = unsafe {
        let number = atomic::read(&raw mut (*record).number);
        if number == 0 || !(*record).key.is(key) {
            return None;
        }
        ptr::from_mut(flow).copy_from_nonoverlapping(&raw const (*record).flow, 1);
        if atomic::compare_exchange(&raw mut (*record).number, number, number) != number {
            return None;
        }
        number
    };
    Some(Place { record, number, at, claim })
}

impl<A: Address + 'static> Place<A> {
    /// Notes what a packet in this direction has changed in the copy.
    #[inline(always)]
    pub(crate) fn update(&self, flow: &Flow<A>, direction: u8) {
        // SAFETY: a record in a map; see the top of this file.
        unsafe {
            if (&raw const (*self.record).number).read_volatile() != self.number {
                return;
            }
            let record = &mut (*self.record).flow;
            *record.seen_mut(direction) = flow.seen(direction);
            record.last_seen = flow.last_seen;
            record.client = flow.client;
            record.mtu = flow.mtu;
        }
    }

    /// Makes the record one of no flow. `false` if somebody else has been first.
    #[inline(always)]
    fn take(&self) -> bool {
        // SAFETY: a record in a map.
        unsafe { atomic::compare_exchange(&raw mut (*self.record).number, self.number, 0) == self.number }
    }

    /// Makes the claim for the flow another one, 0 for none. `false` if it was another already.
    #[inline(always)]
    fn change_claim(&self, from: u64, to: u64) -> bool {
        // SAFETY: a claim in a map.
        unsafe { bucket::change(self.at, from, to) }
    }

    /// Moves the flow to the connection map, as the copy is by now. `false` if it has ended meanwhile.
    ///
    /// It is in the map before anything says so, and that is said before the record is given up: at no moment is it nowhere.
    #[inline(always)]
    pub(crate) fn promote<F: Family<Addr = A>>(
        self,
        key: &FlowKey<A>,
        flow: &Flow<A>,
        direction: u8,
    ) -> Result<bool, Reason> {
        match F::connections().insert(key, flow, BPF_NOEXIST) {
            Ok(()) => {}
            // Another CPU was first.
            Err(EEXIST) => return Ok(true),
            Err(E2BIG) => {
                F::note_full();
                self.end::<F>(key, flow);
                return Err(Reason::ConnectionsFull);
            }
            // The map was busy, or the kernel short of memory: the next packet may do it.
            Err(_) => {
                self.update(flow, direction);
                return Ok(true);
            }
        }
        let promoted = claim_of(claim_tag(self.claim), FlowBucket::PROMOTED);
        if self.change_claim(self.claim, promoted) {
            if self.take() {
                return Ok(true);
            }
            self.change_claim(promoted, 0);
        }
        // Whoever has ended it has given its answers back; and others may have found it in the map by now.
        let _ = F::connections().remove(key);
        outdate::<F>(key, flow);
        Ok(false)
    }

    /// Ends the flow, unless somebody else has.
    #[inline(always)]
    pub(crate) fn end<F: Family<Addr = A>>(self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        // In scratch memory: the stack is short.
        let Some(Opening { ended, .. }) = F::opening() else { return false };
        let is_taken = self.take();
        if is_taken {
            self.change_claim(self.claim, 0);
            *ended = flow.answers(key.protocol);
            answers::give_back::<F>(ended, key);
        }
        is_taken
    }
}

/// Has copies of a flow looked at again.
#[inline(always)]
fn outdate<F: Family>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) {
    cache::outdate(key);
    cache::outdate(&flow.answers(key.protocol));
}

/// The right to open the flow of a tuple: no other CPU does so meanwhile. It is taken before anything is written, since a processor that
/// asks for a gate waits for all that it has written before.
pub(crate) struct Turn {
    spot: Spot,
    gate: Gate,
    /// What is claimed for the tuple, and where.
    claimed: u64,
    at: *mut u64,
}

impl Turn {
    /// By the hash of the tuple. `None` if others open flows of the same bucket all the time.
    #[inline(always)]
    pub(crate) fn take<F: Family>(hash: u64) -> Option<Self> {
        let spot = Spot::of::<F>(hash)?;
        let gate = spot.hold()?;
        let (claimed, at) = spot.find();
        Some(Self { spot, gate, claimed, at })
    }

    /// Whether another CPU has opened it by now.
    #[inline(always)]
    pub(crate) fn is_late<F: Family>(&self, key: &FlowKey<F::Addr>) -> bool {
        self.claimed != 0 && stands_at::<F>(claim_word(self.claimed), key)
            || self.spot.may_be_lost() && stands_at::<F>(FlowBucket::PROMOTED, key)
    }

    /// Leaves it to others.
    #[inline(always)]
    pub(crate) fn leave(self) {
        self.gate.leave();
    }

    /// Enters the flow, which was made just now.
    #[inline(always)]
    pub(crate) fn enter<F: Family>(mut self, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> bool {
        let entered = store::<F>(key, flow);
        if let Some(slot) = entered {
            // A flow that looks like this one goes, or any where all claims are in use: none of them has proved anything.
            let (at, old) = if self.claimed == 0 { self.spot.room() } else { (self.at, self.claimed) };
            if old != 0 {
                if claim_word(old) != slot {
                    evict::<F>(claim_word(old), old);
                }
                // It is a promoted flow's, or may have become that since. Others look for such before they see the claim gone.
                self.gate.note(FlowBucket::lost(claim_tag(old)));
            }
            // SAFETY: a claim in a map, whose gate is held.
            unsafe { atomic::publish(at, self.spot.claim(slot)) };
        }
        self.gate.leave();
        entered.is_some()
    }
}

/// Writes a flow to the ring of this CPU. Gives its slot.
#[inline(always)]
fn store<F: Family>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> Option<u32> {
    let (slot, number) = next_slot::<F>()?;
    evict::<F>(slot, 0);
    let record = F::half_open(slot)?;
    // SAFETY: a record in a map, which belongs to this CPU's ring, and is of no flow.
    unsafe {
        (&raw mut (*record).key).copy_from_nonoverlapping(key, 1);
        (&raw mut (*record).flow).copy_from_nonoverlapping(flow, 1);
        atomic::publish(&raw mut (*record).number, number);
    }
    Some(slot)
}

/// Whether the flow in a slot, or a promoted one, has this tuple.
#[inline(always)]
fn stands_at<F: Family>(slot: u32, key: &FlowKey<F::Addr>) -> bool {
    if slot == FlowBucket::PROMOTED {
        // SAFETY: only whether it is there.
        return unsafe { F::connections().get(key) }.is_some();
    }
    let Some(record) = F::half_open(slot) else { return false };
    // SAFETY: as in `find`.
    unsafe { (&raw const (*record).number).read_volatile() != 0 && (*record).key.is(key) }
}

/// The slot that this CPU uses next, and the number of the flow that gets it.
#[inline(always)]
fn next_slot<F: Family>() -> Option<(u32, u64)> {
    let next = HALF_OPEN_NEXT.get_ptr_mut(F::NUMBER)?;
    // SAFETY: the value belongs to this CPU and XDP programs do not interrupt each other on one CPU.
    let next = unsafe { &mut *next };
    let per_cpu = HALF_OPEN_PER_CPU.load();
    let slot = next.slot;
    next.slot = if slot + 1 < per_cpu { slot + 1 } else { 0 };
    next.number += 1;
    // SAFETY: the helper has no arguments and no effects.
    Some((unsafe { bpf_get_smp_processor_id() } * per_cpu + slot, next.number))
}

/// Ends the flow of a slot, if there is one, because another needs its place. With a claim, only the flow that this is of.
#[inline(never)]
fn evict<F: Family>(slot: u32, claim: u64) {
    let (Some(record), Some(scratch)) = (F::half_open(slot), F::opening()) else { return };
    let (key, flow) = (&mut scratch.evicted, &mut scratch.evicted_flow);
    // SAFETY: as in `find`.
    let number = unsafe {
        let number = (&raw const (*record).number).read_volatile();
        if number == 0 {
            return;
        }
        ptr::from_mut(key).copy_from_nonoverlapping(&raw const (*record).key, 1);
        ptr::from_mut(flow).copy_from_nonoverlapping(&raw const (*record).flow, 1);
        number
    };
    let Some(spot) = Spot::of::<F>(hash_of(key)) else { return };
    if claim != 0 && claim != spot.claim(slot) {
        return;
    }
    let (_, at) = spot.find();
    let place = Place { record, number, at, claim: spot.claim(slot) };
    make_room::<F>(place, key, flow);
}

/// Ends a flow, unless somebody else has, and counts that.
#[inline(always)]
pub(crate) fn make_room<F: Family>(place: Place<F::Addr>, key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) {
    if place.end::<F>(key, flow) {
        count::reason(Reason::HalfOpenEvicted as u32, flow.listener + 1);
    }
}
