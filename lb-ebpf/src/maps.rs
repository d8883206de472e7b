//! Every map: who writes it, who reads it. The controller pins them under their names in lower case; sizes
//! given by the configuration replace those written here when the program is loaded.

use core::cell::UnsafeCell;

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::macros::btf_map;
use lb_common::fragment::MAX_FRAGMENTED;
use lb_common::lane::MAX_LANES;
use lb_common::listener::{SetName, Vip};
use lb_common::{
    Addr4, Addr6, Address, AnswerBucket, BIT_WORDS, Backend, CacheUse, CachedFlow, Counters, Drops,
    EVENTS_BYTES, Event, Explanation, Flow, FlowBucket, FlowKey, FragmentKey, FragmentPorts, GENERATIONS,
    HALF_OPEN_SLOTS, HELD_FRAGMENTS_BYTES, HalfOpen, HeldFragment, InterfaceMac, LISTENER_IDS, Lane,
    LaneBook, Listener, ListenerKey, MAX_BACKENDS, MAX_CACHE_ENTRIES, MAX_CPUS, MAX_INTERFACES,
    MAX_LISTENER_KEYS, MAX_LISTENER_RANGES, MAX_SETS, MAX_SNAT_ADDRESSES, MAX_SOURCE_RULES, MAX_STRAYS,
    MAX_VIPS, MaglevTable, RangeKey, RateWindow, SNAT_CURSORS, Settings, SourceKey,
};

use crate::parse::Packet;
use crate::snat::Search;

/// The programs that are called for what the attached one does not do itself; the numbers stand in `family`. Written by
/// the controller.
#[btf_map(name = "journeys")]
pub(crate) static JOURNEYS: ProgramArray<10> = ProgramArray::new();

/// What the programs that answer have to do. Written and read here, within one packet.
#[btf_map(name = "answer")]
pub(crate) static ANSWER: PerCpuArray<[u32; 4], 1> = PerCpuArray::new();

/// ICMP errors that this CPU has sent in the running second. Written and read here.
#[btf_map(name = "answer_rates")]
pub(crate) static ANSWER_RATES: PerCpuArray<RateWindow, 1> = PerCpuArray::new();

/// Ticks (jiffies) in a second. Read-only data, so the compiler of the kernel folds it.
#[unsafe(no_mangle)]
pub(crate) static TICKS_PER_SECOND: Global<u32> = Global::new(250);

/// Slots in the ring of half-open flows of each CPU: its share of the maps `half_open_v4` and `half_open_v6`.
#[unsafe(no_mangle)]
pub(crate) static HALF_OPEN_PER_CPU: Global<u32> = Global::new(HALF_OPEN_SLOTS);

/// Inserts into a map of the kernel only what is not there.
pub(crate) const BPF_NOEXIST: u64 = 1;
/// It is there.
pub(crate) const EEXIST: i32 = -17;
/// There is no room.
pub(crate) const E2BIG: i32 = -7;

/// What the controller sets when it loads the programs. LLVM may keep a constant of the code and a variable of the same value once, and
/// whoever sets the one changes the other: so this is no number that the code has.
const UNSET: u32 = 0x756e_7365;

/// Whether the processor lets others see what it writes in the order in which it does, as x86-64 does: then 1.
#[unsafe(no_mangle)]
pub(crate) static WRITES_IN_ORDER: Global<u32> = Global::new(UNSET);

/// Buckets of each of the maps that tell where flows are.
#[unsafe(no_mangle)]
pub(crate) static FLOW_BUCKETS: Global<u32> = Global::new(UNSET);

/// Buckets of each of the maps that tell whose answers are.
#[unsafe(no_mangle)]
pub(crate) static ANSWER_BUCKETS: Global<u32> = Global::new(UNSET);

/// Entries of a connection map unless the configuration says otherwise.
const CONNECTIONS: usize = 1 << 20;

/// Memory that all CPUs and all programs of one load share. It lies in `.bss`, so its address stands in the programs and
/// nothing has to be looked up.
#[repr(transparent)]
pub(crate) struct Shared<T>(UnsafeCell<T>);

// SAFETY: it hands out addresses only; whoever uses one has to say why that is sound.
unsafe impl<T> Sync for Shared<T> {}

