//! Typed access to the maps that the controller writes, and to the counters it reads.

mod counters;
mod listeners;
mod ours;
mod tables;

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use lb_common::listener::{SetName, Vip};
use lb_common::{
    Addr4, Addr6, Address, Backend, Drops, InterfaceMac, Listener, ListenerKey, RangeKey, Settings, SourceKey,
};

use self::counters::CounterMap;
use super::cached::CachedFlows;
use super::lanes::Lanes;
pub use counters::Tally;
pub use listeners::{Range, Source};

/// The maps of a loaded data plane, connections apart.
pub struct Maps {
    listeners: HashMap<MapData, ListenerKey, Listener>,
    listener_ranges: LpmTrie<MapData, RangeKey, Listener>,
    source_rules: LpmTrie<MapData, SourceKey, u32>,
    gone_listeners: HashMap<MapData, u32, ListenerKey>,
    vips: HashMap<MapData, Addr6, Vip>,
    interfaces: HashMap<MapData, u32, InterfaceMac>,
    strays: HashMap<MapData, ListenerKey, u64>,
    backends: Array<MapData, Backend>,
    backend_sets: Array<MapData, SetName>,
    /// aya replaces its tables one by one and does not remove them.
    maglev: OwnedFd,
    settings: Array<MapData, Settings>,
    snat_addresses_v4: Array<MapData, Addr4>,
    snat_addresses_v6: Array<MapData, Addr6>,
    snat_cursors: Array<MapData, u64>,
    reserved_ports: Array<MapData, u64>,
    listener_ports: Array<MapData, u64>,
    our_addresses: Array<MapData, u64>,
    listener_counters: CounterMap,
    backend_counters: CounterMap,
    lanes: Lanes,
    drops: PerCpuArray<MapData, Drops>,
    cached: CachedFlows,
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
    pub(super) fn take(ebpf: &mut Ebpf, cached: CachedFlows) -> Result<Self> {
        let Some(Map::ArrayOfMaps(maglev)) = ebpf.map("maglev") else {
            bail!("the eBPF object has no array of maps `maglev`");
        };
        let maglev = maglev.fd().as_fd().try_clone_to_owned().context("cannot keep the map `maglev`")?;
        Ok(Self {
            maglev,
            listeners: take!(ebpf, "listeners"),
            listener_ranges: take!(ebpf, "listener_ranges"),
            source_rules: take!(ebpf, "source_rules"),
            gone_listeners: take!(ebpf, "gone_listeners"),
            vips: take!(ebpf, "vips"),
            interfaces: take!(ebpf, "interfaces"),
            strays: take!(ebpf, "strays"),
            backends: take!(ebpf, "backends"),
            backend_sets: take!(ebpf, "backend_sets"),
            settings: take!(ebpf, "settings"),
            snat_addresses_v4: take!(ebpf, "snat_addresses_v4"),
            snat_addresses_v6: take!(ebpf, "snat_addresses_v6"),
            snat_cursors: take!(ebpf, "snat_cursors"),
            reserved_ports: take!(ebpf, "reserved_ports"),
            listener_ports: take!(ebpf, "listener_ports"),
            our_addresses: take!(ebpf, "our_addresses"),
            lanes: Lanes::of(ebpf)?,
            listener_counters: CounterMap::new(
                take!(ebpf, "listener_counters"),
                take!(ebpf, "listener_bases"),
                |lanes| &lanes.listeners,
            )?,
            backend_counters: CounterMap::new(
                take!(ebpf, "backend_counters"),
                take!(ebpf, "backend_bases"),
                |lanes| &lanes.backends,
            )?,
            drops: take!(ebpf, "drops"),
            cached,
        })
    }

    /// All attached interfaces in the map, by index.
    ///
    /// # Errors
    ///
    /// If the map cannot be read.
    pub fn interfaces(&self) -> Result<Vec<(u32, InterfaceMac)>> {
        self.interfaces.iter().collect::<Result<_, _>>().context("cannot read the map `interfaces`")
    }

    /// Writes what the program must know of an interface: frames to any other MAC are left to the kernel.
    ///
    /// # Errors
    ///
    /// If the map is full.
    pub fn set_interface(&mut self, ifindex: u32, own: &InterfaceMac) -> Result<()> {
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

    /// Writes a backend under its id; the default value frees the id. Holds for the next packet.
    ///
    /// # Errors
    ///
    /// If the id is out of range.
    pub fn set_backend(&mut self, id: u32, backend: &Backend) -> Result<()> {
        self.note_address(&backend.address)?;
        self.backends.set(id, backend, 0).with_context(|| format!("cannot write backend {id}"))?;
        self.cached.forget()
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
        v4.iter().try_for_each(|address| self.note_address(&address.widen()))?;
        v6.iter().try_for_each(|address| self.note_address(address))?;
        for (index, address) in (0..).zip(v4) {
            self.snat_addresses_v4.set(index, address, 0).context("cannot write an IPv4 SNAT address")?;
        }
        for (index, address) in (0..).zip(v6) {
            self.snat_addresses_v6.set(index, address, 0).context("cannot write an IPv6 SNAT address")?;
        }
        Ok(())
    }

    /// Lets each search for a SNAT port begin somewhere else than those of an earlier data plane began. Backends may hold
    /// its last flows in TIME_WAIT, and answer no SYN from the same port.
    pub(super) fn scatter_snat_cursors(&mut self) -> Result<()> {
        (0..self.snat_cursors.len())
            .try_for_each(|cursor| self.snat_cursors.set(cursor, u64::from(rand::random::<u32>()), 0))
            .context("cannot write the map `snat_cursors`")
    }

    /// Writes one word of the ports that are never used for SNAT: bit `port & 63` of word `port >> 6`.
    ///
    /// # Errors
    ///
    /// If the word is out of range.
    pub fn set_reserved_ports(&mut self, word: u32, ports: u64) -> Result<()> {
        self.reserved_ports.set(word, ports, 0).context("cannot write the map `reserved_ports`")
    }
}
