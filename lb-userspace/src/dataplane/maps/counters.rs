//! Counters: what the program counts on each CPU, summed.
//!
//! Nobody but the program writes its counters, and they only grow. What an id has counted for an earlier owner is noted
//! as its base instead, and subtracted.

use std::cell::RefCell;
use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap as HashMapOf, MapData, PerCpuArray};
use lb_common::{Counters, Drops};

use super::Maps;
use crate::dataplane::lanes::InLanes;
use crate::dataplane::sizes::cpus;

/// How often an id is looked at anew because lanes have become others meanwhile, before what was found has to do: it may lack
/// what these have counted, until the next time.
const LOOKS: u32 = 16;

/// The same where an error would stay for good.
const LOOKS_FOR_BASE: u32 = 4096;

/// The counters of listeners or backends, lanes apart.
pub(super) struct CounterMap {
    counted: PerCpuArray<MapData, Counters>,
    bases: HashMapOf<MapData, u32, Counters>,
    /// What is in `bases`, which nobody else writes.
    known_bases: HashMap<u32, Counters>,
    /// Its part of what is in lanes.
    of_lanes: fn(&InLanes) -> &HashMap<u32, Counters>,
}

impl CounterMap {
    pub(super) fn new(
        counted: PerCpuArray<MapData, Counters>,
        bases: HashMapOf<MapData, u32, Counters>,
        of_lanes: fn(&InLanes) -> &HashMap<u32, Counters>,
    ) -> Result<Self> {
        let known_bases = bases.iter().collect::<Result<_, _>>().context("cannot read bases of counters")?;
        Ok(Self { counted, bases, known_bases, of_lanes })
    }

    fn set_base(&mut self, id: u32, base: &Counters) -> Result<()> {
        if *base == Counters::default() {
            return Ok(());
        }
        self.bases.insert(id, base, 0).context("cannot note where counting begins")?;
        self.known_bases.insert(id, *base);
        Ok(())
    }
}

/// All counters, each as it stands when it is asked for, but for what is in lanes: that may be as old as the tally.
pub struct Tally<'a> {
    maps: &'a Maps,
    /// Of each CPU.
    in_lanes: RefCell<Vec<InLanes>>,
}

/// What was found for an id.
enum Found {
    /// All of it.
    Whole(Counters),
    /// Perhaps not all of it: lanes did not stand still.
    Lacking(Counters),
}

impl Tally<'_> {
    /// Traffic of a listener.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn listener(&self, id: u32) -> Result<Counters> {
        self.of_owner(&self.maps.listener_counters, id).context("cannot read the map `listener_counters`")
    }

    /// Traffic of a backend.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn backend(&self, id: u32) -> Result<Counters> {
        self.of_owner(&self.maps.backend_counters, id).context("cannot read the map `backend_counters`")
    }

    fn of_owner(&self, map: &CounterMap, id: u32) -> Result<Counters> {
        let (Found::Whole(counters) | Found::Lacking(counters)) = self.of_id(map, id, LOOKS)?;
        Ok(map.known_bases.get(&id).map_or(counters, |base| counters.since(base)))
    }

    /// What has been counted under an id, for whomever: what is in the map and what is in lanes. What goes from there to here
    /// meanwhile must not count twice, nor not at all.
    fn of_id(&self, map: &CounterMap, id: u32, looks: u32) -> Result<Found> {
        let mut in_lanes = self.in_lanes.borrow_mut();
        let mut look = 1;
        loop {
            let mut total = Counters::default();
            map.counted.get(&id, 0)?.iter().for_each(|counters| total.add(counters));
            let mut is_whole = true;
            for (cpu, of_cpu) in (0..).zip(in_lanes.iter_mut()) {
                // Later than the map, so that it lacks something rather than having it twice.
                if !self.maps.lanes.are_still(cpu, of_cpu) {
                    *of_cpu = self.maps.lanes.read(cpu);
                    is_whole = false;
                }
                if let Some(counters) = (map.of_lanes)(of_cpu).get(&id) {
                    total.add(counters);
                }
            }
            match () {
                () if is_whole => return Ok(Found::Whole(total)),
                () if look == looks => return Ok(Found::Lacking(total)),
                () => look += 1,
            }
        }
    }
}

impl Maps {
    /// All counters.
    pub fn tally(&self) -> Tally<'_> {
        Tally { maps: self, in_lanes: RefCell::new(self.lanes.read_all()) }
    }

    /// Lets the counters of listener ids begin at zero: they are given to other listeners.
    ///
    /// # Errors
    ///
    /// If an id is out of range, or its counters never stand still.
    pub fn clear_listener_counters(&mut self, ids: &[u32]) -> Result<()> {
        for (id, base) in self.bases(&self.listener_counters, ids)? {
            self.listener_counters.set_base(id, &base)?;
            clear(&mut self.drops, id + 1)?;
        }
        Ok(())
    }

    /// Lets the counters of backend ids begin at zero: they are given to other backends.
    ///
    /// # Errors
    ///
    /// If an id is out of range, or its counters never stand still.
    pub fn clear_backend_counters(&mut self, ids: &[u32]) -> Result<()> {
        for (id, base) in self.bases(&self.backend_counters, ids)? {
            self.backend_counters.set_base(id, &base)?;
        }
        Ok(())
    }

    fn bases(&self, map: &CounterMap, ids: &[u32]) -> Result<Vec<(u32, Counters)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let tally = self.tally();
        let base = |&id| match tally.of_id(map, id, LOOKS_FOR_BASE)? {
            Found::Whole(counters) => Ok((id, counters)),
            Found::Lacking(_) => bail!("the counters of id {id} did not stand still: try again"),
        };
        ids.iter().map(base).collect()
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

fn clear<V: aya::Pod + Default>(map: &mut PerCpuArray<MapData, V>, id: u32) -> Result<()> {
    let zero =
        vec![V::default(); cpus()? as usize].try_into().context("cannot lay out a value for each CPU")?;
    map.set(id, zero, 0).context("cannot clear counters")
}
