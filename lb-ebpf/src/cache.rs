//! The flows of the last moment, in front of the connection map: a packet of one of them costs one cache line of its own, and one
//! that many share. What an entry is worth and how it becomes stale is told in `lb_common::cache`.
//!
//! An entry is written and read by one CPU alone, and XDP programs do not interrupt each other there. Only
//! BPF_PROG_TEST_RUN on a kernel before 6.12 can be interrupted by a packet, and nobody runs `lb` that way while it is attached,
//! but for tests; all the same an entry is of no flow while it is written, so that it is not read then.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::cache::{self, Pair as _, WAYS, generation_of, split_ports};
use lb_common::{Address, CacheUse, CachedFlow, Course, Flow, FlowKey, GENERATIONS, Tuple};

use crate::atomic;
use crate::clock::now;
use crate::express::Express;
use crate::family::{Family, Pair};
use crate::flow::{Known, is_within};
use crate::frame::Frame;
use crate::lane;
use crate::maps::{GENERATION, TICKS_PER_SECOND};
use crate::parse::Packet;
use crate::wire::{Ethernet, TCP_FIN, TCP_RST, TCP_SYN};

/// Entries that a CPU begins with, if it has as many: 128 KiB of IPv4.
const FIRST_ENTRIES: u32 = 1 << 12;

/// A CPU looks whether its cache is large enough when as many packets as this part of its entries found no place for their
/// flow. It is, if this many times more packets found their flow.
const CROWD: u32 = 8;
const WORTH: u32 = 16;

/// Where all of it is in use, a CPU looks whether it is worth while when this many times as many packets as it has entries
/// found no place: each flow has come more than once by then. It is, unless fewer packets found their flow.
const CROWDS: u32 = 2;

/// Packets for which a CPU does without its cache where all of it is not worth while.
const PAUSE: u32 = 1 << 24;

/// Packets after which a CPU tries with half of the entries.
const TRIED: u32 = 1 << 26;

/// A copy of a flow, with what it has in common with others.
pub(crate) struct Copied<F: Family> {
    pub(crate) own: &'static CachedFlow<Pair<F>>,
    pub(crate) course: &'static Course<Pair<F>>,
}

/// The flow of a packet, if it is one of the last moment.
#[inline(always)]
pub(crate) fn find<F: Family>(frame: &Frame, packet: &Express<Pair<F>>) -> Option<Copied<F>> {
    let caching = F::cache_use(this_cpu());
    // Without ports it would be taken for one of an entry without a flow.
    if caching.mask == 0 || packet.tuple.ports() == 0 {
        return None;
    }
    let hash = packet.tuple.hash();
    let own = look::<F>(index(hash, caching), &packet.tuple)?;
    if own.guard != guard(frame, hash, caching)? {
        return None;
    }
    let course = &F::lane(caching.first_lane + u32::from(own.lane))?.course;
    if course.protocol != packet.tuple.protocol()
        || !is_fresh(own, course)
        || !is_within(packet.length, course.mtu)
    {
        return None;
    }
    caching.hits += 1;
    Some(Copied { own, course })
}

/// The entry for a tuple, the protocol apart; `index` is that of the first of its places.
#[inline(always)]
fn look<F: Family>(index: u32, tuple: &Tuple<Pair<F>>) -> Option<&'static mut CachedFlow<Pair<F>>> {
    for way in 0..WAYS {
        let entry = F::cached(index ^ way)?;
        if is_of(entry, tuple) {
            return Some(entry);
        }
    }
    None
}

#[inline(always)]
fn is_of<P: cache::Pair>(entry: &CachedFlow<P>, tuple: &Tuple<P>) -> bool {
    entry.ports == tuple.ports() && entry.addresses.is(tuple.addresses)
}

/// Where this CPU would keep the flow of a packet.
pub(crate) struct Place<F: Family> {
    tuple: Tuple<Pair<F>>,
    index: u32,
    /// Taken before the flow is looked at: what changes while it is copied makes the copy stale.
    guard: u32,
    caching: &'static mut CacheUse,
}

