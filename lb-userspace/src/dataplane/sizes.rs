//! How much room the maps are given that the configuration or the host decides on.

use anyhow::{Context, Result, ensure};
use lb_common::bucket::{BUCKET_WAYS, NEIGHBOURS};
use lb_common::lane::{LANE_WAYS, MAX_LANES};
use lb_common::{
    ANSWERS_PER_THREE_FLOWS, Addr4, Addr6, Address, CachedFlow, FLOW_BUCKETS_PER_TWO_SLOTS,
    FLOWS_PER_ANSWER_ELSEWHERE, Features, HALF_OPEN_SLOTS, MAX_CACHE_ENTRIES, MAX_CPUS,
    MIN_HALF_OPEN_PER_CPU, PLACES_PER_FOUR_FLOWS,
};
use nix::sys::sysinfo::sysinfo;

/// Maps that hold flows whose clients have proved that they exist.
pub(super) const CONNECTION_MAPS: [&str; 2] = ["connections_v4", "connections_v6"];

/// Maps that hold the other flows: those of each CPU beside each other.
pub(super) const HALF_OPEN_MAPS: [&str; 2] = ["half_open_v4", "half_open_v6"];

/// Where in these a tuple's flow is.
pub(super) const FLOWS_AT_MAPS: [&str; 2] = ["flows_at_v4", "flows_at_v6"];

/// Whose the answers with a tuple are.
pub(super) const ANSWER_MAPS: [&str; 2] = ["answers_v4", "answers_v6"];

/// The same, for those that found their bucket full.
pub(super) const MORE_ANSWER_MAPS: [&str; 2] = ["answers_more_v4", "answers_more_v6"];

/// Entries that such a map has at least.
const MIN_MORE_ANSWERS: u32 = 1 << 10;

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
    /// Of maps that are there already.
    adopted: Option<Adopted>,
}

/// The sizes of maps that are there already, as far as programs have to know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Adopted {
    /// Entries of the maps of lanes of each family.
    lanes: [u32; 2],
    /// Buckets of each family that tell where flows are.
    flow_buckets: u32,
    /// Buckets of answers of each family.
    answer_buckets: u32,
}

impl Sizes {
    pub(super) fn new(max_connections: u32, features: Features) -> Result<Self> {
        let cpus = cpus()?;
        ensure!(
            cpus <= MAX_CPUS,
            "this host may have {cpus} CPUs, and lb keeps account of {MAX_CPUS} at most"
        );
        let memory = sysinfo().context("cannot ask how much memory this host has")?.ram_total();
        Ok(Self { max_connections, features, cpus, memory, adopted: None })
    }

    /// Slots in the ring of half-open flows of each CPU and family.
    pub(super) const fn half_open_per_cpu(self) -> u32 {
        let share = HALF_OPEN_SLOTS / self.cpus;
        if share > MIN_HALF_OPEN_PER_CPU { share } else { MIN_HALF_OPEN_PER_CPU }
    }

