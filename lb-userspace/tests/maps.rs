//! From a configuration into the kernel's maps, and from one to the next. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_common::listener::Vip;
use lb_common::{NextHop, Settings, SourceKey};
use lb_userspace::config::{self, Config};
use lb_userspace::control::book::Book;
use lb_userspace::control::{Applier, Desired, Health, Surroundings, Way};
use lb_userspace::dataplane::maps::Source;
use lb_userspace::dataplane::{Dataplane, LoadOptions};
use nix::unistd::geteuid;

/// Prefixes in each list.
const MANY: u32 = 10_000;

/// A host that reaches everything, and backends that are all healthy.
struct Host;

impl Surroundings for Host {
    fn health(&self, _set: &str, _backend: &str) -> Health {
        Health::Healthy
    }

    fn way(&self, _address: IpAddr) -> Way {
        Way { next_hop: NextHop { ifindex: 1, ..NextHop::default() }, ..Way::default() }
    }
}

/// A data plane and the controller's part that writes its maps.
struct Bench {
    dataplane: Dataplane,
    applier: Applier,
    names: BTreeMap<String, u32>,
}

impl Bench {
    fn new() -> Self {
        assert!(
            geteuid().is_root(),
            "this test loads the XDP program, which only root may do; found user id {}: run it as root, e.g. \
             `sudo -E cargo test -p lb-userspace`",
            geteuid()
        );
        let options = LoadOptions { max_connections: 1024, ..LoadOptions::default() };
        let dataplane = Dataplane::load(&options).expect("the kernel takes the program");
        Self { dataplane, applier: Applier::default(), names: BTreeMap::new() }
    }

    fn apply(&mut self, config: &Config) {
        let desired = Desired::compute(config, &mut self.applier.ids, &Host).expect("it fits");
        self.applier.apply(&mut self.dataplane.maps, &desired).expect("the maps can be written");
        self.names = desired.names.listeners;
    }

    fn restart(&mut self) {
        self.applier = Applier::read(&self.dataplane.maps).expect("the maps can be read");
    }

    fn rules(&self) -> BTreeMap<Source, u32> {
        self.dataplane.maps.source_rules().expect("the map can be read").into_iter().collect()
    }

    /// First ports and lengths of the ranges.
    fn ranges(&self) -> Vec<(u16, u8)> {
        let ranges = self.dataplane.maps.ranges().expect("the map can be read");
        let ranges: BTreeSet<(u16, u8)> =
            ranges.iter().map(|(range, _)| (range.ports.port, range.ports.bits)).collect();
        ranges.into_iter().collect()
    }

    fn vips(&self) -> BTreeMap<IpAddr, u32> {
        let vips = self.dataplane.maps.vips().expect("the map can be read");
        vips.into_iter().map(|(address, flags)| (address.into(), flags)).collect()
    }

    fn flags(&self) -> u32 {
        self.dataplane.maps.settings().expect("the map can be read").flags
    }
}

fn config(lb: &str, listener: &str) -> Config {
    let source = format!(
        "[lb]\ninterfaces = [\"eth0\"]\nsnat_addresses = [\"10.0.1.9\"]\n{lb}\n\
         [[listener]]\nname = \"web\"\naddress = \"10.0.1.100\"\nprotocol = \"tcp\"\nbackend_set = \"web\"\n\
         {listener}\n\
         [backend_set.web]\n[[backend_set.web.backend]]\naddress = \"10.0.1.10\"\nport = 0\n\
         [backend_set.web.health_check]\nprotocol = \"tcp\"\nport = 80\n"
    );
    config::parse(&source, "test.toml").unwrap_or_else(|report| panic!("{report}")).config
}

/// `[lb]` of a listener with many sources: every second /28 of a network is allowed, and the first half of each of those
/// denied.
fn sources(skip: u32) -> (String, BTreeMap<IpNet, u32>) {
    let network =
        |index: u32, length| IpNet::new_assert(Ipv4Addr::from((10 << 24) + (index << 5)).into(), length);
    let allowed: Vec<IpNet> = (skip..MANY).map(|index| network(index, 28)).collect();
    let denied: Vec<IpNet> = (skip..MANY).map(|index| network(index, 29)).collect();
    let list = |prefixes: &[IpNet]| {
        let quoted: Vec<String> = prefixes.iter().map(|prefix| format!("\"{prefix}\"")).collect();
        format!("[{}]", quoted.join(","))
    };
    let text = format!("port = 80\nallow_sources = {}\ndeny_sources = {}", list(&allowed), list(&denied));
    let rules = allowed.into_iter().map(|prefix| (prefix, SourceKey::ALLOW));
    (text, rules.chain(denied.into_iter().map(|prefix| (prefix, SourceKey::DENY))).collect())
}