impl<T, const N: usize> Shared<[T; N]> {
    /// Address of one of the N values; indices beyond them begin anew.
    #[inline(always)]
    pub(crate) const fn at(&self, index: u32) -> *mut T {
        // SAFETY: the index is less than N.
        unsafe { self.0.get().cast::<T>().add(index as usize % N) }
    }
}

/// Raised by whatever makes cached flows stale, for each group of flows. Written here, also on behalf of the controller;
/// read here.
pub(crate) static GENERATION: Shared<[u64; GENERATIONS as usize]> =
    Shared(UnsafeCell::new([0; GENERATIONS as usize]));

/// Entries of each CPU in `cached_v4`, a power of two.
#[unsafe(no_mangle)]
pub(crate) static CACHED_V4_PER_CPU: Global<u32> = Global::new(MAX_CACHE_ENTRIES);

/// Entries of each CPU in `cached_v6`, a power of two.
#[unsafe(no_mangle)]
pub(crate) static CACHED_V6_PER_CPU: Global<u32> = Global::new(MAX_CACHE_ENTRIES);

/// An array that user space can map, as the controller does with lanes and their books. Its values begin with a cache line.
type Aligned<T, const N: usize> = Array<T, N, { BPF_F_MMAPABLE as usize }>;

/// A cache of flows.
pub(crate) type Cached<P> = Aligned<CachedFlow<P>, { MAX_CACHE_ENTRIES as usize }>;

/// What the flows in a cache have in common.
pub(crate) type Lanes<P> = Aligned<Lane<P>, { MAX_LANES as usize }>;

/// Flows of the last moment, by CPU and hash. Written and read here.
#[btf_map(name = "cached_v4")]
pub(crate) static CACHED_V4: Cached<<Addr4 as Address>::Pair> = Cached::new();

/// Flows of the last moment, by CPU and hash. Written and read here.
#[btf_map(name = "cached_v6")]
pub(crate) static CACHED_V6: Cached<<Addr6 as Address>::Pair> = Cached::new();

/// Lanes of each CPU in `lanes_v4`, a power of two.
#[unsafe(no_mangle)]
pub(crate) static LANES_V4_PER_CPU: Global<u32> = Global::new(MAX_LANES);

/// Lanes of each CPU in `lanes_v6`, a power of two.
#[unsafe(no_mangle)]
pub(crate) static LANES_V6_PER_CPU: Global<u32> = Global::new(MAX_LANES);

/// Lanes of the flows of the last moment, by CPU and hash. Written and read here; read by the controller for what they count.
#[btf_map(name = "lanes_v4")]
pub(crate) static LANES_V4: Lanes<<Addr4 as Address>::Pair> = Lanes::new();

/// Lanes of the flows of the last moment, by CPU and hash. Written and read here; read by the controller for what they count.
#[btf_map(name = "lanes_v6")]
pub(crate) static LANES_V6: Lanes<<Addr6 as Address>::Pair> = Lanes::new();

/// What the controller has to know of the lanes of each CPU and family. Written here; read by the controller.
#[btf_map(name = "lane_books")]
pub(crate) static LANE_BOOKS: Aligned<LaneBook, { 2 * MAX_CPUS as usize }> = Aligned::new();

/// How each CPU gets on with its cache of IPv4 flows. Written and read here.
pub(crate) static CACHE_USE_V4: Shared<[CacheUse; MAX_CPUS as usize]> =
    Shared(UnsafeCell::new([CacheUse::NONE; MAX_CPUS as usize]));

/// The same of IPv6 flows.
pub(crate) static CACHE_USE_V6: Shared<[CacheUse; MAX_CPUS as usize]> =
    Shared(UnsafeCell::new([CacheUse::NONE; MAX_CPUS as usize]));

/// A connection map. Entries are allocated as they come: an idle balancer holds no memory for a million flows.
pub(crate) type Connections<A> = HashMap<FlowKey<A>, Flow<A>, CONNECTIONS, { BPF_F_NO_PREALLOC as usize }>;

/// Flows whose client has proved that it exists. Written here; read and collected by the controller.
#[btf_map(name = "connections_v4")]
pub(crate) static CONNECTIONS_V4: Connections<Addr4> = Connections::new();

/// Flows whose client has proved that it exists. Written here; read and collected by the controller.
#[btf_map(name = "connections_v6")]
pub(crate) static CONNECTIONS_V6: Connections<Addr6> = Connections::new();

