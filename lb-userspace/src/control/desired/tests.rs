//! Configurations and what the maps should hold for them.

use super::*;
use crate::control::fixture::{backend, config, host};
use Health::{Healthy, Unhealthy};

#[test]
fn udp_flows_of_an_unhealthy_backend_move_and_tcp_flows_stay() {
    let config = config(&[backend("a", 10, ""), backend("b", 11, "")].concat());
    let mut ids = Ids::default();
    let desired = Desired::compute(&config, &mut ids, &host(&[("a", Unhealthy), ("b", Healthy)])).unwrap();
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
