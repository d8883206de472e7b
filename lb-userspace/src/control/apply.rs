//! Brings the maps from what they hold to what is desired, writing only what differs, in an order in which every
//! state in between makes sense to a packet: backends before the tables that name them, tables before the
//! listeners that use them; and the other way round for what goes.

mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use anyhow::Result;
use lb_common::{Backend, Listener, ListenerKey, Settings};
use tracing::debug;

use self::sources::HeldSources;
use super::desired::{Desired, DesiredSet, ListenerOrd};
use super::ids::Ids;
use super::rotation::Holders;
use crate::dataplane::maps::Range;
use crate::dataplane::{Census, Maps};

/// The controller's knowledge of the maps.
#[derive(Debug, Default)]
pub struct Applier {
    /// Ids given out; `Desired::compute` wants them.
    pub ids: Ids,
    held: Held,
}

/// What the maps hold.
#[derive(Debug, Default)]
struct Held {
    listeners: BTreeMap<ListenerOrd, Listener>,
    ranges: BTreeMap<Range, Listener>,
    sources: HeldSources,
    /// Flags by address.
    vips: BTreeMap<IpAddr, u32>,
    backends: BTreeMap<u32, Backend>,
    /// Since when listeners are gone whose flows may go on.
    gone: BTreeMap<u32, Instant>,
    /// Since when backends are known to get no new flows: those that the configuration has lost.
    removed: BTreeMap<u32, Instant>,
    /// Sets; the table of an adopted one is not known.
    sets: BTreeMap<u32, Option<DesiredSet>>,
    settings: Option<Settings>,
}