/// Where flows are, by the hash of their tuple. The controller decides on the number of buckets.
pub(crate) type FlowsAt = Aligned<FlowBucket, 1>;

/// Which tuples have flows, and where. Written here; the controller takes claims away.
#[btf_map(name = "flows_at_v4")]
pub(crate) static FLOWS_AT_V4: FlowsAt = FlowsAt::new();

/// Which tuples have flows, and where. Written here; the controller takes claims away.
#[btf_map(name = "flows_at_v6")]
pub(crate) static FLOWS_AT_V6: FlowsAt = FlowsAt::new();

/// Since when a connection map has been full, in ticks: IPv4, IPv6. Written and read here.
pub(crate) static FULL_SINCE: Shared<[u64; 2]> = Shared(UnsafeCell::new([0; 2]));

/// Whose answers are, by the hash of their tuple. The controller decides on the number of buckets.
pub(crate) type Answers<A> = Aligned<AnswerBucket<A>, 1>;

/// Whose answers are. Written here; the controller takes claims away.
#[btf_map(name = "answers_v4")]
pub(crate) static ANSWERS_V4: Answers<Addr4> = Answers::new();

/// Whose answers are. Written here; the controller takes claims away.
#[btf_map(name = "answers_v6")]
pub(crate) static ANSWERS_V6: Answers<Addr6> = Answers::new();

/// Whose the answers are whose buckets were full: tuple of an answer, tuple of the client's packets.
pub(crate) type AnswersMore<A> = HashMap<FlowKey<A>, FlowKey<A>, CONNECTIONS, { BPF_F_NO_PREALLOC as usize }>;

/// Answers that found their bucket full. Written here; the controller takes claims away.
#[btf_map(name = "answers_more_v4")]
pub(crate) static ANSWERS_MORE_V4: AnswersMore<Addr4> = AnswersMore::new();

/// Answers that found their bucket full. Written here; the controller takes claims away.
#[btf_map(name = "answers_more_v6")]
pub(crate) static ANSWERS_MORE_V6: AnswersMore<Addr6> = AnswersMore::new();

/// Listeners. Written by the controller; read here for packets without a flow.
#[btf_map(name = "listeners")]
pub(crate) static LISTENERS: HashMap<ListenerKey, Listener, { MAX_LISTENER_KEYS as usize }> = HashMap::new();

/// Listeners of many ports, by prefixes of ports. Written by the controller; read here for packets without a flow.
#[btf_map(name = "listener_ranges")]
pub(crate) static LISTENER_RANGES: LpmTrie<RangeKey, Listener, { MAX_LISTENER_RANGES as usize }> =
    LpmTrie::new();

/// Who may open flows. Written by the controller; read here for new flows of listeners that have such rules.
#[btf_map(name = "source_rules")]
pub(crate) static SOURCE_RULES: LpmTrie<SourceKey, u32, { MAX_SOURCE_RULES as usize }> = LpmTrie::new();

/// New flows of the running second, by listener id. Written and read here, for listeners that have a limit.
#[btf_map(name = "new_flow_rates")]
pub(crate) static NEW_FLOW_RATES: Array<RateWindow, { LISTENER_IDS as usize }> = Array::new();

/// VIPs. Written by the controller; its counters are written here, for packets to no listener.
#[btf_map(name = "vips")]
pub(crate) static VIPS: HashMap<Addr6, Vip, { MAX_VIPS as usize }> = HashMap::new();

/// MACs of the attached interfaces by index. Written by the controller; read here for packets without a flow, and for
/// those of a flow that come another way than before.
#[btf_map(name = "interfaces")]
pub(crate) static INTERFACES: HashMap<u32, InterfaceMac, { MAX_INTERFACES as usize }> = HashMap::new();

/// What comes to a VIP but to no listener: packets by destination. Written here; read by the controller.
#[btf_map(name = "strays")]
pub(crate) static STRAYS: LruHashMap<ListenerKey, u64, { MAX_STRAYS as usize }> = LruHashMap::new();

/// Backends by id. Written by the controller; read here for each packet to a backend.
#[btf_map(name = "backends")]
pub(crate) static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }> = Array::new();

/// Names of the sets by id. Written and read by the controller.
#[btf_map(name = "backend_sets")]
pub(crate) static BACKEND_SETS: Array<SetName, { MAX_SETS as usize }> = Array::new();

