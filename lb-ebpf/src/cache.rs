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
use lb_common::cache::{
    self, ONE_GENERATION, Pair as _, WAYS, generation_of, mark_of, place_of, product, split_ports,
};
use lb_common::{Address, CacheUse, CachedFlow, Course, Flow, FlowKey, GENERATIONS, Lane, Tuple};

use crate::clock::now;
use crate::family::{Direction, Family, Half, Pair};
use crate::flow::Known;
use crate::frame::{Frame, L3};
use crate::lane::Lanes;
use crate::maps::{GENERATION, TICKS_PER_SECOND};
use crate::parse::Packet;
use crate::whereabouts::Spot;
use crate::wire::{Ethernet, Headers, TCP_FIN, TCP_RST, TCP_SYN, Tcp};
use crate::{atomic, count, word};

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

/// Where and when a packet is handled. Asked for before anything is known of the packet, since whatever is known has to be put
/// aside around a call.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    cpu: u32,
    tick: u32,
}

impl Moment {
    #[inline(always)]
    pub(crate) fn now() -> Self {
        Self { cpu: this_cpu(), tick: now() }
    }
}

/// A copy of a flow, with what it has in common with others.
pub(crate) struct Copied<F: Family> {
    pub(crate) own: &'static CachedFlow<Pair<F>>,
    pub(crate) lane: &'static mut Lane<Pair<F>>,
    caching: &'static mut CacheUse,
}

/// By what a packet's flow is looked for.
#[derive(Clone, Copy)]
pub(crate) struct Sought {
    hash: u64,
    /// Its key, but for the generation and the salt.
    mark: u64,
}

impl Sought {
    /// By the tuple of a packet, and the frame's link layer.
    #[inline(always)]
    pub(crate) fn new<P: cache::Pair>(tuple: &Tuple<P>, ethernet: &Ethernet, ingress: u32) -> Self {
        let hash = tuple.hash();
        let [first, last] = ethernet.address_doubles();
        // What is added is multiplied twice, lest addresses that differ in one bit differ in a bit that a mark does without.
        let rest = product(last.wrapping_add(ingress.into()), 0);
        let sender = product(first.wrapping_add(rest), 0);
        Self { hash, mark: mark_of(tuple.ports(), sender ^ hash) }
    }

    /// The key of its entry: of one sender and tuple, no two generations have the same, and none of what was kept where it is not
    /// looked for any more does.
    #[inline(always)]
    fn key(self, caching: &CacheUse) -> u64 {
        // SAFETY: the value is an aligned u64, which other CPUs add to at any time.
        let generation = unsafe { GENERATION.at(generation_of(self.hash)).read_volatile() };
        self.mark ^ generation ^ caching.salt
    }
}

/// A CPU's first entry for a tuple of this hash. Its entries are a power of two in number and size, and none is another's.
#[inline(always)]
const fn index(hash: u64, caching: &CacheUse) -> u32 {
    caching.first + (place_of(hash) & caching.mask)
}

/// The copy of a packet's flow, if there is one and it holds. Whether it is of this very flow, its protocol and addresses tell.
#[inline(always)]
pub(crate) fn find<F: Family>(sought: Sought, length: u32, moment: Moment) -> Option<Copied<F>> {
    let caching = F::cache_use(moment.cpu);
    if caching.mask == 0 {
        return None;
    }
    let Some(own) = look::<F>(index(sought.hash, caching), word::settled(sought.key(caching))) else {
        // Most that are not found are the first packets of flows: this is what is looked at next, and by now the processor only guesses
        // that there is no entry.
        if let Some(spot) = Spot::of::<F>(sought.hash) {
            spot.fetch();
        }
        return None;
    };
    let lane = F::lane(caching.first_lane + u32::from(own.lane))?;
    let course = &lane.course;
    if moment.tick.wrapping_sub(own.since) >= u32::from(course.lag) || length > u32::from(course.mtu) {
        return None;
    }
    Some(Copied { own, lane, caching })
}

impl<F: Family> Copied<F> {
    /// Whether it is of packets in this direction with these addresses.
    #[inline(always)]
    pub(crate) fn is_between<D: Direction>(&self, addresses: Pair<F>) -> bool {
        let Self { own, lane, .. } = self;
        let course = &lane.course;
        let expected = if D::IS_TO_BACKEND {
            Pair::<F>::of(own.client, course.arrives)
        } else {
            Pair::<F>::of(course.arrives, course.at_backend(own.client))
        };
        expected.is(addresses)
    }

