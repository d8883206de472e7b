//! How much room the maps are given that the configuration or the host decides on.

use anyhow::{Context, Result};
use lb_common::cache::WAYS;
use lb_common::{HALF_OPEN_SLOTS, MAX_CACHE_SLOTS, MIN_HALF_OPEN_PER_CPU};

/// Maps that hold flows.
pub(super) const CONNECTION_MAPS: [&str; 2] = ["connections_v4", "connections_v6"];

/// Maps that hold, for each CPU, the flows that may have to go first.
const HALF_OPEN_MAPS: [&str; 2] = ["half_open_v4", "half_open_v6"];

/// The caches in front of the connection maps. They belong to the programs of one load.
pub(super) const CACHES: [&str; 3] = ["cached_v4", "cached_v6", "cache_use"];

/// Slots of each CPU in the cache of IPv4 flows at least.
const MIN_CACHE_SLOTS: u32 = 1 << 9;

/// Room for flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    max_connections: u32,
    /// CPUs that the host may ever have.
    cpus: u32,
}

impl Sizes {
    pub(super) fn new(max_connections: u32) -> Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
        Ok(Self { max_connections, cpus: u32::try_from(cpus).context("cannot count the CPUs")?.max(1) })
    }

    /// Slots in the ring of half-open flows of each CPU.
    pub(super) const fn half_open_per_cpu(self) -> u32 {
        let share = HALF_OPEN_SLOTS / self.cpus;
        if share > MIN_HALF_OPEN_PER_CPU { share } else { MIN_HALF_OPEN_PER_CPU }
    }

    /// Slots in the cache of IPv4 flows of each CPU, a power of two. Over all CPUs there is room for at most
    /// `max_connections` flows.
    pub(super) const fn cache_slots(self) -> u32 {
        let share = self.max_connections / self.cpus / WAYS as u32;
        let share = if share < MIN_CACHE_SLOTS { MIN_CACHE_SLOTS } else { share };
        1 << (if share > MAX_CACHE_SLOTS { MAX_CACHE_SLOTS } else { share }).ilog2()
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
            "cache_use" => Some(self.cpus),
            "cached_v4" => Some(self.cache_slots().saturating_mul(self.cpus)),
            "cached_v6" => Some((self.cache_slots() / 2).saturating_mul(self.cpus)),
            _ if HALF_OPEN_MAPS.contains(&map) => Some(self.half_open_per_cpu()),
            _ => None,
        }
    }

    /// All maps that [`Sizes::entries`] has an answer for.
    pub(super) fn of_maps(self) -> impl Iterator<Item = (&'static str, u32)> {
        let maps = CONNECTION_MAPS.into_iter().chain(HALF_OPEN_MAPS).chain(CACHES);
        maps.filter_map(move |map| Some((map, self.entries(map)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_open_flows_have_room_of_their_own() {
        let sizes = Sizes { max_connections: 65_536, cpus: 2 };
        assert_eq!(sizes.half_open_per_cpu(), 65_536);
        assert_eq!(sizes.entries("connections_v4"), Some(2 * (65_536 + 131_072)));
        assert_eq!(sizes.entries("half_open_v6"), Some(65_536));
        assert_eq!(sizes.entries("backends"), None);
        assert_eq!(sizes.flows(2 * (65_536 + 131_072)), 65_536);
        let many = Sizes { max_connections: 1024, cpus: 256 };
        assert_eq!(many.half_open_per_cpu(), 4096);
    }

    #[test]
    fn each_cpu_caches_its_share_of_flows() {
        let cached = |max_connections, cpus| Sizes { max_connections, cpus }.cache_slots();
        assert_eq!((cached(1024, 256), cached(1 << 20, 2), cached(1 << 24, 64)), (1 << 9, 1 << 16, 1 << 16));
        assert_eq!(cached(1_000_000, 64), 4096);
    }
}
