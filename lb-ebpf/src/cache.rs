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
use lb_common::{Address, CacheUse, CachedFlow, Course, Flow, FlowKey, GENERATIONS, Lane, Tuple};

use crate::atomic;
use crate::clock::now;
use crate::family::{Family, Half, Pair};
use crate::flow::Known;
use crate::frame::Frame;
use crate::lane::Lanes;
use crate::maps::{GENERATION, TICKS_PER_SECOND};
use crate::parse::Packet;
use crate::wire::{Ethernet, TCP_FIN, TCP_RST, TCP_SYN};
use crate::word;

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
    pub(crate) lane: &'static mut Lane<Pair<F>>,
}

/// By what a packet's flow is looked for.
#[derive(Clone, Copy)]
pub(crate) struct Sought {
    hash: u64,
    /// Its key, but for the generation and the size of the cache.
    mark: u64,
}

impl Sought {
    /// By the tuple of a packet, and the frame's link layer.
    #[inline(always)]
    pub(crate) fn new<P: cache::Pair>(tuple: &Tuple<P>, ethernet: &Ethernet, ingress: u32) -> Self {
        let hash = tuple.hash();
        let [a, b, c] = ethernet.addresses().map(u64::from);
        let sender = (a | b << 32).wrapping_add(c | u64::from(ingress) << 32);
        let guard = sender.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash;
        // Both at once, lest all that they are made of is put aside around the next call.
        let mark = word::settled(CachedFlow::<P>::key_of(tuple.ports(), (guard >> 32) as u32));
        Self { hash: word::settled(hash), mark }
    }

    /// The key of its entry: of one sender and tuple, no two generations have the same, and what was kept where it is not
    /// looked for any more does not come back.
    #[inline(always)]
    fn key(self, caching: &CacheUse) -> u64 {
        // SAFETY: the value is an aligned u64, which other CPUs add to at any time.
        let generation = unsafe { GENERATION.at(generation_of(self.hash as u32)).read_volatile() };
        (self.mark ^ generation << 33 ^ u64::from(caching.mask) << 43) | 1 << 32
    }
}

/// A CPU's first entry for a tuple of this hash. Its entries are a power of two in number and size, and none is another's.
#[inline(always)]
const fn index(hash: u64, caching: &CacheUse) -> u32 {
    caching.first + (hash as u32 & caching.mask)
}

/// The flow of a packet, if it is one of the last moment. The addresses are needed only to make sure of it.
#[inline(always)]
pub(crate) fn find<F: Family>(
    sought: Sought,
    protocol: u8,
    length: u16,
    addresses: impl FnOnce() -> Pair<F>,
) -> Option<Copied<F>> {
    let (cpu, now) = (this_cpu(), now());
    let caching = F::cache_use(cpu);
    if caching.mask == 0 {
        return None;
    }
    let own = look::<F>(index(sought.hash, caching), word::settled(sought.key(caching)))?;
    let lane = F::lane(caching.first_lane + u32::from(own.lane))?;
    let course = &lane.course;
    if course.protocol != protocol
        || now.wrapping_sub(own.since) >= u32::from(course.lag)
        || length > course.mtu
        || !is_between(own, course, addresses())
    {
        return None;
    }
    caching.hits += 1;
    Some(Copied { own, lane })
}

/// The entry with this key; `index` is that of the first of its places.
#[inline(always)]
fn look<F: Family>(index: u32, key: u64) -> Option<&'static CachedFlow<Pair<F>>> {
    for way in 0..WAYS {
        let entry = F::cached(index ^ way)?;
        if entry.key == key {
            return Some(entry);
        }
    }
    None
}

/// Whether the packets of a copied flow come with these addresses.
#[inline(always)]
fn is_between<P: cache::Pair>(own: &CachedFlow<P>, course: &Course<P>, addresses: P) -> bool {
    let expected = if course.is_to_backend() {
        P::of(own.client, course.arrives)
    } else {
        P::of(course.arrives, course.at_backend(own.client))
    };
    expected.is(addresses)
}

/// Where this CPU would keep the flow of a packet.
pub(crate) struct Place<F: Family> {
    tuple: Tuple<Pair<F>>,
    index: u32,
    /// Made before the flow is looked at: what changes while it is copied makes the copy stale.
    key: u64,
    lanes: Lanes,
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
    let sought = Sought::new(&tuple, frame.at(0)?, frame.ingress());
    let lanes = Lanes { cpu, first: caching.first_lane };
    Some(Place { tuple, index: index(sought.hash, caching), key: sought.key(caching), lanes, caching })
}

