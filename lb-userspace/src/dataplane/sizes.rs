//! How much room the maps are given that the configuration or the host decides on.

use anyhow::{Context, Result, ensure};
use lb_common::lane::{LANE_WAYS, MAX_LANES};
use lb_common::{
    Addr4, Addr6, Address, CachedFlow, Features, HALF_OPEN_SLOTS, MAX_CACHE_ENTRIES, MAX_CPUS,
    MIN_HALF_OPEN_PER_CPU,
};
use nix::sys::sysinfo::sysinfo;

/// Maps that hold flows.
pub(super) const CONNECTION_MAPS: [&str; 2] = ["connections_v4", "connections_v6"];

/// Maps that hold, for each CPU, the flows that may have to go first.
const HALF_OPEN_MAPS: [&str; 2] = ["half_open_v4", "half_open_v6"];

/// The caches in front of the connection maps. They belong to the programs of one load.
pub(super) const CACHES: [&str; 2] = ["cached_v4", "cached_v6"];

/// What the flows in them have in common, and is counted for them.
pub(super) const LANE_MAPS: [&str; 2] = ["lanes_v4", "lanes_v6"];

/// What the controller has to know of lanes.
const LANE_BOOKS: &str = "lane_books";

/// Entries of each CPU in a cache at least.
const MIN_CACHE_ENTRIES: u32 = 1 << 9;

/// There is a lane for so many entries of a cache,
const ENTRIES_PER_LANE: u32 = 64;

/// and at least so many for each CPU: each sees packets between all listeners and backends.
const MIN_LANES: u32 = 1 << 12;

/// The caches get at most this part of the host's memory, lanes apart,
const CACHE_SHARE: u64 = 32;

/// and each at most so many bytes: the kernel makes no array of 4 GiB.
const MOST_CACHE_BYTES: u64 = 1 << 31;

/// CPUs that the host may ever have.
pub(super) fn cpus() -> Result<u32> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
    Ok(u32::try_from(cpus).context("cannot count the CPUs")?.max(1))
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// What the programs need for it.
    const fn feature(self) -> Features {
        match self {
            Self::V4 => Features::IPV4,
            Self::V6 => Features::IPV6,
        }
    }

    /// Bytes of an entry of its cache.
    const fn cached_bytes(self) -> u64 {
        match self {
            Self::V4 => size_of::<CachedFlow<<Addr4 as Address>::Pair>>() as u64,
            Self::V6 => size_of::<CachedFlow<<Addr6 as Address>::Pair>>() as u64,
        }
    }
}

/// Room for flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    max_connections: u32,
    /// What the programs are made for.
    pub(super) features: Features,
    /// CPUs that the host may ever have.
    cpus: u32,
    /// Bytes of memory that the host has.
    memory: u64,
    /// Entries of the maps of lanes of each family, if they are there already.
    adopted_lanes: Option<[u32; 2]>,
}

impl Sizes {
    pub(super) fn new(max_connections: u32, features: Features) -> Result<Self> {
        let cpus = cpus()?;
        ensure!(
            cpus <= MAX_CPUS,
            "this host may have {cpus} CPUs, and lb keeps account of {MAX_CPUS} at most"
        );
        let memory = sysinfo().context("cannot ask how much memory this host has")?.ram_total();
        Ok(Self { max_connections, features, cpus, memory, adopted_lanes: None })
    }

    /// Slots in the ring of half-open flows of each CPU.
    pub(super) const fn half_open_per_cpu(self) -> u32 {
        let share = HALF_OPEN_SLOTS / self.cpus;
        if share > MIN_HALF_OPEN_PER_CPU { share } else { MIN_HALF_OPEN_PER_CPU }
    }

    /// Entries of each CPU in the cache of a family, a power of two. Over all CPUs there are twice as many as `max_connections` flows
    /// have halves, so that nearly all find a place, if the host has the memory.
    pub(super) fn cache_entries(self, family: Family) -> u32 {
        if !self.features.include(family.feature()) {
            return MIN_CACHE_ENTRIES;
        }
        let cpus = u64::from(self.cpus);
        let wanted = 4 * u64::from(self.max_connections) / cpus;
        let bytes = (self.memory / CACHE_SHARE / 2).min(MOST_CACHE_BYTES);
        let affordable = bytes / family.cached_bytes() / cpus;
        let entries = wanted.min(affordable).clamp(MIN_CACHE_ENTRIES.into(), MAX_CACHE_ENTRIES.into());
        1 << entries.ilog2()
    }

    /// Lanes of each CPU and family, a power of two. The maps outlive what the programs are made for and what the file asks for.
    pub(super) fn lanes(self, family: Family) -> u32 {
        if let Some(entries) = self.adopted_lanes {
            return entries[family as usize] / self.cpus;
        }
        let entries = Self { features: Features::ALL, ..self }.cache_entries(family);
        (entries / ENTRIES_PER_LANE).clamp(MIN_LANES, MAX_LANES)
    }