impl Applier {
    /// Reads what adopted maps hold.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn read(maps: &Maps) -> Result<Self> {
        let listeners = maps.listeners()?.into_iter().map(|(key, value)| (ordered(&key), value)).collect();
        let backends: BTreeMap<u32, Backend> = maps.backends()?.into_iter().collect();
        let removed = backends.iter().filter(|(_, backend)| backend.has(Backend::REMOVED));
        let removed = removed.map(|(&id, _)| (id, Instant::now())).collect();
        let vips = maps.vips()?.into_iter().map(|(address, flags)| (address.into(), flags)).collect();
        let sets = maps.set_names()?.into_iter().map(|(id, _)| (id, None)).collect();
        let ranges = maps.ranges()?.into_iter().collect();
        let sources = HeldSources::read(maps)?;
        let gone = maps.gone_listeners()?.into_iter().map(|(id, _)| (id, Instant::now())).collect();
        let held = Held { listeners, ranges, sources, vips, backends, gone, removed, sets, settings: None };
        Ok(Self { ids: Ids::adopt(maps)?, held })
    }

    /// The backends in the maps, those included that the configuration has lost and that still drain.
    pub const fn backends(&self) -> &BTreeMap<u32, Backend> {
        &self.held.backends
    }

    /// Who holds the active role of each set, as far as the maps tell: whoever alone is in the rotation.
    pub fn holders(&self) -> Holders {
        let mut rotations: BTreeMap<u32, Vec<SocketAddr>> = BTreeMap::new();
        for backend in self.held.backends.values().filter(|backend| backend.has(Backend::IN_ROTATION)) {
            let socket = SocketAddr::new(backend.address.into(), backend.port);
            rotations.entry(backend.set).or_default().push(socket);
        }
        let alone = rotations.into_iter().filter_map(|(set, rotation)| match rotation[..] {
            [holder] => Some((self.ids.name_of_set(set)?.to_owned(), holder)),
            _ => None,
        });
        alone.collect()
    }

    /// Writes what differs.
    ///
    /// # Errors
    ///
    /// If a map cannot be written; what was written until then stays, and the next call goes on from there.
    pub fn apply(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        self.apply_settings(maps, desired)?;
        self.add_backends(maps, desired)?;
        self.apply_sets(maps, desired)?;
        self.add_vips(maps, desired)?;
        let source_changes = self.held.sources.begin(maps, desired)?;
        self.apply_listeners(maps, desired)?;
        self.held.sources.finish(maps, source_changes)?;
        self.remove_vips(maps, desired)?;
        self.retire_backends(maps, desired)?;
        self.remove_sets(maps, desired)
    }

    fn apply_settings(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        let held = maps.settings()?;
        let ports =
            desired.snat_ports.map_or((held.snat_port_first, held.snat_port_last), |p| (p.first, p.last));
        let settings = Settings {
            snat_port_first: ports.0,
            snat_port_last: ports.1,
            snat_addresses_v4: desired.snat_addresses_v4.len() as u16,
            snat_addresses_v6: desired.snat_addresses_v6.len() as u16,
            flags: if desired.icmp_echo { Settings::ICMP_ECHO } else { 0 },
            ..held
        };
        maps.set_snat_addresses(&desired.snat_addresses_v4, &desired.snat_addresses_v6)?;
        if self.held.settings != Some(settings) {
            maps.set_settings(&settings)?;
            self.held.settings = Some(settings);
        }
        Ok(())
    }

    fn add_backends(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        let new = desired.backends.keys().copied().filter(|id| !self.held.backends.contains_key(id));
        maps.clear_backend_counters(&new.collect::<Vec<u32>>())?;
        for (&id, backend) in &desired.backends {
            self.held.removed.remove(&id);
            let held = self.held.backends.get(&id);
            if held != Some(backend) {
                maps.set_backend(id, backend)?;
                self.held.backends.insert(id, *backend);
            }
        }
        Ok(())
    }

    fn apply_sets(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        let mut changed = Vec::new();
        for (&id, set) in &desired.sets {
            let held = self.held.sets.get(&id);
            if held.is_none() {
                maps.set_set_name(id, &set.name)?;
            }
            if held.and_then(Option::as_ref) != Some(set) {
                // Until all of its table is there: the set exists, its table has to be written.
                self.held.sets.insert(id, None);
                changed.push((id, set));
            }
        }
        let rotations: Vec<_> = changed.iter().map(|(id, set)| (*id, set.rotation.as_slice())).collect();
        maps.set_tables(&rotations)?;
        for (id, set) in changed {
            debug!(set = set.name, rotation = set.rotation.len(), "installed a new table");
            self.held.sets.insert(id, Some(set.clone()));
        }
        Ok(())
    }

    /// Writes every new key before it removes an old one: a listener whose ports change is never without any.
    fn apply_listeners(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        let Held { listeners, ranges, gone, .. } = &mut self.held;
        let held = listeners.values().chain(ranges.values());
        let known: BTreeSet<u32> = held.map(|listener| listener.id).collect();
        let wanted: BTreeSet<u32> = desired.all_listeners().map(|listener| listener.id).collect();
        let new: Vec<u32> = wanted.difference(&known).copied().collect();
        maps.clear_listener_counters(&new)?;
        for (&key, listener) in &desired.listeners {
            if listeners.get(&key) != Some(listener) {
                maps.set_listener(&unordered(key), listener)?;
                listeners.insert(key, *listener);
            }
        }
        for (&range, listener) in &desired.ranges {
            if ranges.get(&range) != Some(listener) {
                maps.set_range(range, listener)?;
                ranges.insert(range, *listener);
            }
        }
        // Before the maps lose the last that tells of them. Their ids stay taken, lest their flows count for others.
        let going: Vec<u32> = known.difference(&wanted).copied().collect();
        for &id in &going {
            let Some(owner) = self.ids.owner_of_listener(id) else { continue };
            maps.add_gone_listener(id, &unordered(owner))?;
            gone.insert(id, Instant::now());
        }
        for key in lost_keys(listeners, &desired.listeners) {
            maps.remove_listener(&unordered(key))?;
            listeners.remove(&key);
        }
        for range in lost_keys(ranges, &desired.ranges) {
            maps.remove_range(range)?;
            ranges.remove(&range);
        }
        // Until now they may have been given flows.
        gone.extend(going.iter().map(|&id| (id, Instant::now())));
        let back: Vec<u32> = gone.keys().filter(|id| wanted.contains(id)).copied().collect();
        for id in back {
            maps.remove_gone_listener(id)?;
            gone.remove(&id);
        }
        Ok(())
    }

    /// Frees the ids of listeners that are gone and have no flows.
    ///
    /// # Errors
    ///
    /// If a map cannot be written.
    pub fn forget_listeners(&mut self, maps: &mut Maps, census: &Census) -> Result<()> {
        for id in self.over(census) {
            maps.remove_gone_listener(id)?;
            self.forget_listener(id);
        }
        Ok(())
    }

    /// Listeners that are gone and have no flows.
    fn over(&self, census: &Census) -> Vec<u32> {
        without_flows(&self.held.gone, census, &census.by_listener)
    }

    fn forget_listener(&mut self, id: u32) {
        self.held.gone.remove(&id);
        self.ids.free_listener(id);
    }

    /// Adds VIPs, and the flags of what is about to be added to them: the program looks for listeners at VIPs only,
    /// and for ranges only at those that say so.
    fn add_vips(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        for (&address, &flags) in &desired.vips {
            let held = self.held.vips.get(&address).copied();
            self.set_vip(maps, address, flags | held.unwrap_or_default())?;
        }
        Ok(())
    }

    fn set_vip(&mut self, maps: &mut Maps, address: IpAddr, flags: u32) -> Result<()> {
        if self.held.vips.get(&address) != Some(&flags) {
            maps.set_vip(&address.into(), flags)?;
            self.held.vips.insert(address, flags);
        }
        Ok(())
    }

    /// Removes the flags of what was removed, and the VIPs that have nothing left.
    fn remove_vips(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        for (&address, &flags) in &desired.vips {
            self.set_vip(maps, address, flags)?;
        }
        for address in lost_keys(&self.held.vips, &desired.vips) {
            maps.remove_vip(&address.into())?;
            self.held.vips.remove(&address);
        }
        Ok(())
    }

    /// Backends that the configuration has lost drain: their flows go on, their ids stay taken.
    fn retire_backends(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        for (&id, backend) in &mut self.held.backends {
            if desired.backends.contains_key(&id) || backend.has(Backend::REMOVED) {
                continue;
            }
            backend.flags = Backend::IN_USE | Backend::REMOVED;
            maps.set_backend(id, backend)?;
            self.held.removed.insert(id, Instant::now());
        }
        Ok(())
    }

    /// Frees the ids of removed backends without flows. Returns the ids that were freed.
    ///
    /// # Errors
    ///
    /// If a map cannot be written.
    pub fn forget_backends(&mut self, maps: &mut Maps, census: &Census) -> Result<Vec<u32>> {
        let over = without_flows(&self.held.removed, census, &census.by_backend);
        for id in &over {
            maps.set_backend(*id, &Backend::default())?;
            self.held.backends.remove(id);
            self.held.removed.remove(id);
        }
        self.ids.keep_backends(|id| !over.contains(&id));
        if !over.is_empty() {
            self.forget_sets(maps)?;
        }
        Ok(over)
    }

    fn remove_sets(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        for id in lost_keys(&self.held.sets, &desired.sets) {
            maps.remove_table(id)?;
            self.held.sets.remove(&id);
        }
        self.forget_sets(maps)
    }

    /// Frees the ids of sets that are gone and have no backends left that drain: these are known by set and address.
    fn forget_sets(&mut self, maps: &mut Maps) -> Result<()> {
        let Held { backends, sets, .. } = &self.held;
        let draining: BTreeSet<u32> = backends.values().map(|backend| backend.set).collect();
        let is_in_use = |id| sets.contains_key(&id) || draining.contains(&id);
        for id in self.ids.sets().filter(|&id| !is_in_use(id)) {
            maps.set_set_name(id, "")?;
        }
        self.ids.keep_sets(is_in_use);
        Ok(())
    }
}

