//! Numbers for listeners, sets and backends: the indexes of the maps. An id stays with its owner for as long as
//! the maps live, so that flows, counters and tables keep their meaning over reloads and restarts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use lb_common::{LISTENER_IDS, MAX_BACKENDS, MAX_SETS};

use crate::dataplane::Maps;

/// Who owns a listener id: the lowest address, port and protocol of the listener. Port 0 stands for every port.
pub type ListenerOwner = (IpAddr, u16, u8);

/// Who owns a backend id: a backend of a set.
pub type BackendOwner = (u32, SocketAddr);

/// All ids given out.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    listeners: Table<ListenerOwner>,
    sets: Table<String>,
    backends: Table<BackendOwner>,
}

impl Ids {
    /// Reads the ids that an earlier controller gave out.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn adopt(maps: &Maps) -> Result<Self> {
        let mut ids = Self::default();
        let single = maps.listeners()?.into_iter();
        let single =
            single.map(|(key, listener)| ((key.address.into(), key.port, key.protocol), listener.id));
        let ranges = maps.ranges()?.into_iter();
        let ranges =
            ranges.map(|(range, listener)| ((range.address, range.ports.port, range.protocol), listener.id));
        for (owner, id) in single.chain(ranges) {
            // A listener of two protocols or of many ports has several keys and one id: the lowest owns it.
            match ids.listeners.owner_of(id) {
                Some(first) if *first <= owner => {}
                _ => ids.listeners.put(owner, id),
            }
        }
        for (id, key) in maps.gone_listeners()? {
            if ids.listeners.owner_of(id).is_none() {
                ids.listeners.put((key.address.into(), key.port, key.protocol), id);
            }
        }
        for (id, name) in maps.set_names()? {
            ids.sets.put(name, id);
        }
        for (id, backend) in maps.backends()? {
            ids.backends.put((backend.set, SocketAddr::new(backend.address.into(), backend.port)), id);
        }
        Ok(ids)
    }

    /// The id of a listener.
    ///
    /// # Errors
    ///
    /// If there are too many.
    pub fn listener(&mut self, owner: ListenerOwner) -> Result<u32> {
        self.listeners.get_or_give(owner, LISTENER_IDS, "listeners, those whose flows go on included")
    }

    /// Who owns a listener id.
    pub fn owner_of_listener(&self, id: u32) -> Option<ListenerOwner> {
        self.listeners.owner_of(id).copied()
    }

    /// The id of a set.
    ///
    /// # Errors
    ///
    /// If there are too many.
    pub fn set(&mut self, name: &str) -> Result<u32> {
        self.sets.get_or_give(
            name.to_owned(),
            MAX_SETS,
            "backend sets, those whose backends still drain included",
        )
    }

    /// Ids of all sets.
    pub fn sets(&self) -> impl Iterator<Item = u32> {
        self.sets.owners.keys().copied()
    }

    /// The name behind the id of a set.
    pub fn name_of_set(&self, id: u32) -> Option<&str> {
        self.sets.owner_of(id).map(String::as_str)
    }

    /// The id of a backend.
    ///
    /// # Errors
    ///
    /// If there are too many.
    pub fn backend(&mut self, owner: BackendOwner) -> Result<u32> {
        self.backends.get_or_give(owner, MAX_BACKENDS, "backends, those that still drain included")
    }

    /// Takes back the id of a listener.
    pub fn free_listener(&mut self, id: u32) {
        self.listeners.free(id);
    }

    /// Takes back the ids of sets that are no longer wanted.
    pub fn keep_sets(&mut self, wanted: impl Fn(u32) -> bool) {
        self.sets.keep(wanted);
    }

    /// Takes back the ids of backends that are no longer wanted.
    pub fn keep_backends(&mut self, wanted: impl Fn(u32) -> bool) {
        self.backends.keep(wanted);
    }
}

/// Owners and their ids; the lowest free id is given next, so that the maps stay dense for their readers.
#[derive(Clone, Debug)]
struct Table<O> {
    ids: BTreeMap<O, u32>,
    owners: BTreeMap<u32, O>,
}

impl<O> Default for Table<O> {
    fn default() -> Self {
        Self { ids: BTreeMap::new(), owners: BTreeMap::new() }
    }
}

impl<O: Ord + Clone> Table<O> {
    fn owner_of(&self, id: u32) -> Option<&O> {
        self.owners.get(&id)
    }

    fn put(&mut self, owner: O, id: u32) {
        if let Some(previous) = self.owners.insert(id, owner.clone()) {
            self.ids.remove(&previous);
        }
        self.ids.insert(owner, id);
    }

    fn get_or_give(&mut self, owner: O, limit: u32, what: &str) -> Result<u32> {
        if let Some(&id) = self.ids.get(&owner) {
            return Ok(id);
        }
        let mut free = 0;
        if let Some((&highest, _)) = self.owners.last_key_value() {
            free = if highest as usize + 1 == self.owners.len() {
                highest + 1
            } else {
                // There is a gap below the highest: the first number that is not where counting puts it.
                (0..)
                    .zip(self.owners.keys())
                    .find(|(number, id)| number != *id)
                    .map_or(highest + 1, |(number, _)| number)
            };
        }
        if free >= limit {
            bail!("too many {what}: this build has room for {limit}");
        }
        self.put(owner, free);
        Ok(free)
    }

    fn free(&mut self, id: u32) {
        if let Some(owner) = self.owners.remove(&id) {
            self.ids.remove(&owner);
        }
    }

    fn keep(&mut self, wanted: impl Fn(u32) -> bool) {
        self.owners.retain(|&id, _| wanted(id));
        self.ids.retain(|_, id| wanted(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_with_their_owner_and_gaps_are_filled() {
        let mut table = Table::default();
        let give = |table: &mut Table<&str>, owner| table.get_or_give(owner, 3, "things").unwrap();
        assert_eq!([give(&mut table, "a"), give(&mut table, "b"), give(&mut table, "c")], [0, 1, 2]);
        assert_eq!(give(&mut table, "b"), 1);
        table.keep(|id| id != 1);
        assert_eq!(give(&mut table, "d"), 1);
        assert_eq!(give(&mut table, "c"), 2);
        assert!(table.get_or_give("e", 3, "things").is_err());
    }
}