/// The place for the flow of a packet; `None` while this CPU does without a cache, or if the packet tells more than that
/// its connection goes on.
#[inline(always)]
pub(crate) fn place<F: Family>(frame: &Frame, packet: &Packet<F::Addr>) -> Option<Place<F>> {
    let cpu = this_cpu();
    let caching = F::cache_use(cpu);
    if caching.pause != 0 {
        caching.pause -= 1;
        return None;
    }
    if shows_news(packet) || !packet.is_sound {
        return None;
    }
    resize::<F>(cpu, caching);
    let tuple = Tuple::of(&packet.key);
    if tuple.ports() == 0 {
        return None;
    }
    let hash = tuple.hash();
    Some(Place { tuple, index: index(hash, caching), guard: guard(frame, hash, caching)?, caching })
}

impl<F: Family> Place<F> {
    /// Notes the flow of a packet, unless others in the same places are still in use.
    #[inline(always)]
    pub(crate) fn remember(self, known: &Known<'_, F::Addr>) {
        let Self { tuple, index, guard, caching } = self;
        let Some(entry) = room::<F>(index, &tuple) else {
            caching.crowded += 1;
            return;
        };
        if let Some(lane) = lane::find::<F>(caching.first_lane, &course::<F>(&tuple, known)) {
            write(entry, &copy::<F>(&tuple, guard, lane, known));
        }
    }
}

/// The entry that a tuple has, or else may have.
#[inline(always)]
fn room<F: Family>(index: u32, tuple: &Tuple<Pair<F>>) -> Option<&'static mut CachedFlow<Pair<F>>> {
    let mut free = None;
    for way in 0..WAYS {
        let entry = F::cached(index ^ way)?;
        if is_of(entry, tuple) {
            return Some(entry);
        }
        if free.is_none() && (entry.ports == 0 || !is_young(entry)) {
            free = Some(index ^ way);
        }
    }
    F::cached(free?)
}

/// Uses more entries, or none for a while, where many packets find no place for their flow; now and then tries with fewer.
#[inline(always)]
fn resize<F: Family>(cpu: u32, caching: &mut CacheUse) {
    let most = F::cache_entries();
    let entries = caching.entries;
    if entries == 0 {
        caching.first = cpu * most;
        caching.first_lane = cpu * F::lanes();
        caching.entries = if most < FIRST_ENTRIES { most } else { FIRST_ENTRIES };
    } else if entries < most && caching.crowded >= entries / CROWD {
        if caching.hits / WORTH < caching.crowded {
            caching.entries = entries * 2;
        }
        (caching.hits, caching.crowded) = (0, 0);
    } else if caching.crowded / CROWDS >= entries {
        if caching.hits < caching.crowded {
            caching.pause = PAUSE;
        }
        (caching.hits, caching.crowded) = (0, 0);
    } else if caching.hits >= TRIED {
        if entries > FIRST_ENTRIES {
            caching.entries = entries / 2;
        }
        (caching.hits, caching.crowded) = (0, 0);
    }
    caching.mask = if caching.pause == 0 { caching.entries - 1 } else { 0 };
}

/// What a flow has in common with others. The port is left out where the packets of all of them have the right one.
#[inline(always)]
fn course<F: Family>(tuple: &Tuple<Pair<F>>, known: &Known<'_, F::Addr>) -> Course<Pair<F>> {
    let Known { flow, next_hop, mtu } = known;
    let (source, destination) = tuple.addresses.halves();
    let (source_port, destination_port) = split_ports(tuple.ports());
    let (old, new) = if flow.direction == Flow::<F::Addr>::TO_BACKEND {
        ((destination, destination_port), (flow.destination.half(), flow.destination_port.to_be()))
    } else {
        ((source, source_port), (flow.source.half(), flow.source_port.to_be()))
    };
    Course {
        address: new.0,
        next_hop: *next_hop,
        port: if new.1 == old.1 { 0 } else { new.1 },
        backend: flow.backend as u16,
        listener: flow.listener as u16,
        difference: F::course_difference(old, new),
        mtu: *mtu,
        protocol: tuple.protocol(),
        direction: flow.direction,
        lag_s: flow.lag_s(),
        _pad: [0; 3],
    }
}