/// The Maglev table of each set, replaced whole. Written by the controller; read here for new flows.
#[btf_map(name = "maglev")]
pub(crate) static MAGLEV: ArrayOfMaps<Array<MaglevTable, 1>, { MAX_SETS as usize }> = ArrayOfMaps::new();

/// The only value: what holds for the instance. Written by the controller; read here for new flows.
#[btf_map(name = "settings")]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();

/// SNAT addresses. Written by the controller; read here for new flows.
#[btf_map(name = "snat_addresses_v4")]
pub(crate) static SNAT_ADDRESSES_V4: Array<Addr4, { MAX_SNAT_ADDRESSES as usize }> = Array::new();

/// SNAT addresses. Written by the controller; read here for new flows.
#[btf_map(name = "snat_addresses_v6")]
pub(crate) static SNAT_ADDRESSES_V6: Array<Addr6, { MAX_SNAT_ADDRESSES as usize }> = Array::new();

/// Ports that are never used for SNAT because the host uses them, a bit each. Written by the controller; read here
/// for new flows.
#[btf_map(name = "reserved_ports")]
pub(crate) static RESERVED_PORTS: Array<u64, { BIT_WORDS as usize }> = Array::new();

/// Ports that a listener has, whatever its address and protocol, a bit each. Written by the controller, which only adds
/// bits; read here for new flows.
#[btf_map(name = "listener_ports")]
pub(crate) static LISTENER_PORTS: Array<u64, { BIT_WORDS as usize }> = Array::new();

/// Addresses of VIPs, SNAT addresses and backends, a bit each, which others may share. Written by the controller, which
/// only adds bits; read here for packets that are not in the cache.
#[btf_map(name = "our_addresses")]
pub(crate) static OUR_ADDRESSES: Array<u64, { BIT_WORDS as usize }> = Array::new();

/// Flows that have not been promoted yet, a ring for each CPU, one after the other.
pub(crate) type HalfOpens<A> = Aligned<HalfOpen<A>, { HALF_OPEN_SLOTS as usize }>;

/// Flows that have not been promoted yet. Written here; read and collected by the controller.
#[btf_map(name = "half_open_v4")]
pub(crate) static HALF_OPEN_V4: HalfOpens<Addr4> = HalfOpens::new();

/// Flows that have not been promoted yet. Written here; read and collected by the controller.
#[btf_map(name = "half_open_v6")]
pub(crate) static HALF_OPEN_V6: HalfOpens<Addr6> = HalfOpens::new();

/// How far a CPU has come in its ring.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct RingEnd {
    /// Flows that it has entered.
    pub(crate) number: u64,
    /// The slot that is used next, among its own.
    pub(crate) slot: u32,
    _pad: u32,
}

/// How far each ring has come: IPv4, IPv6. Written and read here.
#[btf_map(name = "half_open_next")]
pub(crate) static HALF_OPEN_NEXT: PerCpuArray<RingEnd, 2> = PerCpuArray::new();

/// Ports of fragmented datagrams under way. Written and read here; read by the controller for held fragments.
#[btf_map(name = "fragments")]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { MAX_FRAGMENTED as usize }> =
    LruHashMap::new();

/// Fragments that came before their first. Written here; read by the controller, which sends them round again.
#[btf_map(name = "held_fragments")]
pub(crate) static HELD_FRAGMENTS: RingBuf<HeldFragment, { HELD_FRAGMENTS_BYTES as usize }> = RingBuf::new();

/// Samples of what happened to packets. Written here; read by the controller.
#[btf_map(name = "events")]
pub(crate) static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();

/// How many events this CPU has put into the ring in which second. Written and read here.
#[btf_map(name = "event_rates")]
pub(crate) static EVENT_RATES: PerCpuArray<RateWindow, 1> = PerCpuArray::new();

/// Where the search for a free SNAT port goes on, for each group of destinations. Written and read here.
#[btf_map(name = "snat_cursors")]
pub(crate) static SNAT_CURSOR: Array<u64, { SNAT_CURSORS as usize }> = Array::new();

/// Traffic by listener id. Written here; read by the controller.
#[btf_map(name = "listener_counters")]
pub(crate) static LISTENER_COUNTERS: PerCpuArray<Counters, { LISTENER_IDS as usize }> = PerCpuArray::new();

