//! Counters: what the program counts on each CPU, summed.
//!
//! Nobody but the program writes its counters, and they only grow. What an id has counted for an earlier owner is noted
//! as its base instead, and subtracted.

use std::cell::RefCell;

use anyhow::{Context, Result};
use aya::maps::{HashMap, MapData, PerCpuArray};
use lb_common::{Counters, Drops, Traffic};

use super::Maps;
use crate::dataplane::lanes::{InLanes, add};

/// How often lanes are looked at anew because some have become others meanwhile, before what was found will do: it may lack
/// what these have counted, until the next time.
const LOOKS: u32 = 64;

/// The counters of listeners or backends, lanes apart.
pub(super) struct CounterMap {
    pub(super) counted: PerCpuArray<MapData, Counters>,
    pub(super) bases: HashMap<MapData, u32, Counters>,
}

impl CounterMap {
    /// What has been counted under an id, for whomever.
    fn sum(&self, id: u32) -> Result<Counters> {
        let mut total = Counters::default();
        for counters in self.counted.get(&id, 0)?.iter() {
            add_all(&mut total, counters);
        }
        Ok(total)
    }

    fn base(&self, id: u32) -> Result<Counters> {
        match self.bases.get(&id, 0) {
            Ok(base) => Ok(base),
            Err(aya::maps::MapError::KeyNotFound) => Ok(Counters::default()),
            Err(error) => Err(error.into()),
        }
    }

    fn set_base(&mut self, id: u32, base: &Counters) -> Result<()> {
        if *base == Counters::default() {
            return Ok(());
        }
        self.bases.insert(id, base, 0).context("cannot note where counting begins")
    }
}

/// All counters, each as it stands when it is asked for.
pub struct Tally<'a> {
    maps: &'a Maps,
    in_lanes: RefCell<InLanes>,
    looks: RefCell<u32>,
}

impl Tally<'_> {
    /// Traffic of a listener.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn listener(&self, id: u32) -> Result<Counters> {
        let base = self.maps.listener_counters.base(id).context("cannot read the map `listener_bases`")?;
        Ok(less(&self.whole_listener(id)?, &base))
    }

    /// Traffic of a backend.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn backend(&self, id: u32) -> Result<Counters> {
        let base = self.maps.backend_counters.base(id).context("cannot read the map `backend_bases`")?;
        Ok(less(&self.whole_backend(id)?, &base))
    }

    fn whole_listener(&self, id: u32) -> Result<Counters> {
        let sum = || self.maps.listener_counters.sum(id).context("cannot read the map `listener_counters`");
        self.with_lanes(sum, |in_lanes| in_lanes.listeners.get(&id).copied())
    }

    fn whole_backend(&self, id: u32) -> Result<Counters> {
        let sum = || self.maps.backend_counters.sum(id).context("cannot read the map `backend_counters`");
        self.with_lanes(sum, |in_lanes| in_lanes.backends.get(&id).copied())
    }

    /// Adds what is in lanes to what is in a map. What goes from there to here meanwhile must not count twice, nor not at all.
    fn with_lanes(
        &self,
        sum: impl Fn() -> Result<Counters>,
        of_lanes: impl Fn(&InLanes) -> Option<Counters>,
    ) -> Result<Counters> {
        loop {
            let mut total = sum()?;
            if self.maps.lanes.are_still(&self.in_lanes.borrow()) || *self.looks.borrow() == 0 {
                add_all(&mut total, &of_lanes(&self.in_lanes.borrow()).unwrap_or_default());
                return Ok(total);
            }
            *self.looks.borrow_mut() -= 1;
            self.in_lanes.replace(self.maps.lanes.read());
        }
    }
}

impl Maps {
    /// All counters.
    pub fn tally(&self) -> Tally<'_> {
        Tally { maps: self, in_lanes: RefCell::new(self.lanes.read()), looks: RefCell::new(LOOKS) }
    }

    /// Lets the counters of listener ids begin at zero: they are given to other listeners.
    ///
    /// # Errors
    ///
    /// If an id is out of range.
    pub fn clear_listener_counters(&mut self, ids: &[u32]) -> Result<()> {
        for (&id, base) in ids.iter().zip(self.wholes(ids, |tally, id| tally.whole_listener(id))?) {
            self.listener_counters.set_base(id, &base)?;
            clear(&mut self.drops, id + 1)?;
        }
        Ok(())
    }

    /// Lets the counters of backend ids begin at zero: they are given to other backends.
    ///
    /// # Errors
    ///
    /// If an id is out of range.
    pub fn clear_backend_counters(&mut self, ids: &[u32]) -> Result<()> {
        for (&id, base) in ids.iter().zip(self.wholes(ids, |tally, id| tally.whole_backend(id))?) {
            self.backend_counters.set_base(id, &base)?;
        }
        Ok(())
    }

    fn wholes(
        &self,
        ids: &[u32],
        whole: impl Fn(&Tally<'_>, u32) -> Result<Counters>,
    ) -> Result<Vec<Counters>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let tally = self.tally();
        ids.iter().map(|&id| whole(&tally, id)).collect()
    }

    /// Drops of a listener, or those without one, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn drops(&self, listener: Option<u32>) -> Result<Drops> {
        let per_cpu =
            self.drops.get(&listener.map_or(0, |id| id + 1), 0).context("cannot read the map `drops`")?;
        let mut total = Drops::default();
        for drops in per_cpu.iter() {
            total.add(drops);
        }
        Ok(total)
    }
}

const fn add_all(total: &mut Counters, more: &Counters) {
    add(&mut total.to_backend, &more.to_backend);
    add(&mut total.to_client, &more.to_client);
    total.new_flows += more.new_flows;
    total.refused += more.refused;
}

/// What has been counted since the base was noted.
const fn less(counters: &Counters, base: &Counters) -> Counters {
    const fn traffic(now: &Traffic, base: &Traffic) -> Traffic {
        Traffic {
            packets: now.packets.saturating_sub(base.packets),
            bytes: now.bytes.saturating_sub(base.bytes),
        }
    }
    Counters {
        to_backend: traffic(&counters.to_backend, &base.to_backend),
        to_client: traffic(&counters.to_client, &base.to_client),
        new_flows: counters.new_flows.saturating_sub(base.new_flows),
        refused: counters.refused.saturating_sub(base.refused),
    }
}

fn clear<V: aya::Pod + Default>(map: &mut PerCpuArray<MapData, V>, id: u32) -> Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
    let zero = vec![V::default(); cpus].try_into().context("cannot lay out a value for each CPU")?;
    map.set(id, zero, 0).context("cannot clear counters")
}