/// Those ids of gone owners that have no flows. A census that began before an owner went says nothing of the flows it was given since.
fn without_flows(gone: &BTreeMap<u32, Instant>, census: &Census, flows: &BTreeMap<u32, u64>) -> Vec<u32> {
    let is_over = |id, since| census.began.is_some_and(|began| began >= since) && !flows.contains_key(id);
    gone.iter().filter(|&(id, &since)| is_over(id, since)).map(|(&id, _)| id).collect()
}

/// Keys that are held and no longer desired.
fn lost_keys<K: Ord + Copy, A, B>(held: &BTreeMap<K, A>, desired: &BTreeMap<K, B>) -> Vec<K> {
    held.keys().filter(|key| !desired.contains_key(key)).copied().collect()
}

fn ordered(key: &ListenerKey) -> ListenerOrd {
    (key.address.into(), key.port, key.protocol)
}

fn unordered((address, port, protocol): ListenerOrd) -> ListenerKey {
    ListenerKey { address: address.into(), port, protocol, _pad: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn the_id_of_a_listener_that_is_gone_is_free_once_a_later_census_finds_no_flows_of_it() {
        let mut applier = Applier::default();
        let owner = |port| (IpAddr::V4(Ipv4Addr::LOCALHOST), port, 6);
        let went = Instant::now();
        assert_eq!(applier.ids.listener(owner(80)).unwrap(), 0);
        applier.held.gone.insert(0, went);
        let census = |began, flows: &[(u32, u64)]| Census {
            began: Some(began),
            by_listener: flows.iter().copied().collect(),
            ..Census::default()
        };
        for (census, next) in [
            (census(went - std::time::Duration::from_secs(1), &[]), 1),
            (census(went, &[(0, 1)]), 2),
            (census(went, &[(7, 1)]), 0),
        ] {
            applier.over(&census).into_iter().for_each(|id| applier.forget_listener(id));
            assert_eq!(applier.ids.listener(owner(81 + next)).unwrap(), u32::from(next));
        }
        assert!(applier.held.gone.is_empty());
    }
}
