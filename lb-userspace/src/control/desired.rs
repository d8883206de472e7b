//! What the maps should hold: a pure function of the configuration, of the backends' health and of the ways to
//! them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use ipnet::IpNet;
use lb_common::listener::Vip;
use lb_common::{Addr4, Addr6, Backend, Listener, NextHop, PROTO_TCP, PROTO_UDP};

use super::ids::Ids;
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
mod tests {
    use super::*;
    use Health::{Healthy, Unhealthy, Unknown};

    /// A host on which every way is resolved, and checks that say what a test wants.
    #[derive(Default)]
    struct Host {
        health: BTreeMap<&'static str, Health>,
        unresolved: Vec<IpAddr>,
    }

    impl Surroundings for Host {
        fn health(&self, _set: &str, backend: &str) -> Health {
            self.health.get(backend).copied().unwrap_or(Unknown)
        }

        fn way(&self, address: IpAddr) -> Way {
            let ifindex = u32::from(!self.unresolved.contains(&address));
            Way { next_hop: NextHop { ifindex, ..NextHop::default() }, onlink_prefix_len: 24, mtu: 1500 }
        }
    }

    fn host(health: &[(&'static str, Health)]) -> Host {
        Host { health: health.iter().copied().collect(), ..Host::default() }
    }

    fn config(set: &str) -> Config {
        let source = format!(
            "[lb]\ninterfaces = [\"eth0\"]\n\
             [[listener]]\nname = \"web\"\naddress = \"10.0.1.100\"\nprotocol = \"tcp_and_udp\"\nport = 80\n\
             backend_set = \"web\"\n{set}\n\
             [backend_set.web.health_check]\nprotocol = \"tcp\"\n"
        );
        config::parse(&source, "test.toml").unwrap_or_else(|report| panic!("{report}")).config
    }

    fn backend(name: &str, last: u8, more: &str) -> String {
        format!(
            "[[backend_set.web.backend]]\nname = \"{name}\"\naddress = \"10.0.1.{last}\"\nport = 8080\n{more}\n"
        )
    }

    fn in_rotation(config: &Config, host: &Host) -> Vec<bool> {
        rotation("web", &config.backend_sets["web"], host)
    }

    #[test]
    fn only_the_healthy_are_in_rotation() {
        let config = config(&[backend("a", 10, ""), backend("b", 11, ""), backend("c", 12, "")].concat());
        let host = host(&[("a", Healthy), ("b", Unhealthy), ("c", Unknown)]);
        assert_eq!(in_rotation(&config, &host), [true, false, false]);
    }

    #[test]
    fn backups_wait_until_no_other_is_healthy() {
        let config = config(&[backend("a", 10, ""), backend("b", 11, "backup = true")].concat());
        assert_eq!(in_rotation(&config, &host(&[("a", Healthy), ("b", Healthy)])), [true, false]);
        assert_eq!(in_rotation(&config, &host(&[("a", Unhealthy), ("b", Healthy)])), [false, true]);
    }

    #[test]
    fn drained_offline_weightless_and_unreachable_ones_get_nothing() {
        let set = [
            backend("a", 10, "drain = true"),
            backend("b", 11, "offline = true"),
            backend("c", 12, "weight = 0"),
            backend("d", 13, ""),
            backend("e", 14, ""),
        ];
        let config = config(&set.concat());
        let all = [("a", Healthy), ("b", Healthy), ("c", Healthy), ("d", Healthy), ("e", Healthy)];
        let host = Host { unresolved: vec!["10.0.1.13".parse().unwrap()], ..host(&all) };
        assert_eq!(in_rotation(&config, &host), [false, false, false, false, true]);
    }

    #[test]
    fn fail_open_uses_all_that_are_neither_drained_nor_offline() {
        let backends =
            [backend("a", 10, ""), backend("b", 11, "drain = true"), backend("c", 12, "backup = true")];
        let closed = config(&backends.concat());
        let open = config(&format!("[backend_set.web]\nfail_open = true\n{}", backends.concat()));
        let host = host(&[("a", Unhealthy), ("b", Healthy), ("c", Unhealthy)]);
        assert_eq!(in_rotation(&closed, &host), [false, false, false]);
        assert_eq!(in_rotation(&open, &host), [true, false, true]);
    }

    #[test]
    fn udp_flows_of_an_unhealthy_backend_move_and_tcp_flows_stay() {
        let config = config(&[backend("a", 10, ""), backend("b", 11, "")].concat());
        let mut ids = Ids::default();
        let desired =
            Desired::compute(&config, &mut ids, &host(&[("a", Unhealthy), ("b", Healthy)])).unwrap();
        let flags: Vec<u16> = desired.backends.values().map(|backend| backend.flags).collect();
        assert_eq!(flags, [Backend::IN_USE | Backend::MOVE_UDP, Backend::IN_USE | Backend::IN_ROTATION]);
    }

    #[test]
    fn a_listener_of_both_protocols_has_two_keys_and_one_id() {
        let config = config(&backend("a", 10, ""));
        let desired = Desired::compute(&config, &mut Ids::default(), &host(&[])).unwrap();
        let address = "10.0.1.100".parse().unwrap();
        let [tcp, udp] = [PROTO_TCP, PROTO_UDP].map(|protocol| desired.listeners[&(address, 80, protocol)]);
        assert_eq!(tcp, udp);
        assert_eq!(desired.listeners.len(), 2);
    }

    #[test]
    fn ids_do_not_depend_on_what_came_before_once_they_are_given() {
        let one = config(&[backend("a", 10, ""), backend("b", 11, "")].concat());
        let other = config(&[backend("b", 11, ""), backend("c", 12, "")].concat());
        let mut ids = Ids::default();
        let first = Desired::compute(&one, &mut ids, &host(&[])).unwrap();
        let second = Desired::compute(&other, &mut ids, &host(&[])).unwrap();
        let name = |backend: &str| ("web".to_owned(), backend.to_owned());
        assert_eq!(first.names.backends[&name("b")], second.names.backends[&name("b")]);
        assert_ne!(first.names.backends[&name("a")], second.names.backends[&name("c")]);
    }

    /// The configuration of a set with lines in its listener and in its table, and what becomes of it.
    fn desired(listener: &str, set: &str) -> Desired {
        let mut config = config(&format!("[backend_set.web]\n{set}\n{}", backend("a", 10, "")));
        let source = format!(
            "[lb]\ninterfaces = [\"eth0\"]\nsnat_addresses = [\"10.0.1.9\"]\n\
             [[listener]]\nname = \"x\"\naddress = \"10.0.1.100\"\nbackend_set = \"web\"\n{listener}\n\
             [backend_set.web]\n[[backend_set.web.backend]]\naddress = \"10.0.1.10\"\nport = 0\n\
             [backend_set.web.health_check]\nprotocol = \"tcp\"\nport = 80\n"
        );
        let read = config::parse(&source, "test.toml").unwrap_or_else(|report| panic!("{report}")).config;
        (config.listeners, config.lb) = (read.listeners, read.lb);
        Desired::compute(&config, &mut Ids::default(), &host(&[("a", Unhealthy)])).unwrap()
    }

    fn only_listener(desired: &Desired) -> Listener {
        let mut all = desired.all_listeners();
        let first = *all.next().unwrap();
        assert!(all.all(|listener| *listener == first));
        first
    }

    #[test]
    fn words_of_the_configuration_become_flags() {
        let tcp = "protocol = \"tcp\"\nport = 80\n";
        let flags = |listener: &str, set: &str| only_listener(&desired(&[tcp, listener].concat(), set)).flags;
        assert_eq!(flags("", ""), 0);
        assert_eq!(flags("", "no_backend_action = \"reset\""), Listener::REFUSE);
        assert_eq!(flags("deny_sources = [\"10.0.0.0/8\"]", ""), Listener::SOURCE_RULES);
        let allow = Listener::SOURCE_RULES | Listener::DENY_UNLISTED;
        assert_eq!(flags("allow_sources = [\"10.0.0.0/8\"]", ""), allow);
        assert_eq!(flags("allow_sources = [\"fd00::/8\"]", ""), allow, "a rule for nobody is a rule");
        let reset = desired(&[tcp, "on_untracked_tcp = \"reset\"\nmax_new_flows_per_s = 7"].concat(), "");
        let reset = only_listener(&reset);
        assert_eq!((reset.on_untracked_tcp, reset.max_new_flows_per_s), (Listener::RESET, 7));
        let unhealthy = desired(tcp, "on_unhealthy = \"reset\"");
        let expected = Backend::IN_USE | Backend::RESET_TCP | Backend::MOVE_UDP;
        assert!(unhealthy.backends.values().all(|backend| backend.flags == expected));
        assert!(unhealthy.icmp_echo, "the default");
    }

    #[test]
    fn dsr_is_a_flag_of_the_listener() {
        let dsr = config(
            "[backend_set.web]\nmode = \"dsr\"\nsnat = \"never\"\n\
             [[backend_set.web.backend]]\naddress = \"10.0.1.10\"\nport = 80\n",
        );
        let desired = Desired::compute(&dsr, &mut Ids::default(), &host(&[])).unwrap();
        assert_eq!(only_listener(&desired).flags, Listener::DSR);
        assert_eq!(only_listener(&desired).snat, Listener::SNAT_NEVER);
    }

    #[test]
    fn many_ports_stand_in_the_ranges_and_the_vip_says_so() {
        let vip: IpAddr = "10.0.1.100".parse().unwrap();
        let prefixes = |desired: &Desired, protocol| -> Vec<(u16, u8)> {
            let ranges = desired.ranges.keys().filter(|range| range.protocol == protocol);
            ranges.map(|range| (range.ports.port, range.ports.bits)).collect()
        };
        let range = desired("protocol = \"tcp_and_udp\"\nports = \"8000-8100\"", "");
        assert!(range.listeners.is_empty());
        let expected = [(8000, 10), (8064, 11), (8096, 14), (8100, 16)];
        assert_eq!(prefixes(&range, PROTO_TCP), expected);
        assert_eq!(prefixes(&range, PROTO_UDP), expected);
        assert_eq!(range.vips[&vip], Vip::LISTENS | Vip::HAS_RANGES);
        let every = desired("protocol = \"udp\"\nport = 0", "");
        assert_eq!(prefixes(&every, PROTO_UDP), [(0, 0)]);
        let single = desired("protocol = \"udp\"\nports = \"53-53\"", "");
        assert_eq!(single.vips[&vip], Vip::LISTENS);
        assert_eq!(single.listeners.len(), 1);
    }

    #[test]
    fn snat_addresses_are_vips_that_do_not_listen() {
        let desired = desired("protocol = \"tcp\"\nport = 80", "");
        assert_eq!(desired.vips[&IpAddr::from([10, 0, 1, 9])], 0);
    }
}
