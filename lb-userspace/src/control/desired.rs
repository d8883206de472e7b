//! What the maps should hold: a pure function of the configuration, of the backends' health and of the ways to
//! them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_common::{Addr4, Addr6, Backend, Listener, ListenerKey, NextHop, PROTO_TCP, PROTO_UDP};

use super::ids::Ids;
use crate::config::{self, BackendSet, Config, OnUnhealthy, Policy, PortRange, Protocol, Snat};
use crate::dataplane::maglev::Member;

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

/// What the desired state depends on besides the configuration.
pub trait Surroundings {
    /// Health of a backend of a set, by its name in the configuration.
    fn health(&self, set: &str, backend: &str) -> Health;

    /// The way to an address.
    fn way(&self, address: IpAddr) -> Way;
}

/// What the maps should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The map `listeners`.
    pub listeners: BTreeMap<ListenerOrd, Listener>,
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
        let mut desired = Self { snat_ports: Some(config.lb.snat_ports), ..Self::default() };
        for address in &config.lb.snat_addresses {
            match *address {
                IpAddr::V4(v4) => desired.snat_addresses_v4.push(v4.into()),
                IpAddr::V6(v6) => desired.snat_addresses_v6.push(v6.into()),
            }
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
        let in_rotation = rotation(name, set, surroundings);
        let mut members = Vec::new();
        for (backend, in_rotation) in set.backends.iter().zip(in_rotation) {
            let address = SocketAddr::new(backend.address, backend.port);
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
        let keys = listener_keys(listener);
        let Some(first) = keys.first() else { return Ok(()) };
        let value = Listener {
            id: ids.listener(first)?,
            set: ids.set(&listener.backend_set)?,
            tcp_idle_timeout_s: listener.tcp_idle_timeout_s,
            udp_idle_timeout_s: listener.udp_idle_timeout_s,
            policy: policy(set.policy),
            snat: snat(set.snat),
            on_untracked_tcp: match listener.on_untracked_tcp {
                config::OnUntrackedTcp::Drop => Listener::DROP,
                _ => Listener::PICKUP,
            },
            _pad: 0,
        };
        self.names.listeners.insert(listener.name.clone(), value.id);
        for key in keys {
            self.listeners.insert((key.address.into(), key.port, key.protocol), value);
        }
        Ok(())
    }
}

/// The keys of a listener in the map, the lowest protocol number first.
pub fn listener_keys(listener: &config::Listener) -> Vec<ListenerKey> {
    let protocols: &[u8] = match listener.protocol {
        Protocol::Tcp => &[PROTO_TCP],
        Protocol::Udp => &[PROTO_UDP],
        Protocol::TcpAndUdp => &[PROTO_TCP, PROTO_UDP],
    };
    let ports = listener.ports.first..=listener.ports.last;
    let key = |port, protocol| ListenerKey { address: listener.address.into(), port, protocol, _pad: 0 };
    ports.flat_map(|port| protocols.iter().map(move |&protocol| key(port, protocol))).collect()
}

/// Who is in the rotation of a set, in the order of its backends: the healthy ones that are no backups; without
/// any, the healthy backups; without any, with `fail_open`, all that are neither drained nor offline.
pub fn rotation(name: &str, set: &BackendSet, surroundings: &impl Surroundings) -> Vec<bool> {
    let eligible = |backend: &config::Backend| {
        !backend.drain
            && !backend.offline
            && backend.weight > 0
            && surroundings.way(backend.address).next_hop.is_resolved()
    };
    let healthy = |backend: &config::Backend| {
        eligible(backend) && surroundings.health(name, &backend.name) == Health::Healthy
    };
    let choose = |pick: &dyn Fn(&config::Backend) -> bool| {
        let picked: Vec<bool> = set.backends.iter().map(pick).collect();
        picked.contains(&true).then_some(picked)
    };
    choose(&|backend| healthy(backend) && !backend.backup)
        .or_else(|| choose(&healthy))
        .or_else(|| choose(&|backend| set.fail_open && eligible(backend)))
        .unwrap_or_else(|| vec![false; set.backends.len()])
}

fn flags(set: &BackendSet, backend: &config::Backend, health: Health, in_rotation: bool) -> u16 {
    let left_by_health = health == Health::Unhealthy && !in_rotation;
    let bits = [
        (Backend::IN_USE, true),
        (Backend::IN_ROTATION, in_rotation),
        (Backend::OFFLINE, backend.offline),
        (Backend::MOVE_UDP, left_by_health && set.on_unhealthy_udp == OnUnhealthy::Move),
        (Backend::MOVE_TCP, left_by_health && set.on_unhealthy == OnUnhealthy::Move),
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

const fn snat(snat: Snat) -> u8 {
    match snat {
        Snat::Always => Listener::SNAT_ALWAYS,
        Snat::Auto => Listener::SNAT_AUTO,
        Snat::Never => Listener::SNAT_NEVER,
    }
}