/// What is a flow's own.
#[inline(always)]
fn copy<F: Family>(
    tuple: &Tuple<Pair<F>>,
    guard: u32,
    lane: u16,
    known: &Known<'_, F::Addr>,
) -> CachedFlow<Pair<F>> {
    let flow = known.flow;
    let (address, port) = if flow.direction == Flow::<F::Addr>::TO_BACKEND {
        (flow.source, flow.source_port)
    } else {
        (flow.destination, flow.destination_port)
    };
    CachedFlow {
        addresses: tuple.addresses,
        ports: tuple.ports(),
        guard,
        address: address.half(),
        since: flow.last_seen,
        port: port.to_be(),
        lane,
        differences: F::kept(flow),
    }
}

#[inline(always)]
fn write<P: cache::Pair>(entry: &mut CachedFlow<P>, copy: &CachedFlow<P>) {
    entry.ports = 0;
    compiler_fence(Ordering::SeqCst);
    *entry = CachedFlow { ports: 0, ..*copy };
    compiler_fence(Ordering::SeqCst);
    entry.ports = copy.ports;
}

/// Forgets the flow of a packet that shows something new: the next one finds the flow itself.
#[inline(always)]
pub(crate) fn forget<F: Family>(packet: &Packet<F::Addr>) {
    let tuple = Tuple::of(&packet.key);
    let caching = F::cache_use(this_cpu());
    if caching.mask == 0 {
        return;
    }
    if let Some(entry) = look::<F>(index(tuple.hash(), caching), &tuple) {
        entry.ports = 0;
    }
}

/// Makes the copies of a half stale that any CPU has: the half has been removed or goes another way. Comes after
/// that, else another CPU might copy once more what is about to go. Copies of other flows of its group become stale, too.
#[inline(always)]
pub(crate) fn outdate<A: Address>(key: &FlowKey<A>) {
    raise(generation_of(Tuple::of(key).hash()));
}

#[inline(always)]
fn raise(generation: u32) {
    // SAFETY: the value is an aligned u64.
    unsafe { atomic::fetch_add(GENERATION.at(generation), 1) };
}

/// Makes every copy stale, for the controller, which has no atomic operation on maps. Never attached: it is run by
/// BPF_PROG_TEST_RUN.
#[xdp]
pub(crate) fn forget_cached(_ctx: XdpContext) -> u32 {
    for generation in 0..GENERATIONS {
        raise(generation);
    }
    0
}

/// Whether a packet tells more than that its connection goes on.
#[inline(always)]
pub(crate) const fn shows_news<A>(packet: &Packet<A>) -> bool {
    packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0
}

#[inline(always)]
fn is_fresh<P: cache::Pair>(entry: &CachedFlow<P>, course: &Course<P>) -> bool {
    now().wrapping_sub(entry.since) < TICKS_PER_SECOND.load() * u32::from(course.lag_s)
}

/// Whether no other flow may take its place yet.
#[inline(always)]
fn is_young<P: cache::Pair>(entry: &CachedFlow<P>) -> bool {
    now().wrapping_sub(entry.since) < TICKS_PER_SECOND.load()
}

#[inline(always)]
fn this_cpu() -> u32 {
    // SAFETY: the helper has no arguments and no effects.
    unsafe { bpf_get_smp_processor_id() }
}

/// A CPU's first entry for a tuple of this hash. Its entries are a power of two in number and size, and none is another's.
#[inline(always)]
const fn index(hash: u32, caching: &CacheUse) -> u32 {
    caching.first + (hash & caching.mask)
}

/// What the sender of a frame on its link, the generation and the size of the cache make of each other: of one sender, no
/// two generations make the same, and what was kept where it is not looked for any more does not come back.
#[inline(always)]
fn guard(frame: &Frame, hash: u32, caching: &CacheUse) -> Option<u32> {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let [a, b, c] = frame.at::<Ethernet>(0)?.addresses().map(u64::from);
    let sender = (a | b << 32).wrapping_mul(FACTOR) ^ c ^ u64::from(frame.ingress()) << 32;
    // SAFETY: the value is an aligned u64, which other CPUs add to at any time.
    let generation = unsafe { GENERATION.at(generation_of(hash)).read_volatile() } as u32;
    Some((sender.wrapping_mul(FACTOR) >> 32) as u32 ^ generation ^ caching.mask << 11)
}
