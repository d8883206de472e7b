//! Typed access to the maps that the controller writes, and to the counters it reads.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use aya::Ebpf;
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray};
use lb_common::listener::{SetName, Vip};
use lb_common::{
    Addr4, Addr6, Backend, Counters, Drops, InterfaceMac, Listener, ListenerKey, MaglevTable, Settings,
    Traffic,
};

use super::sys;

/// The maps of a loaded data plane, connections apart.
pub struct Maps {
    listeners: HashMap<MapData, ListenerKey, Listener>,
    vips: HashMap<MapData, Addr6, Vip>,
    interfaces: HashMap<MapData, u32, InterfaceMac>,
    strays: HashMap<MapData, ListenerKey, u64>,
    backends: Array<MapData, Backend>,
    backend_sets: Array<MapData, SetName>,
    maglev: ArrayOfMaps<MapData, Array<MapData, MaglevTable>>,
    /// The same map: aya replaces tables but does not remove them.
    maglev_fd: OwnedFd,
    settings: Array<MapData, Settings>,
    snat_addresses_v4: Array<MapData, Addr4>,
    snat_addresses_v6: Array<MapData, Addr6>,
    listener_counters: PerCpuArray<MapData, Counters>,
    backend_counters: PerCpuArray<MapData, Counters>,
    drops: PerCpuArray<MapData, Drops>,
}

/// Takes a map out of the object under its name and as its type.
macro_rules! take {
    ($ebpf:expr, $name:literal) => {
        $ebpf
            .take_map($name)
            .ok_or_else(|| anyhow!("the eBPF object has no map `{}`", $name))?
            .try_into()
            .context(concat!("the map `", $name, "` is of another type than this program expects"))?
    };
}