    /// The sizes where maps of lanes with so many entries are there already; `None` if this program cannot use them.
    pub(super) fn with_lanes(self, entries: [u32; 2]) -> Option<Self> {
        let usable = |entries: u32| {
            let of_each = entries / self.cpus;
            of_each * self.cpus == entries
                && of_each.is_power_of_two()
                && (LANE_WAYS..=MAX_LANES).contains(&of_each)
        };
        entries.into_iter().all(usable).then_some(Self { adopted_lanes: Some(entries), ..self })
    }

    /// Entries of a connection map: two for each flow, half-open ones on top, so that they take no room from others.
    const fn connection_entries(self) -> u32 {
        self.max_connections.saturating_add(self.half_open()).saturating_mul(2)
    }

    const fn half_open(self) -> u32 {
        self.half_open_per_cpu().saturating_mul(self.cpus)
    }

    /// The flows that a connection map of so many entries has room for, half-open ones apart.
    pub(super) const fn flows(self, connection_entries: u32) -> u32 {
        (connection_entries / 2).saturating_sub(self.half_open())
    }

    /// Entries of a map; `None` for those that are as large as the object says.
    pub(super) fn entries(self, map: &str) -> Option<u32> {
        match map {
            _ if CONNECTION_MAPS.contains(&map) => Some(self.connection_entries()),
            "cached_v4" => Some(self.cache_entries(Family::V4).saturating_mul(self.cpus)),
            "cached_v6" => Some(self.cache_entries(Family::V6).saturating_mul(self.cpus)),
            "lanes_v4" => Some(self.lanes(Family::V4).saturating_mul(self.cpus)),
            "lanes_v6" => Some(self.lanes(Family::V6).saturating_mul(self.cpus)),
            LANE_BOOKS => Some(2 * self.cpus),
            _ if HALF_OPEN_MAPS.contains(&map) => Some(self.half_open_per_cpu()),
            _ => None,
        }
    }

    /// All maps that [`Sizes::entries`] has an answer for.
    pub(super) fn of_maps(self) -> impl Iterator<Item = (&'static str, u32)> {
        let maps = CONNECTION_MAPS.into_iter().chain(HALF_OPEN_MAPS).chain(CACHES).chain(LANE_MAPS);
        let maps = maps.chain([LANE_BOOKS]);
        maps.filter_map(move |map| Some((map, self.entries(map)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(max_connections: u32, cpus: u32) -> Sizes {
        Sizes { max_connections, features: Features::ALL, cpus, memory: 64 << 30, adopted_lanes: None }
    }

    #[test]
    fn half_open_flows_have_room_of_their_own() {
        let few = sizes(65_536, 2);
        assert_eq!(few.half_open_per_cpu(), 65_536);
        assert_eq!(few.entries("connections_v4"), Some(2 * (65_536 + 131_072)));
        assert_eq!(few.entries("half_open_v6"), Some(65_536));
        assert_eq!(few.entries("backends"), None);
        assert_eq!(few.flows(2 * (65_536 + 131_072)), 65_536);
        assert_eq!(sizes(1024, 256).half_open_per_cpu(), 4096);
    }

    #[test]
    fn each_cpu_caches_its_share_of_flows() {
        let cached = |max_connections, cpus| sizes(max_connections, cpus).cache_entries(Family::V4);
        assert_eq!((cached(1024, 256), cached(1 << 20, 2), cached(1 << 24, 64)), (1 << 9, 1 << 21, 1 << 19));
        assert_eq!(cached(1_000_000, 64), 1 << 15);
        assert_eq!(sizes(1 << 20, 2).cache_entries(Family::V6), 1 << 21);
        assert_eq!(
            (sizes(1024, 256).lanes(Family::V4), sizes(1 << 20, 2).lanes(Family::V4)),
            (1 << 12, 1 << 14)
        );
    }

    #[test]
    fn lanes_that_are_there_already_stay() {
        let lanes = |entries| {
            let sizes = sizes(1 << 20, 2).with_lanes(entries);
            sizes.map(|sizes| (sizes.entries("lanes_v4"), sizes.lanes(Family::V6)))
        };
        assert_eq!(lanes([1 << 13, 1 << 14]), Some((Some(1 << 13), 1 << 13)));
        assert_eq!(
            (lanes([3 << 13, 1 << 14]), lanes([1 << 16, 1 << 14]), lanes([0, 1 << 14])),
            (None, None, None)
        );
        let v4_only = Sizes { features: Features::IPV4, ..sizes(1 << 20, 2) };
        assert_eq!(v4_only.lanes(Family::V6), sizes(1 << 20, 2).lanes(Family::V6));
    }

    #[test]
    fn caches_leave_a_small_host_its_memory_and_need_none_for_a_family_without_listeners() {
        let small = Sizes { memory: 1 << 30, ..sizes(1 << 20, 2) };
        let bytes = [Family::V4, Family::V6]
            .map(|family| 2 * family.cached_bytes() * u64::from(small.cache_entries(family)));
        assert_eq!(bytes, [16 << 20; 2]);
        let v4_only = Sizes { features: Features::IPV4, ..sizes(1 << 20, 2) };
        assert_eq!((v4_only.cache_entries(Family::V4), v4_only.cache_entries(Family::V6)), (1 << 21, 1 << 9));
    }
}
