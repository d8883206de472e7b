//! The flows of the last moment, in front of the connection map: a packet of one of them costs one cache line, or two. What an
//! entry is worth and how it becomes stale is told in `lb_common::cache`.
//!
//! An entry is written and read by one CPU alone, and XDP programs do not interrupt each other there. Only
//! BPF_PROG_TEST_RUN on a kernel before 6.12 can be interrupted by a packet: an entry is without its protocol while it is
//! written, so it is never read half written.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::cache::slot_hash;
use lb_common::{Address, CacheSlot, CacheUse, CachedFlow, FlowKey, SEEN_PER_SECOND};

use crate::atomic;
use crate::clock::now;
use crate::family::Family;
use crate::flow::{Known, is_within};
use crate::frame::Frame;
use crate::maps::{GENERATION, TICKS_PER_SECOND};
use crate::parse::Packet;
use crate::wire::{Ethernet, TCP_FIN, TCP_RST, TCP_SYN};

/// Misses after which a CPU looks whether its cache is worth its while.
const COUNTED_MISSES: u32 = 1 << 18;

/// Packets for which a CPU does without it if it is not.
const PAUSE: u32 = 1 << 21;

/// Where this CPU would keep the flow of a packet.
pub(crate) struct Place<A: 'static> {
    slot: &'static mut CacheSlot<A>,
    /// Taken before the flow is looked at: what changes while it is copied makes the copy stale.
    guard: u32,
    caching: &'static mut CacheUse,
}

/// The place for the flow of a packet; `None` while this CPU does without a cache, or if the packet tells more than that
/// its connection goes on.
#[inline(always)]
pub(crate) fn place<F: Family>(frame: &Frame, packet: &Packet<F::Addr>) -> Option<Place<F::Addr>> {
    let cpu = this_cpu();
    let caching = F::cache_use(cpu)?;
    if caching.pause != 0 {
        caching.pause -= 1;
        return None;
    }
    if shows_news(packet) || !packet.is_sound {
        return None;
    }
    Some(Place { slot: F::cached(slot::<F>(cpu, &packet.key))?, guard: guard(frame)?, caching })
}

impl<A: Address> Place<A> {
    /// The flow of a packet, if it is one of the last moment.
    #[inline(always)]
    pub(crate) fn find(&mut self, packet: &Packet<A>) -> Option<&CachedFlow<A>> {
        let [first, second] = &*self.slot;
        let entry = if is_same(&first.key, &packet.key) { first } else { second };
        if !is_same(&entry.key, &packet.key) || !is_fresh(entry) {
            return None;
        }
        if entry.guard != self.guard || !is_within(packet.length, entry.mtu) {
            return None;
        }
        self.caching.hits += 1;
        Some(entry)
    }

    /// Notes the flow of a packet, unless others in the same slot are still in use.
    #[inline(always)]
    pub(crate) fn remember(self, packet: &Packet<A>, known: &Known<'_, A>) {
        let Self { slot: [first, second], guard, caching } = self;
        count_miss(caching);
        let entry = match () {
            () if is_same(&first.key, &packet.key) => first,
            () if is_same(&second.key, &packet.key) || !is_fresh(second) => second,
            () if !is_fresh(first) => first,
            () => return,
        };
        write(guard, packet, known, entry);
    }
}

#[inline(always)]
fn count_miss(caching: &mut CacheUse) {
    caching.misses += 1;
    if caching.misses < COUNTED_MISSES {
        return;
    }
    caching.pause = if caching.hits < caching.misses { PAUSE } else { 0 };
    (caching.hits, caching.misses) = (0, 0);
}

