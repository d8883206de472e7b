//! Brings the maps from what they hold to what is desired, writing only what differs, in an order in which every
//! state in between makes sense to a packet: backends before the tables that name them, tables before the
//! listeners that use them; and the other way round for what goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use anyhow::Result;
use lb_common::{Backend, ListenerKey, Settings};
use tracing::debug;

use super::desired::{Desired, DesiredSet, ListenerOrd};
use super::ids::Ids;
use crate::dataplane::{Census, Maps, maglev};

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
    listeners: BTreeMap<ListenerOrd, lb_common::Listener>,
    vips: BTreeSet<IpAddr>,
    backends: BTreeMap<u32, Backend>,
    /// Since when backends are known to get no new flows: those that the configuration has lost.
    removed: BTreeMap<u32, Instant>,
    /// Sets; the table of an adopted one is not known.
    sets: BTreeMap<u32, Option<DesiredSet>>,
    settings: Option<Settings>,
}

impl Applier {
    /// Reads what the maps hold: nothing after a fresh start, everything after an adoption.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn read(maps: &Maps) -> Result<Self> {
        let listeners = maps.listeners()?.into_iter().map(|(key, value)| (ordered(&key), value)).collect();
        let backends: BTreeMap<u32, Backend> = maps.backends()?.into_iter().collect();
        let removed = backends.iter().filter(|(_, backend)| backend.has(Backend::REMOVED));
        let removed = removed.map(|(&id, _)| (id, Instant::now())).collect();
        let vips = maps.vips()?.into_iter().map(IpAddr::from).collect();
        let sets = maps.set_names()?.into_iter().map(|(id, _)| (id, None)).collect();
        let held = Held { listeners, vips, backends, removed, sets, settings: None };
        Ok(Self { ids: Ids::adopt(maps)?, held })
    }

    /// The backends in the maps, those included that the configuration has lost and that still drain.
    pub const fn backends(&self) -> &BTreeMap<u32, Backend> {
        &self.held.backends
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
        self.apply_listeners(maps, desired)?;
        self.remove_vips(maps)?;
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
        for (&id, backend) in &desired.backends {
            self.held.removed.remove(&id);
            let held = self.held.backends.get(&id);
            if held.is_none() {
                maps.clear_backend_counters(id)?;
            }
            if held != Some(backend) {
                maps.set_backend(id, backend)?;
                self.held.backends.insert(id, *backend);
            }
        }
        Ok(())
    }

    fn apply_sets(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        for (&id, set) in &desired.sets {
            let held = self.held.sets.get(&id);
            if held.is_none() {
                maps.set_set_name(id, &set.name)?;
            }
            if held != Some(&Some(set.clone())) {
                maps.set_table(id, &maglev::build(&set.rotation))?;
                debug!(set = set.name, rotation = set.rotation.len(), "installed a new table");
                self.held.sets.insert(id, Some(set.clone()));
            }
        }
        Ok(())
    }

    fn apply_listeners(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        let known: BTreeSet<u32> = self.held.listeners.values().map(|listener| listener.id).collect();
        for (&key, listener) in &desired.listeners {
            if !known.contains(&listener.id) {
                maps.clear_listener_counters(listener.id)?;
            }
            if self.held.listeners.get(&key) != Some(listener) {
                maps.set_listener(&unordered(key), listener)?;
                self.held.listeners.insert(key, *listener);
            }
        }
        let gone: Vec<ListenerOrd> =
            self.held.listeners.keys().filter(|key| !desired.listeners.contains_key(key)).copied().collect();
        for key in gone {
            maps.remove_listener(&unordered(key))?;
            self.held.listeners.remove(&key);
        }
        let wanted: BTreeSet<u32> = desired.listeners.values().map(|listener| listener.id).collect();
        self.ids.keep_listeners(|id| wanted.contains(&id));
        Ok(())
    }

    /// Every address that has listeners is a VIP: the program looks for a listener at VIPs only.
    fn add_vips(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        for &(address, ..) in desired.listeners.keys() {
            if !self.held.vips.contains(&address) {
                maps.add_vip(&address.into())?;
                self.held.vips.insert(address);
            }
        }
        Ok(())
    }

    fn remove_vips(&mut self, maps: &mut Maps) -> Result<()> {
        let wanted: BTreeSet<IpAddr> = self.held.listeners.keys().map(|(address, ..)| *address).collect();
        for &address in self.held.vips.difference(&wanted) {
            maps.remove_vip(&address.into())?;
        }
        self.held.vips = wanted;
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

    /// Frees the ids of removed backends without flows. A census that began before a backend was removed says
    /// nothing of the flows it was given since. Returns the ids that were freed.
    ///
    /// # Errors
    ///
    /// If a map cannot be written.
    pub fn forget_backends(&mut self, maps: &mut Maps, census: &Census) -> Result<Vec<u32>> {
        let is_over = |id: &u32, since: &Instant| {
            census.began.is_some_and(|began| began >= *since) && !census.by_backend.contains_key(id)
        };
        let removed = self.held.removed.iter();
        let over: Vec<u32> = removed.filter(|(id, since)| is_over(id, since)).map(|(&id, _)| id).collect();
        for id in &over {
            maps.set_backend(*id, &Backend::default())?;
            self.held.backends.remove(id);
            self.held.removed.remove(id);
        }
        self.ids.keep_backends(|id| !over.contains(&id));
        Ok(over)
    }

    fn remove_sets(&mut self, maps: &mut Maps, desired: &Desired) -> Result<()> {
        let gone: Vec<u32> =
            self.held.sets.keys().filter(|id| !desired.sets.contains_key(id)).copied().collect();
        for id in gone {
            maps.remove_table(id)?;
            maps.set_set_name(id, "")?;
            self.held.sets.remove(&id);
        }
        self.ids.keep_sets(|id| desired.sets.contains_key(&id));
        Ok(())
    }
}

fn ordered(key: &ListenerKey) -> ListenerOrd {
    (key.address.into(), key.port, key.protocol)
}

fn unordered((address, port, protocol): ListenerOrd) -> ListenerKey {
    ListenerKey { address: address.into(), port, protocol, _pad: 0 }
}
