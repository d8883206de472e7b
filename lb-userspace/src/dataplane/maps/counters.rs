//! Counters: what the program counts on each CPU, summed.

use anyhow::{Context, Result};
use aya::maps::{MapData, PerCpuArray};
use lb_common::{Counters, Drops, Traffic};

use super::Maps;

impl Maps {
    /// Traffic of a listener, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn listener_counters(&self, id: u32) -> Result<Counters> {
        sum(&self.listener_counters, id).context("cannot read the map `listener_counters`")
    }

    /// Traffic of a backend, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn backend_counters(&self, id: u32) -> Result<Counters> {
        sum(&self.backend_counters, id).context("cannot read the map `backend_counters`")
    }

    /// Sets the counters of a listener id to zero: it is given to another listener.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn clear_listener_counters(&mut self, id: u32) -> Result<()> {
        clear(&mut self.listener_counters, id)?;
        clear(&mut self.drops, id + 1)
    }

    /// Sets the counters of a backend id to zero: it is given to another backend.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn clear_backend_counters(&mut self, id: u32) -> Result<()> {
        clear(&mut self.backend_counters, id)
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

fn sum(map: &PerCpuArray<MapData, Counters>, id: u32) -> Result<Counters> {
    let mut total = Counters::default();
    for Counters { to_backend, to_client, new_flows, refused } in map.get(&id, 0)?.iter() {
        add(&mut total.to_backend, to_backend);
        add(&mut total.to_client, to_client);
        total.new_flows += new_flows;
        total.refused += refused;
    }
    Ok(total)
}

fn add(total: &mut Traffic, more: &Traffic) {
    total.packets += more.packets;
    total.bytes += more.bytes;
}

fn clear<V: aya::Pod + Default>(map: &mut PerCpuArray<MapData, V>, id: u32) -> Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
    let zero = vec![V::default(); cpus].try_into().context("cannot lay out a value for each CPU")?;
    map.set(id, zero, 0).context("cannot clear counters")
}