#[test]
fn ten_thousand_prefixes_a_list_are_written_at_once_and_changed_by_what_differs() {
    let mut bench = Bench::new();
    let of_listener = |bench: &Bench, rules: BTreeMap<IpNet, u32>| -> BTreeMap<Source, u32> {
        let listener = bench.names["web"];
        rules.into_iter().map(|(prefix, verdict)| (Source { listener, prefix }, verdict)).collect()
    };
    let (text, rules) = sources(0);
    let config_of_many = config("", &text);
    let begin = Instant::now();
    bench.apply(&config_of_many);
    assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
    assert!(bench.rules() == of_listener(&bench, rules));

    let (text, rules) = sources(1);
    bench.restart();
    bench.apply(&config("", &text));
    assert!(bench.rules() == of_listener(&bench, rules), "two prefixes less");

    bench.apply(&config("", "port = 80"));
    assert!(bench.rules().is_empty());
}

#[test]
fn a_listener_changes_between_one_port_some_and_all() {
    let mut bench = Bench::new();
    let (vip, snat) = (IpAddr::from([10, 0, 1, 100]), IpAddr::from([10, 0, 1, 9]));
    bench.apply(&config("", "ports = \"8000-8100\""));
    assert_eq!(bench.ranges(), [(8000, 10), (8064, 11), (8096, 14), (8100, 16)]);
    assert_eq!(bench.vips(), BTreeMap::from([(snat, 0), (vip, Vip::LISTENS | Vip::HAS_RANGES)]));
    let id = bench.names["web"];

    bench.restart();
    bench.apply(&config("", "ports = \"8000-8003\""));
    assert_eq!(bench.names["web"], id, "the listener begins at the same port, so it is the same");
    assert_eq!(bench.ranges(), [(8000, 14)]);

    bench.apply(&config("", "port = 0"));
    assert_eq!(bench.ranges(), [(0, 0)]);
    assert!(bench.dataplane.maps.listeners().unwrap().is_empty());
    let id = bench.names["web"];
    bench.restart();
    bench.apply(&config("", "port = 0"));
    assert_eq!(bench.names["web"], id);

    bench.apply(&config("", "port = 80"));
    assert_eq!(bench.ranges(), []);
    assert_eq!(bench.vips()[&vip], Vip::LISTENS);
    assert_eq!(bench.dataplane.maps.listeners().unwrap().len(), 1);

    bench.applier.apply(&mut bench.dataplane.maps, &Desired::default()).unwrap();
    assert_eq!(bench.vips(), BTreeMap::new());
}

#[test]
fn echo_is_a_setting() {
    let mut bench = Bench::new();
    bench.apply(&config("", "port = 80"));
    assert_eq!(bench.flags(), Settings::ICMP_ECHO, "the default");
    bench.apply(&config("icmp_echo = false", "port = 80"));
    assert_eq!(bench.flags(), 0);
}

/// One backend in two sets, healthy by the check of one of them only.
struct HealthyInOne;

impl Surroundings for HealthyInOne {
    fn health(&self, set: &str, _backend: &str) -> Health {
        if set == "good" { Health::Healthy } else { Health::Unhealthy }
    }

    fn way(&self, address: IpAddr) -> Way {
        Host.way(address)
    }
}

#[test]
fn the_next_controller_inherits_the_health_of_each_set_by_itself() {
    let mut source = "[lb]\ninterfaces = [\"eth0\"]\n".to_owned();
    for (set, port) in [("good", 80), ("bad", 81)] {
        source += &format!(
            "[[listener]]\nname = \"{set}\"\naddress = \"10.0.1.100\"\nprotocol = \"tcp\"\nport = {port}\n\
             backend_set = \"{set}\"\n[[backend_set.{set}.backend]]\nname = \"a\"\naddress = \"10.0.1.10\"\n\
             port = 8080\n[backend_set.{set}.health_check]\nprotocol = \"tcp\"\nport = {port}\n"
        );
    }
    let config = config::parse(&source, "test.toml").unwrap_or_else(|report| panic!("{report}")).config;
    let mut bench = Bench::new();
    let desired = Desired::compute(&config, &mut bench.applier.ids, &HealthyInOne).expect("it fits");
    bench.applier.apply(&mut bench.dataplane.maps, &desired).expect("the maps can be written");

    bench.restart();
    let book = Book::inherit(&config, &bench.applier);
    assert_eq!(book.health("good", "a"), Health::Healthy);
    assert_eq!(book.health("bad", "a"), Health::Unknown);
}
