//! Numbers for listeners, sets and backends: the indexes of the maps. An id stays with its owner for as long as
//! the maps live, so that flows, counters and tables keep their meaning over reloads and restarts.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};
use lb_common::{LISTENER_IDS, MAX_BACKENDS, MAX_LISTENERS, MAX_SETS};

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

    /// Keeps a listener id taken that may have flows of an owner nobody remembers. Returns whether it is now: not if somebody owns
    /// it, nor if a configuration of nothing but new listeners would find no room.
    pub fn hold_listener(&mut self, id: u32) -> bool {
        let has_room = self.listeners.owners.len() < (LISTENER_IDS - MAX_LISTENERS) as usize;
        if !has_room || self.listeners.owner_of(id).is_some() {
            return false;
        }
        self.listeners.put(nobody(id), id);
        true
    }

    /// The id of a set.
    ///
    /// # Errors
    ///
    /// If there are too many.
    pub fn set(&mut self, name: &str) -> Result<u32> {
        self.sets.get_or_give(name.to_owned(), MAX_SETS, "backend sets")
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

    /// Takes back the ids of listeners that are no longer wanted.
    pub fn keep_listeners(&mut self, wanted: impl Fn(u32) -> bool) {
        self.listeners.keep(wanted);
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

/// Who owns a listener id whose owner is not known: no listener has this protocol number.
fn nobody(id: u32) -> ListenerOwner {
    const { assert!(LISTENER_IDS <= 1 << 16) };
    (Ipv6Addr::UNSPECIFIED.into(), id as u16, 0)
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

    #[test]
    fn ids_that_are_held_are_given_to_nobody_and_leave_room_for_a_new_configuration() {
        let mut ids = Ids::default();
        let owner = |port| (IpAddr::V6(Ipv6Addr::LOCALHOST), port, 6);
        assert_eq!(ids.listener(owner(0)).unwrap(), 0);
        assert_eq!([0, 1, 3, 1].map(|id| ids.hold_listener(id)), [false, true, true, false]);
        assert_eq!([1, 2].map(|port| ids.listener(owner(port)).unwrap()), [2, 4]);

        let held = (0..LISTENER_IDS).filter(|&id| ids.hold_listener(id)).count();
        assert!(held > 0);
        assert!((3..3 + MAX_LISTENERS as u16).all(|port| ids.listener(owner(port)).is_ok()));
        ids.keep_listeners(|id| id != 1);
        assert_eq!(ids.listener(owner(u16::MAX)).unwrap(), 1);
    }
}