    /// Entries of each CPU in the cache of a family, a power of two. A flow needs one for each direction. Over all CPUs there are
    /// twice as many as `max_connections` flows need, so that nearly all find a place, if the host has the memory.
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
        if let Some(Adopted { lanes, .. }) = self.adopted {
            return lanes[family as usize] / self.cpus;
        }
        let entries = Self { features: Features::ALL, ..self }.cache_entries(family);
        (entries / ENTRIES_PER_LANE).clamp(MIN_LANES, MAX_LANES)
    }

    /// The sizes where maps of lanes with so many entries are there already, and of whereabouts and answers with so many buckets, for
    /// each family; `None` if this program cannot use them.
    pub(super) fn with_adopted(self, lanes: [u32; 2], flows_at: [u32; 2], answers: [u32; 2]) -> Option<Self> {
        let usable = |entries: u32| {
            let of_each = entries / self.cpus;
            of_each * self.cpus == entries
                && of_each.is_power_of_two()
                && (LANE_WAYS..=MAX_LANES).contains(&of_each)
        };
        let of_both = |[v4, v6]: [u32; 2], least| (v4 == v6 && v4 >= least).then_some(v4);
        let (flow_buckets, answer_buckets) = (of_both(flows_at, 1)?, of_both(answers, NEIGHBOURS.into())?);
        let adopted = Adopted { lanes, flow_buckets, answer_buckets };
        lanes.into_iter().all(usable).then_some(Self { adopted: Some(adopted), ..self })
    }

    /// Slots for half-open flows of each family, over all CPUs.
    const fn half_open(self) -> u32 {
        self.half_open_per_cpu().saturating_mul(self.cpus)
    }

    /// Buckets of each family that tell where flows are.
    pub(super) const fn flow_buckets(self) -> u32 {
        if let Some(Adopted { flow_buckets, .. }) = self.adopted {
            return flow_buckets;
        }
        let of_rings = (self.half_open() as u64 * FLOW_BUCKETS_PER_TWO_SLOTS as u64).div_ceil(2) as u32;
        let of_all = self.buckets(PLACES_PER_FOUR_FLOWS, 4);
        if of_rings > of_all { of_rings } else { of_all }
    }

    /// Flows of each family that there can be at most.
    const fn flows(self) -> u32 {
        self.max_connections.saturating_add(self.half_open())
    }

    /// Buckets of answers of each family.
    pub(super) const fn answer_buckets(self) -> u32 {
        if let Some(Adopted { answer_buckets, .. }) = self.adopted {
            return answer_buckets;
        }
        self.buckets(ANSWERS_PER_THREE_FLOWS, 3)
    }

    /// Buckets with so many places for so many flows.
    const fn buckets(self, places: u32, flows: u32) -> u32 {
        (self.flows() as u64 * places as u64).div_ceil(flows as u64 * BUCKET_WAYS as u64) as u32
    }

    /// Entries of a map; `None` for those that are as large as the object says. Half-open flows have room of their own, so that they
    /// take none from others.
    pub(super) fn entries(self, map: &str) -> Option<u32> {
        match map {
            _ if CONNECTION_MAPS.contains(&map) => Some(self.max_connections),
            _ if HALF_OPEN_MAPS.contains(&map) => Some(self.half_open()),
            _ if FLOWS_AT_MAPS.contains(&map) => Some(self.flow_buckets()),
            _ if ANSWER_MAPS.contains(&map) => Some(self.answer_buckets()),
            _ if MORE_ANSWER_MAPS.contains(&map) => {
                Some((self.flows() / FLOWS_PER_ANSWER_ELSEWHERE).max(MIN_MORE_ANSWERS))
            }
            "cached_v4" => Some(self.cache_entries(Family::V4).saturating_mul(self.cpus)),
            "cached_v6" => Some(self.cache_entries(Family::V6).saturating_mul(self.cpus)),
            "lanes_v4" => Some(self.lanes(Family::V4).saturating_mul(self.cpus)),
            "lanes_v6" => Some(self.lanes(Family::V6).saturating_mul(self.cpus)),
            LANE_BOOKS => Some(2 * self.cpus),
            _ => None,
        }
    }

    /// All maps that [`Sizes::entries`] has an answer for.
    pub(super) fn of_maps(self) -> impl Iterator<Item = (&'static str, u32)> {
        let of_flows = [CONNECTION_MAPS, HALF_OPEN_MAPS, FLOWS_AT_MAPS, ANSWER_MAPS, MORE_ANSWER_MAPS];
        let maps = of_flows.into_iter().chain([CACHES, LANE_MAPS]).flatten().chain([LANE_BOOKS]);
        maps.filter_map(move |map| Some((map, self.entries(map)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(max_connections: u32, cpus: u32) -> Sizes {
        Sizes { max_connections, features: Features::ALL, cpus, memory: 64 << 30, adopted: None }
    }

    #[test]
    fn half_open_flows_have_room_of_their_own() {
        let few = sizes(65_536, 2);
        assert_eq!(few.half_open_per_cpu(), 65_536);
        assert_eq!(few.entries("connections_v4"), Some(65_536));
        assert_eq!(few.entries("half_open_v6"), Some(131_072));
        assert_eq!(few.entries("flows_at_v4"), Some(196_608));
        assert_eq!(sizes(1 << 20, 2).entries("flows_at_v4"), Some(210_652));
        assert_eq!(few.entries("backends"), None);
        let many_cpus = sizes(1024, 256);
        assert_eq!((many_cpus.half_open_per_cpu(), many_cpus.flow_buckets()), (4096, 3 << 19));
    }

    #[test]
    fn the_answers_of_all_flows_have_room() {
        let few = sizes(65_536, 2);
        let flows = 65_536 + 131_072;
        // 4 places for 3 flows, 7 in a bucket.
        assert_eq!(few.answer_buckets(), (flows * 4_u32).div_ceil(21));
        assert_eq!(few.entries("answers_v4"), Some(37_450));
        assert_eq!(few.entries("answers_more_v6"), Some(flows / 8));
        let most = sizes(16_777_216, 4096);
        assert_eq!(most.answer_buckets(), 6_391_321);
    }

    #[test]
    fn each_map_has_one_size() {
        let names: Vec<&str> = sizes(1024, 2).of_maps().map(|(name, _)| name).collect();
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!((names.len(), distinct.len()), (15, 15), "{names:?}");
    }

    #[test]
    fn buckets_that_are_there_already_stay() {
        let adopted = |flows_at, answers| sizes(1 << 20, 2).with_adopted([1 << 13; 2], flows_at, answers);
        let found = adopted([6000; 2], [5000; 2]);
        assert_eq!(
            found.map(|sizes| (sizes.flow_buckets(), sizes.answer_buckets(), sizes.entries("answers_v6"))),
            Some((6000, 5000, Some(5000)))
        );
        assert_eq!((adopted([1; 2], [5000, 5001]), adopted([1; 2], [0; 2])), (None, None));
        assert_eq!((adopted([5000, 5001], [4; 2]), adopted([0; 2], [4; 2])), (None, None));
        let few = |buckets| adopted([1; 2], [buckets; 2]).is_some();
        assert_eq!(
            (few(3), few(4)),
            (false, true),
            "answers to neighbouring ports have buckets of their own"
        );
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
            let sizes = sizes(1 << 20, 2).with_adopted(entries, [1; 2], [4; 2]);
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