/// Traffic by backend id. Written here; read by the controller.
#[btf_map(name = "backend_counters")]
pub(crate) static BACKEND_COUNTERS: PerCpuArray<Counters, { MAX_BACKENDS as usize }> = PerCpuArray::new();

/// What the counters of a listener id had counted when it was given to its present owner. Written and read by the controller.
#[btf_map(name = "listener_bases")]
pub(crate) static LISTENER_BASES: Bases<{ LISTENER_IDS as usize }> = Bases::new();

/// The same of backend ids.
#[btf_map(name = "backend_bases")]
pub(crate) static BACKEND_BASES: Bases<{ MAX_BACKENDS as usize }> = Bases::new();

/// Listeners that are gone, by the ids that their flows still have: the lowest address, port and protocol of each. Written and read by
/// the controller.
#[btf_map(name = "gone_listeners")]
pub(crate) static GONE_LISTENERS: HashMap<
    u32,
    ListenerKey,
    { LISTENER_IDS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// Where counting began. Counters only grow: two who write one would lose what the other counts.
type Bases<const N: usize> = HashMap<u32, Counters, N, { BPF_F_NO_PREALLOC as usize }>;

/// Packets by reason: index 0 without a listener, then by listener id. Written here; read by the controller.
#[btf_map(name = "drops")]
pub(crate) static DROPS: PerCpuArray<Drops, { LISTENER_IDS as usize + 1 }> = PerCpuArray::new();

/// A flow in the making, or that of the packet at hand. It lives in a map because flows and their keys do not fit the 512 bytes of stack.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Opening<A> {
    /// The tuple of the client's packets, where the packet at hand is an answer.
    pub(crate) client: FlowKey<A>,
    /// The tuple of the answers: the claim on a SNAT port.
    pub(crate) answers: FlowKey<A>,
    /// The flow to enter, or a copy of the one that was found.
    pub(crate) flow: Flow<A>,
    /// Who holds the source that this flow would like to have,
    pub(crate) holder: FlowKey<A>,
    /// and that flow.
    pub(crate) holder_flow: Flow<A>,
    /// The tuple of the answers of a flow that ends.
    pub(crate) ended: FlowKey<A>,
    /// The tuple of a flow that has to make room,
    pub(crate) evicted: FlowKey<A>,
    /// and that flow.
    pub(crate) evicted_flow: Flow<A>,
}

/// A packet on the long way. It lives in a map because that way needs the stack for keys.
#[repr(C)]
pub(crate) struct Scratch<A> {
    /// The packet.
    pub(crate) packet: Packet<A>,
    /// Key of the packet that an ICMP error is about.
    pub(crate) key: FlowKey<A>,
    /// Other keys.
    pub(crate) keys: Keys,
    /// What `lb explain` is told.
    pub(crate) explanation: Explanation,
}

/// Keys of the maps that new flows are looked up in.
#[repr(C)]
pub(crate) struct Keys {
    /// Of `listeners`; its address is that of `vips` too.
    pub(crate) listener: ListenerKey,
    /// Of `listener_ranges`.
    pub(crate) range: Key<RangeKey>,
    /// Of `source_rules`.
    pub(crate) source: Key<SourceKey>,
    /// The search for a SNAT port that goes with them.
    pub(crate) search: Search,
}

/// Scratch memory of the long way. Written and read here, within one run of a program.
#[btf_map(name = "scratch_v4")]
pub(crate) static SCRATCH_V4: PerCpuArray<Scratch<Addr4>, 1> = PerCpuArray::new();

/// Scratch memory of the long way. Written and read here, within one run of a program.
#[btf_map(name = "scratch_v6")]
pub(crate) static SCRATCH_V6: PerCpuArray<Scratch<Addr6>, 1> = PerCpuArray::new();

/// Scratch memory for [`Opening`]. Written and read here, within one run of the program.
#[btf_map(name = "opening_v4")]
pub(crate) static OPENING_V4: PerCpuArray<Opening<Addr4>, 1> = PerCpuArray::new();

/// Scratch memory for [`Opening`]. Written and read here, within one run of the program.
#[btf_map(name = "opening_v6")]
pub(crate) static OPENING_V6: PerCpuArray<Opening<Addr6>, 1> = PerCpuArray::new();