#[inline(always)]
fn write<A: Address>(guard: u32, packet: &Packet<A>, known: &Known<'_, A>, entry: &mut CachedFlow<A>) {
    let flow = known.flow;
    entry.key.protocol = 0;
    compiler_fence(Ordering::SeqCst);
    entry.source = flow.source;
    entry.destination = flow.destination;
    entry.source_port = flow.source_port;
    entry.destination_port = flow.destination_port;
    entry.ip_difference = flow.ip_difference;
    entry.l4_difference = flow.l4_difference;
    entry.next_hop = known.next_hop;
    entry.backend = flow.backend as u16;
    entry.listener = flow.listener as u16;
    entry.guard = guard;
    entry.since = flow.last_seen;
    entry.mtu = known.mtu;
    entry.direction = flow.direction;
    compiler_fence(Ordering::SeqCst);
    entry.key = packet.key;
}

/// Forgets the flow of a packet that shows something new: the next one finds the flow itself.
#[inline(always)]
pub(crate) fn forget<F: Family>(packet: &Packet<F::Addr>) {
    if !shows_news(packet) {
        return;
    }
    let Some([first, second]) = F::cached(slot::<F>(this_cpu(), &packet.key)) else { return };
    if is_same(&first.key, &packet.key) {
        first.key.protocol = 0;
    } else if is_same(&second.key, &packet.key) {
        second.key.protocol = 0;
    }
}

/// Makes every entry of every CPU stale: a flow that may be among them has been removed or goes another way. Comes after
/// that, else another CPU might copy once more what is about to go.
#[inline(always)]
pub(crate) fn forget_all() {
    if let Some(generation) = GENERATION.get_ptr_mut(0) {
        // SAFETY: the value is an aligned u64 of the map.
        unsafe { atomic::fetch_add(generation, 1) };
    }
}

/// Does the same for the controller, which has no atomic operation on maps. Never attached: it is run by
/// BPF_PROG_TEST_RUN.
#[xdp]
pub(crate) fn forget_cached(_ctx: XdpContext) -> u32 {
    forget_all();
    0
}

/// Whether a packet tells more than that its connection goes on.
#[inline(always)]
const fn shows_news<A>(packet: &Packet<A>) -> bool {
    packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0
}

#[inline(always)]
fn is_fresh<A>(entry: &CachedFlow<A>) -> bool {
    now().wrapping_sub(entry.since) < TICKS_PER_SECOND.load() / SEEN_PER_SECOND
}

#[inline(always)]
fn this_cpu() -> u32 {
    // SAFETY: the helper has no arguments and no effects.
    unsafe { bpf_get_smp_processor_id() }
}

/// A CPU's slot for a tuple.
#[inline(always)]
fn slot<F: Family>(cpu: u32, key: &FlowKey<F::Addr>) -> u32 {
    let slots = F::cache_slots();
    cpu * slots + (slot_hash(key) & (slots - 1))
}

/// What the sender of a frame on its link, and the generation, make of each other: of one sender, no two generations make
/// the same.
#[inline(always)]
fn guard(frame: &Frame) -> Option<u32> {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let [a, b, c] = frame.at::<Ethernet>(0)?.addresses().map(u64::from);
    let hash = (a | b << 32).wrapping_mul(FACTOR) ^ c ^ u64::from(frame.ingress()) << 32;
    let generation = *GENERATION.get(0)? as u32;
    Some((hash.wrapping_mul(FACTOR) >> 32) as u32 ^ generation)
}

#[inline(always)]
fn is_same<A: Address>(a: &FlowKey<A>, b: &FlowKey<A>) -> bool {
    let words = |key: &FlowKey<A>| (key.source.words(), key.destination.words());
    let (([a0, a1, a2, a3], [a4, a5, a6, a7]), ([b0, b1, b2, b3], [b4, b5, b6, b7])) = (words(a), words(b));
    let addresses =
        (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) | (a3 ^ b3) | (a4 ^ b4) | (a5 ^ b5) | (a6 ^ b6) | (a7 ^ b7);
    let rest = (a.source_port ^ b.source_port)
        | (a.destination_port ^ b.destination_port)
        | u16::from(a.protocol ^ b.protocol);
    addresses | u32::from(rest) == 0
}
