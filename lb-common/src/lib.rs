//! What the XDP program and the controller share: the layout of every map, the reasons a packet can be
//! dropped for, and the hash that spreads flows. A layout is written down here once and nowhere else.
//!
//! All structs are `repr(C)` without implicit padding, so that equal keys are equal bytes and `bpftool map
//! dump` (through BTF) shows each field by name. Addresses are bytes in network order; ports and counters are
//! plain integers in host order, which is what `bpftool` prints readably. No `bool`, `Option` or Rust enum
//! appears in a shared struct: a map may hold any bit pattern.

#![no_std]

pub mod addr;
pub mod backend;
pub mod bucket;
pub mod cache;
pub mod counters;
pub mod explain;
pub mod features;
pub mod flow;
pub mod fragment;
pub mod hash;
pub mod interface;
pub mod lane;
pub mod listener;
pub mod ours;
pub mod reason;
pub mod settings;
pub mod traffic;

pub use addr::{Addr4, Addr6, Address};
pub use backend::{Backend, NextHop};
pub use bucket::{AnswerBucket, FlowBucket};
pub use cache::{CacheUse, CachedFlow, GENERATIONS, Tuple};
pub use counters::{Counters, Traffic};
pub use explain::Explanation;
pub use features::Features;
pub use flow::{Flow, FlowKey, HalfOpen};
pub use fragment::{Event, FragmentKey, FragmentPorts, HeldFragment};
pub use interface::InterfaceMac;
pub use lane::{Course, Lane, LaneBook};
pub use listener::{Listener, ListenerKey, RangeKey, RateWindow, SourceKey};
pub use ours::{BIT_WORDS, Bit};
pub use reason::{Drops, Kind, Reason};
pub use settings::Settings;

/// Version of everything in this crate that lives in a pinned map. A controller refuses to adopt maps that
/// carry another one. Raise it with every change of a layout or of a field's meaning.
pub const LAYOUT_VERSION: u32 = 7;

/// Slots in the map `backends`; twice the promised 16,384, so that a reload can place every new backend before
/// the old ones have drained.
pub const MAX_BACKENDS: u32 = 32_768;

/// Listeners that a configuration may have.
pub const MAX_LISTENERS: u32 = 4_096;

/// Ids of listeners; twice as many, so that a reload can place every new listener before the flows of the old ones are over.
pub const LISTENER_IDS: u32 = 2 * MAX_LISTENERS;

/// Entries in the map `listeners`: a `tcp_and_udp` listener takes two.
pub const MAX_LISTENER_KEYS: u32 = 2 * LISTENER_IDS;

/// Entries in the map `vips`: an address for each listener, and the SNAT addresses of both families, old and new.
pub const MAX_VIPS: u32 = LISTENER_IDS + 4 * MAX_SNAT_ADDRESSES;

/// Entries in the map `strays`; an LRU map that is much smaller evicts long before it is full.
pub const MAX_STRAYS: u32 = 16_384;

/// Entries in the map `listener_ranges`: a range of ports is at most 30 prefixes, of both protocols twice that.
pub const MAX_LISTENER_RANGES: u32 = 65_536;

/// Entries in the map `source_rules`.
pub const MAX_SOURCE_RULES: u32 = 1 << 20;

/// Slots of the rings of half-open flows, over all CPUs, unless there are so many CPUs that
/// [`MIN_HALF_OPEN_PER_CPU`] is more.
pub const HALF_OPEN_SLOTS: u32 = 131_072;

/// Places in `flows_at_v4` for four flows: a fifth of them stays free when there are as many flows as there may be.
pub const PLACES_PER_FOUR_FLOWS: u32 = 5;

/// Buckets of `flows_at_v4` for two slots of the rings at least: half-open flows alone hardly ever fill one.
pub const FLOW_BUCKETS_PER_TWO_SLOTS: u32 = 3;

/// Places in `answers_v4` for three flows: a quarter of them stays free when there are as many flows as there may be.
pub const ANSWERS_PER_THREE_FLOWS: u32 = 4;

/// `answers_more_v4` has room for one of so many flows: it takes the claims that find their bucket full.
pub const FLOWS_PER_ANSWER_ELSEWHERE: u32 = 8;

/// Slots that the ring of each CPU has at least.
pub const MIN_HALF_OPEN_PER_CPU: u32 = 4_096;

/// Entries in the cache of flows of each CPU and family at most (power of two).
pub const MAX_CACHE_ENTRIES: u32 = 1 << 21;

/// Seconds after which a TCP flow without the client's ACK ends.
pub const HALF_OPEN_S: u32 = 5;

/// Bytes of the ring `held_fragments`.
pub const HELD_FRAGMENTS_BYTES: u32 = 1 << 22;

/// Bytes of the ring `events`.
pub const EVENTS_BYTES: u32 = 1 << 18;

/// Events that a CPU puts into the ring each second at most.
pub const EVENTS_PER_SECOND: u64 = 64;

/// Entries in the map `interfaces`.
pub const MAX_INTERFACES: u32 = 256;

/// Slots in the maps `backend_sets` and `maglev`.
pub const MAX_SETS: u32 = 4_096;

/// Slots in each of `snat_addresses_v4` and `snat_addresses_v6`.
pub const MAX_SNAT_ADDRESSES: u32 = 64;

/// Counters that hand out SNAT ports, each shared by the destinations that hash to it (power of two).
pub const SNAT_CURSORS: u32 = 4_096;

/// Slots of one Maglev lookup table: a prime at least 100 times the backends of a large set (Eisenbud et al.,
/// NSDI 2016, section 5.3), so that shares differ by less than 1 % and a removal moves few other keys.
pub const MAGLEV_SIZE: usize = 65_537;

/// A slot of a Maglev table that names no backend.
pub const NO_BACKEND: u16 = u16::MAX;

/// One whole Maglev table: the index into `backends` for each slot, in 16 bits, since there is a table for each set. It is the
/// single value of an inner map, so that a table is replaced by one update of the outer map and no packet sees half of one.
pub type MaglevTable = [u16; MAGLEV_SIZE];

const _: () = assert!(MAX_BACKENDS <= NO_BACKEND as u32);

/// CPUs that a host may have (power of two).
pub const MAX_CPUS: u32 = 4_096;

/// How often each second a packet that looks at its flow writes `last_seen` at most.
pub const SEEN_PER_SECOND: u32 = 1;

/// A copy of a flow is used for this part of the time in which the flow idles out,
const COPY_SHARE: u32 = 32;

/// but no longer than so many seconds.
pub const MAX_COPY_S: u32 = 4;

/// Seconds for which a copy of a flow may be used that idles out after so many.
pub const fn copy_lifetime_s(idle_timeout_s: u32) -> u8 {
    let share = idle_timeout_s / COPY_SHARE;
    if share > MAX_COPY_S { MAX_COPY_S as u8 } else { share as u8 }
}

/// IP protocol number of TCP (RFC 9293).
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP (RFC 768).
pub const PROTO_UDP: u8 = 17;

/// Implements aya's `Pod` for shared structs when user space is built.
macro_rules! pod {
    ($($name:ty),+ $(,)?) => {$(
        #[cfg(feature = "user")]
        // SAFETY: the type is repr(C), Copy, has no padding (asserted by its size below its definition), no
        // references and no invalid bit patterns.
        unsafe impl aya::Pod for $name {}
    )+};
}
pub(crate) use pod;