impl<F: Family> Place<F> {
    /// Notes the flow of a packet, unless others in the same places are still in use.
    #[inline(always)]
    pub(crate) fn remember(self, known: &Known<'_, F::Addr>) {
        let Self { tuple, index, key, lanes, caching } = self;
        let Common { course, client } = common::<F>(&tuple, known);
        let placed = room::<F>(index, tuple.ports(), client)
            .and_then(|entry| Some((entry, lanes.find::<F>(&course)?)));
        match placed {
            Some((entry, lane)) => write(entry, &copy::<F>(key, client, lane, known.flow)),
            None => caching.crowded += 1,
        }
    }
}

/// The entry that a client's flow with these ports has, or else may have.
#[inline(always)]
fn room<F: Family>(index: u32, ports: u32, client: Half<F>) -> Option<&'static mut CachedFlow<Pair<F>>> {
    let mut free = None;
    for way in 0..WAYS {
        let entry = F::cached(index ^ way)?;
        if entry.ports() == ports && entry.client == client {
            return Some(entry);
        }
        if free.is_none() && (entry.key == 0 || !is_young(entry)) {
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

/// What a flow has in common with others, and its client.
struct Common<F: Family> {
    course: Course<Pair<F>>,
    client: Half<F>,
}

/// The port is left out where the packets of all of them have the right one.
#[inline(always)]
fn common<F: Family>(tuple: &Tuple<Pair<F>>, known: &Known<'_, F::Addr>) -> Common<F> {
    let Known { flow, next_hop, mtu } = known;
    let (source, destination) = tuple.addresses.halves();
    let (source_port, destination_port) = split_ports(tuple.ports());
    let is_to_backend = flow.direction == Flow::<F::Addr>::TO_BACKEND;
    let (old, new, client, at_backend) = if is_to_backend {
        let new = (flow.destination.half(), flow.destination_port.to_be());
        ((destination, destination_port), new, source, flow.source.half())
    } else {
        let new = (flow.source.half(), flow.source_port.to_be());
        ((source, source_port), new, flow.destination.half(), destination)
    };
    let hides_client = client != at_backend;
    let course = Course {
        next_hop: *next_hop,
        arrives: old.0,
        leaves: new.0,
        snat: if hides_client { at_backend } else { <Half<F>>::default() },
        port: if new.1 == old.1 { 0 } else { new.1 },
        backend: flow.backend as u16,
        listener: flow.listener as u16,
        difference: 0,
        mtu: if *mtu == 0 { u16::MAX } else { *mtu },
        protocol: tuple.protocol(),
        direction: flow.direction,
        lag: (TICKS_PER_SECOND.load() * u32::from(flow.lag_s())) as u16,
        hides_client: hides_client.into(),
        _pad: 0,
    };
    Common { course: Course { difference: F::course_difference(&course, old.1, new.1), ..course }, client }
}

/// What is a flow's own.
#[inline(always)]
fn copy<F: Family>(key: u64, client: Half<F>, lane: u16, flow: &Flow<F::Addr>) -> CachedFlow<Pair<F>> {
    let is_to_backend = flow.direction == Flow::<F::Addr>::TO_BACKEND;
    let port = if is_to_backend { flow.source_port } else { flow.destination_port };
    CachedFlow { key, client, since: flow.last_seen, port: port.to_be(), lane, differences: F::kept(flow) }
}

#[inline(always)]
fn write<P: cache::Pair>(entry: &mut CachedFlow<P>, copy: &CachedFlow<P>) {
    entry.key = 0;
    compiler_fence(Ordering::SeqCst);
    *entry = CachedFlow { key: 0, ..*copy };
    compiler_fence(Ordering::SeqCst);
    entry.key = copy.key;
}

/// Forgets the flow of a packet that shows something new: the next one finds the flow itself. So do those of others with
/// the same ports in the same places.
#[inline(always)]
pub(crate) fn forget<F: Family>(packet: &Packet<F::Addr>) {
    let tuple = Tuple::of(&packet.key);
    let caching = F::cache_use(this_cpu());
    if caching.mask == 0 {
        return;
    }
    let first = index(tuple.hash(), caching);
    for way in 0..WAYS {
        let Some(entry) = F::cached(first ^ way) else { return };
        if entry.ports() == tuple.ports() {
            entry.key = 0;
        }
    }
}

/// Makes the copies of a half stale that any CPU has: the half has been removed or goes another way. Comes after
/// that, else another CPU might copy once more what is about to go. Copies of other flows of its group become stale, too.
#[inline(always)]
pub(crate) fn outdate<A: Address>(key: &FlowKey<A>) {
    raise(generation_of(Tuple::of(key).hash() as u32));
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
