//! What the maps should hold: a pure function of the configuration, of the backends' health and of the ways to
//! them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use ipnet::IpNet;
use lb_common::listener::Vip;
use lb_common::{Addr4, Addr6, Backend, Listener, NextHop, PROTO_TCP, PROTO_UDP};

use super::ids::Ids;
use super::rotation::{Holders, Rotation, rotation};
use super::sources::SourceLists;
use crate::config::{
    self, BackendSet, Config, Mode, NoBackendAction, OnUnhealthy, OnUntrackedTcp, Policy, PortRange,
    Protocol, Snat,
};
use crate::dataplane::maglev::Member;
use crate::dataplane::maps::Range;

/// What the checks say of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not checked yet.
    Unknown,
    /// In.
    Healthy,
    /// Out.
    Unhealthy,
}

/// The way to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Unresolved while its `ifindex` is 0.
    pub next_hop: NextHop,
    /// Bits; 0: through a gateway.
    pub onlink_prefix_len: u8,
    /// Bytes; 0: not known.
    pub mtu: u16,
}

impl Way {
    /// The way that stands in a backend's record.
    pub const fn of(backend: &Backend) -> Self {
        Self { next_hop: backend.next_hop, onlink_prefix_len: backend.onlink_prefix_len, mtu: backend.mtu }
    }
}

/// What the desired state depends on besides the configuration.
pub trait Surroundings {
    /// Health of a backend of a set, by its name in the configuration.
    fn health(&self, set: &str, backend: &str) -> Health;

    /// The way to an address.
    fn way(&self, address: IpAddr) -> Way;

    /// Who holds the active role of a set; nobody, unless an implementation knows better.
    fn holder(&self, _set: &str) -> Option<SocketAddr> {
        None
    }
}

/// What the maps should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The map `listeners`.
    pub listeners: BTreeMap<ListenerOrd, Listener>,
    /// The map `listener_ranges`.
    pub ranges: BTreeMap<Range, Listener>,
    /// The map `source_rules`, before it is computed: lists by listener id.
    pub sources: BTreeMap<u32, SourceLists>,
    /// The map `vips`: flags by address.
    pub vips: BTreeMap<IpAddr, u32>,
    /// The map `backends`.
    pub backends: BTreeMap<u32, Backend>,
    /// The maps `backend_sets` and `maglev`.
    pub sets: BTreeMap<u32, DesiredSet>,
    /// SNAT ports.
    pub snat_ports: Option<PortRange>,
    /// The map `snat_addresses_v4`.
    pub snat_addresses_v4: Vec<Addr4>,
    /// The map `snat_addresses_v6`.
    pub snat_addresses_v6: Vec<Addr6>,
    /// Whether VIPs answer echo requests.
    pub icmp_echo: bool,
    /// Who holds the active role of each set.
    pub holders: Holders,
    /// Ids by the names of the configuration, for status.
    pub names: Names,
}

/// Ids by the names of the configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    /// Listener name to id.
    pub listeners: BTreeMap<String, u32>,
    /// Set name and backend name to id.
    pub backends: BTreeMap<(String, String), u32>,
}

/// A listener key that can be sorted.
pub type ListenerOrd = (IpAddr, u16, u8);

/// A backend set as the maps hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredSet {
    /// Its name.
    pub name: String,
    /// Who may be given new flows.
    pub rotation: Vec<Member>,
}

impl Desired {
    /// Computes what the maps should hold. New listeners, sets and backends are given ids.
    ///
    /// # Errors
    ///
    /// If there are more of something than the maps have room for.
    pub fn compute(config: &Config, ids: &mut Ids, surroundings: &impl Surroundings) -> Result<Self> {
        let mut desired = Self {
            snat_ports: Some(config.lb.snat_ports),
            icmp_echo: config.lb.icmp_echo,
            ..Self::default()
        };
        for &address in &config.lb.snat_addresses {
            match address {
                IpAddr::V4(v4) => desired.snat_addresses_v4.push(v4.into()),
                IpAddr::V6(v6) => desired.snat_addresses_v6.push(v6.into()),
            }
            desired.vips.insert(address, 0);
        }
        for (name, set) in &config.backend_sets {
            desired.add_set(name, set, ids, surroundings)?;
        }
        for listener in &config.listeners {
            desired.add_listener(listener, config, ids)?;
        }
        Ok(desired)
    }

    fn add_set(
        &mut self,
        name: &str,
        set: &BackendSet,
        ids: &mut Ids,
        surroundings: &impl Surroundings,
    ) -> Result<()> {
        let set_id = ids.set(name)?;
        let Rotation { members: in_rotation, holder } = rotation(name, set, surroundings);
        self.holders.extend(holder.map(|holder| (name.to_owned(), holder)));
        let mut members = Vec::new();
        for (backend, in_rotation) in set.backends.iter().zip(in_rotation) {
            let address = backend.socket();
            let id = ids.backend((set_id, address))?;
            let health = surroundings.health(name, &backend.name);
            let way = surroundings.way(backend.address);
            let flags = flags(set, backend, health, in_rotation);
            if in_rotation {
                members.push(Member { address, id, weight: backend.weight });
            }
            self.backends.insert(
                id,
                Backend {
                    address: backend.address.into(),
                    port: backend.port,
                    flags,
                    set: set_id,
                    next_hop: way.next_hop,
                    onlink_prefix_len: way.onlink_prefix_len,
                    _pad: 0,
                    mtu: way.mtu,
                },
            );
            self.names.backends.insert((name.to_owned(), backend.name.clone()), id);
        }
        self.sets.insert(set_id, DesiredSet { name: name.to_owned(), rotation: members });
        Ok(())
    }