impl Maps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let Some(Map::ArrayOfMaps(maglev)) = ebpf.map("maglev") else {
            bail!("the eBPF object has no array of maps `maglev`");
        };
        let maglev_fd = maglev.fd().as_fd().try_clone_to_owned().context("cannot keep the map `maglev`")?;
        Ok(Self {
            maglev_fd,
            listeners: take!(ebpf, "listeners"),
            vips: take!(ebpf, "vips"),
            interfaces: take!(ebpf, "interfaces"),
            strays: take!(ebpf, "strays"),
            backends: take!(ebpf, "backends"),
            backend_sets: take!(ebpf, "backend_sets"),
            maglev: take!(ebpf, "maglev"),
            settings: take!(ebpf, "settings"),
            snat_addresses_v4: take!(ebpf, "snat_addresses_v4"),
            snat_addresses_v6: take!(ebpf, "snat_addresses_v6"),
            listener_counters: take!(ebpf, "listener_counters"),
            backend_counters: take!(ebpf, "backend_counters"),
            drops: take!(ebpf, "drops"),
        })
    }

    /// All listeners in the map.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn listeners(&self) -> Result<Vec<(ListenerKey, Listener)>> {
        self.listeners.iter().collect::<Result<_, _>>().context("cannot read the map `listeners`")
    }

    /// Adds or replaces a listener.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn set_listener(&mut self, key: &ListenerKey, listener: &Listener) -> Result<()> {
        self.listeners.insert(key, listener, 0).context("cannot write the map `listeners`")
    }

    /// Removes a listener.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn remove_listener(&mut self, key: &ListenerKey) -> Result<()> {
        self.listeners.remove(key).context("cannot remove a listener from the map `listeners`")
    }

    /// All VIPs in the map.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn vips(&self) -> Result<Vec<Addr6>> {
        self.vips.keys().collect::<Result<_, _>>().context("cannot read the map `vips`")
    }

    /// Adds a VIP.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn add_vip(&mut self, address: &Addr6) -> Result<()> {
        let vip = Vip { flags: Vip::LISTENS, ..Vip::default() };
        self.vips.insert(address, vip, 0).context("cannot write the map `vips`")
    }

    /// Removes a VIP.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn remove_vip(&mut self, address: &Addr6) -> Result<()> {
        self.vips.remove(address).context("cannot remove a VIP from the map `vips`")
    }

    /// All attached interfaces in the map: index and MAC.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn interfaces(&self) -> Result<Vec<(u32, [u8; 6])>> {
        let all = self.interfaces.iter().map(|entry| entry.map(|(ifindex, own)| (ifindex, own.mac)));
        all.collect::<Result<_, _>>().context("cannot read the map `interfaces`")
    }

    /// Writes the MAC of an interface: frames to any other are left to the kernel.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn set_interface(&mut self, ifindex: u32, mac: [u8; 6]) -> Result<()> {
        let own = InterfaceMac { mac, ..InterfaceMac::default() };
        self.interfaces.insert(ifindex, own, 0).context("cannot write the map `interfaces`")
    }

    /// Removes an interface.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn remove_interface(&mut self, ifindex: u32) -> Result<()> {
        self.interfaces.remove(&ifindex).context("cannot remove an interface from the map `interfaces`")
    }

    /// What came to VIPs but to no listener: destination and packets.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn strays(&self) -> Result<Vec<(ListenerKey, u64)>> {
        self.strays.iter().collect::<Result<_, _>>().context("cannot read the map `strays`")
    }

    /// All backends in use, with their ids.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn backends(&self) -> Result<Vec<(u32, Backend)>> {
        let all = (0..self.backends.len()).map(|id| Ok((id, self.backends.get(&id, 0)?)));
        let all: Result<Vec<(u32, Backend)>> = all.collect();
        let mut backends = all.context("cannot read the map `backends`")?;
        backends.retain(|(_, backend)| backend.has(Backend::IN_USE));
        Ok(backends)
    }

    /// Writes a backend under its id; the default value frees the id.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn set_backend(&mut self, id: u32, backend: &Backend) -> Result<()> {
        self.backends.set(id, backend, 0).with_context(|| format!("cannot write backend {id}"))
    }

    /// The names of all sets, with their ids.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn set_names(&self) -> Result<Vec<(u32, String)>> {
        let mut names = Vec::new();
        for id in 0..self.backend_sets.len() {
            let SetName { name } =
                self.backend_sets.get(&id, 0).context("cannot read the map `backend_sets`")?;
            let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
            if !name.is_empty() {
                names.push((id, name));
            }
        }
        Ok(names)
    }

    /// Writes the name of a set, at most 64 bytes of it; the empty name frees the id.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn set_set_name(&mut self, id: u32, name: &str) -> Result<()> {
        let mut bytes = [0; 64];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        self.backend_sets.set(id, SetName { name: bytes }, 0).with_context(|| format!("cannot name set {id}"))
    }

    /// Replaces the Maglev table of a set as one step. Returns when no packet sees the old one any more.
    ///
    /// # Errors
    ///
    /// If there is no memory for the table.
    pub fn set_table(&mut self, set: u32, table: &MaglevTable) -> Result<()> {
        let mut inner: Array<MapData, MaglevTable> =
            Array::create(1, 0).context("cannot create a Maglev table")?;
        inner.set(0, table, 0).context("cannot fill a Maglev table")?;
        self.maglev
            .set(set, &inner, 0)
            .with_context(|| format!("cannot install the Maglev table of set {set}"))
    }

    /// Removes the Maglev table of a set, if it has one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn remove_table(&mut self, set: u32) -> Result<()> {
        sys::delete(self.maglev_fd.as_fd(), &set)
            .with_context(|| format!("cannot remove the table of set {set}"))?;
        Ok(())
    }

    /// What holds for the instance.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn settings(&self) -> Result<Settings> {
        self.settings.get(&0, 0).context("cannot read the map `settings`")
    }

    /// Writes what holds for the instance.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub fn set_settings(&mut self, settings: &Settings) -> Result<()> {
        self.settings.set(0, settings, 0).context("cannot write the map `settings`")
    }

    /// Writes the SNAT addresses; `Settings` says how many are used.
    ///
    /// # Errors
    ///
    /// If there are more than [`lb_common::MAX_SNAT_ADDRESSES`] of a family.
    pub fn set_snat_addresses(&mut self, v4: &[Addr4], v6: &[Addr6]) -> Result<()> {
        for (index, address) in (0..).zip(v4) {
            self.snat_addresses_v4.set(index, address, 0).context("cannot write an IPv4 SNAT address")?;
        }
        for (index, address) in (0..).zip(v6) {
            self.snat_addresses_v6.set(index, address, 0).context("cannot write an IPv6 SNAT address")?;
        }
        Ok(())
    }

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