    /// Counts a packet of so many bytes that takes its course.
    #[inline(always)]
    pub(crate) fn count(&mut self, length: u32) {
        self.caching.hits += 1;
        count::in_lane(&mut self.lane.traffic, length);
    }
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

/// Where this CPU would keep the flow of a packet, and as what. Not in an Option: the compiler puts aside what it does not have, and the
/// verifier lets no register be read that nothing was written to.
pub(crate) struct Place {
    index: u32,
    /// Made before the flow is looked at: what changes while it is copied makes the copy stale. 0: nowhere.
    key: u64,
}

impl Place {
    const NOWHERE: Self = Self { index: 0, key: 0 };
}

/// The place for the flow of a packet: nowhere while this CPU does without a cache, or if the express way does not look at such packets.
#[inline(always)]
pub(crate) fn place<F: Family>(frame: &Frame, packet: &Packet<F::Addr>, moment: Moment) -> Place {
    let caching = F::cache_use(moment.cpu);
    if caching.pause != 0 {
        caching.pause -= 1;
        return Place::NOWHERE;
    }
    // Of those that the express way leaves alone.
    let Some(headers) = frame.at::<Headers<F::Ip, Tcp>>(0) else { return Place::NOWHERE };
    if shows_news(packet) || !packet.is_sound || frame.linear() < L3 + usize::from(packet.length) {
        return Place::NOWHERE;
    }
    resize::<F>(moment.cpu, caching);
    let sought = Sought::new(&Tuple::of(&packet.key), &headers.ethernet, frame.ingress());
    Place { index: index(sought.hash, caching), key: sought.key(caching) }
}

impl Place {
    /// Notes the flow of a packet, unless others in the same places are still in use.
    #[inline(always)]
    pub(crate) fn remember<F: Family>(
        self,
        frame: &Frame,
        packet: &Packet<F::Addr>,
        known: &Known<'_, F::Addr>,
        Moment { cpu, .. }: Moment,
    ) {
        let Self { index, key } = self;
        if key == 0 {
            return;
        }
        let tuple = Tuple::of(&packet.key);
        let Common { course, client } = common::<F>(&tuple, frame.ingress(), known);
        let caching = F::cache_use(cpu);
        let lanes = Lanes { cpu, first: caching.first_lane };
        let placed = room::<F>(index, tuple.ports(), client)
            .and_then(|entry| Some((entry, lanes.find::<F>(&course)?)));
        match placed {
            Some((entry, lane)) => write(entry, &copy::<F>(key, client, lane, known)),
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
    caching.salt = CacheUse::salt_of(caching.mask);
}

/// What a flow has in common with others, and its client.
struct Common<F: Family> {
    course: Course<Pair<F>>,
    client: Half<F>,
}

/// The port is left out where the packets of all of them have the right one.
#[inline(always)]
fn common<F: Family>(tuple: &Tuple<Pair<F>>, ingress: u32, known: &Known<'_, F::Addr>) -> Common<F> {
    let Known { flow, direction, next_hop, mtu, .. } = known;
    let to = known.translation::<F>();
    let (source, destination) = tuple.addresses.halves();
    let (source_port, destination_port) = split_ports(tuple.ports());
    let is_to_backend = *direction == Flow::<F::Addr>::TO_BACKEND;
    let (old, new, client, at_backend) = if is_to_backend {
        let new = (to.destination.half(), to.destination_port.to_be());
        ((destination, destination_port), new, source, to.source.half())
    } else {
        let new = (to.source.half(), to.source_port.to_be());
        ((source, source_port), new, to.destination.half(), destination)
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
        direction: *direction,
        lag: (TICKS_PER_SECOND.load() * u32::from(flow.lag_s())) as u16,
        hides_client: hides_client.into(),
        turns_back: (next_hop.ifindex == ingress).into(),
    };
    Common { course: Course { difference: F::course_difference(&course, old.1, new.1), ..course }, client }
}

/// What is a flow's own.
#[inline(always)]
fn copy<F: Family>(key: u64, client: Half<F>, lane: u16, known: &Known<'_, F::Addr>) -> CachedFlow<Pair<F>> {
    let Known { flow, direction, .. } = known;
    let to = known.translation::<F>();
    let is_to_backend = *direction == Flow::<F::Addr>::TO_BACKEND;
    let port = if is_to_backend { to.source_port } else { to.destination_port };
    let differences = F::kept(to.ip_difference, to.l4_difference);
    CachedFlow { key, client, since: flow.last_seen, port: port.to_be(), lane, differences }
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

/// Makes the copies of a flow stale that any CPU has for packets with this tuple: it has been removed or goes another way. Comes after
/// that, else another CPU might copy once more what is about to go. Copies of other flows of its group become stale, too.
#[inline(always)]
pub(crate) fn outdate<A: Address>(key: &FlowKey<A>) {
    raise(generation_of(Tuple::of(key).hash()));
}

#[inline(always)]
fn raise(generation: u32) {
    // SAFETY: the value is an aligned u64.
    unsafe { atomic::fetch_add(GENERATION.at(generation), ONE_GENERATION) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::tests::bytes;

    fn mark(macs: [u8; 12], ingress: u32) -> u64 {
        let word = |at| u16::from_ne_bytes([macs[at], macs[at + 1]]);
        let [destination, source] = [0, 6].map(|at| [word(at), word(at + 2), word(at + 4)]);
        Sought::new(&Tuple::new([7], 80, 6), &Ethernet { destination, source, ether_type: 0 }, ingress).mark
    }

    #[test]
    fn senders_that_differ_in_one_bit_have_marks_of_their_own() {
        let mut seed = 5;
        for _ in 0..1000 {
            let macs = bytes(&mut seed);
            let known = mark(macs, 2);
            for bit in 0..96 {
                let mut other = macs;
                other[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(mark(other, 2), known, "bit {bit} of {macs:x?}");
            }
            for ingress in 3..10 {
                assert_ne!(mark(macs, ingress), known, "interface {ingress}, {macs:x?}");
            }
        }
    }
}