    fn add_listener(&mut self, listener: &config::Listener, config: &Config, ids: &mut Ids) -> Result<()> {
        // The configuration was validated: every listener names a set.
        let Some(set) = config.backend_sets.get(&listener.backend_set) else { return Ok(()) };
        let sources = source_lists(listener);
        let value = Listener {
            id: ids.listener(listener_owner(listener))?,
            set: ids.set(&listener.backend_set)?,
            tcp_idle_timeout_s: listener.tcp_idle_timeout_s,
            udp_idle_timeout_s: listener.udp_idle_timeout_s,
            policy: policy(set.policy),
            snat: snat(set.snat),
            on_untracked_tcp: on_untracked_tcp(listener.on_untracked_tcp),
            flags: listener_flags(listener, set, &sources),
            max_new_flows_per_s: listener.max_new_flows_per_s,
        };
        self.names.listeners.insert(listener.name.clone(), value.id);
        if !sources.is_empty() {
            self.sources.insert(value.id, sources);
        }
        let ports = listener.ports;
        let flags = self.vips.entry(listener.address).or_default();
        *flags |= Vip::LISTENS | if ports.is_single() { 0 } else { Vip::HAS_RANGES };
        for &protocol in protocols(listener.protocol) {
            if ports.is_single() {
                self.listeners.insert((listener.address, ports.first, protocol), value);
                continue;
            }
            let range = |ports| Range { address: listener.address, ports, protocol };
            self.ranges.extend(ports.prefixes().into_iter().map(|ports| (range(ports), value)));
        }
        Ok(())
    }

    /// Every listener, under each of its keys.
    pub fn all_listeners(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.values().chain(self.ranges.values())
    }
}

/// IP protocol numbers, the lowest first.
const fn protocols(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Tcp => &[PROTO_TCP],
        Protocol::Udp => &[PROTO_UDP],
        Protocol::TcpAndUdp => &[PROTO_TCP, PROTO_UDP],
    }
}

/// Who owns the id of a listener: its lowest key.
fn listener_owner(listener: &config::Listener) -> ListenerOrd {
    let first = if listener.ports == PortRange::EVERY { 0 } else { listener.ports.first };
    (listener.address, first, protocols(listener.protocol)[0])
}

/// The lists of a listener, without what no source of it can match.
fn source_lists(listener: &config::Listener) -> SourceLists {
    let is_of_family = |prefix: &&IpNet| prefix.addr().is_ipv4() == listener.address.is_ipv4();
    let of_family = |list: &[IpNet]| list.iter().filter(is_of_family).copied().collect();
    SourceLists { allow: of_family(&listener.allow_sources), deny: of_family(&listener.deny_sources) }
}

fn listener_flags(listener: &config::Listener, set: &BackendSet, sources: &SourceLists) -> u8 {
    let bits = [
        (Listener::DSR, set.mode == Mode::Dsr),
        (Listener::REFUSE, set.no_backend_action == NoBackendAction::Reset),
        // A list that names only the other family allows nobody.
        (Listener::SOURCE_RULES, !sources.is_empty() || !listener.allow_sources.is_empty()),
        (Listener::DENY_UNLISTED, !listener.allow_sources.is_empty()),
    ];
    bits.into_iter().filter(|(_, set)| *set).fold(0, |flags, (bit, _)| flags | bit)
}

fn flags(set: &BackendSet, backend: &config::Backend, health: Health, in_rotation: bool) -> u16 {
    let left_by_health = health == Health::Unhealthy && !in_rotation;
    let bits = [
        (Backend::IN_USE, true),
        (Backend::IN_ROTATION, in_rotation),
        (Backend::OFFLINE, backend.offline),
        (Backend::MOVE_UDP, left_by_health && set.on_unhealthy_udp == OnUnhealthy::Move),
        (Backend::MOVE_TCP, left_by_health && set.on_unhealthy == OnUnhealthy::Move),
        (Backend::RESET_TCP, left_by_health && set.on_unhealthy == OnUnhealthy::Reset),
    ];
    bits.into_iter().filter(|(_, set)| *set).fold(0, |flags, (bit, _)| flags | bit)
}

const fn policy(policy: Policy) -> u8 {
    match policy {
        Policy::FiveTuple => Listener::FIVE_TUPLE,
        Policy::ThreeTuple => Listener::THREE_TUPLE,
        Policy::TwoTuple => Listener::TWO_TUPLE,
        Policy::SourceIp => Listener::SOURCE_IP,
    }
}

const fn on_untracked_tcp(action: OnUntrackedTcp) -> u8 {
    match action {
        OnUntrackedTcp::Pickup => Listener::PICKUP,
        OnUntrackedTcp::Drop => Listener::DROP,
        OnUntrackedTcp::Reset => Listener::RESET,
    }
}

const fn snat(snat: Snat) -> u8 {
    match snat {
        Snat::Always => Listener::SNAT_ALWAYS,
        Snat::Auto => Listener::SNAT_AUTO,
        Snat::Never => Listener::SNAT_NEVER,
    }
}

#[cfg(test)]
mod tests;
