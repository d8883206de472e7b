//! The ways to the backends and back, and the sysctls that have a say in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Finding, Grade};
use crate::config::{Backend, BackendSet, Config, Mode, Snat};
use crate::network::next_hop::{Problem, Resolver, Way, Ways};

/// The kernel gives up on a neighbour after three seconds.
const NEIGHBOUR_WAIT: Duration = Duration::from_secs(5);

/// What the judgement needs.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The way to each backend.
    pub ways: Ways,
    /// Whether the host forwards packets itself: IPv4 and IPv6.
    pub forwarding: (bool, bool),
    /// Interfaces with strict reverse path filtering.
    pub strict: BTreeSet<String>,
}

impl Facts {
    /// Asks the kernel for the ways, and waits for neighbours to answer.
    ///
    /// # Errors
    ///
    /// If route netlink is not to be had.
    pub async fn gather(config: &Config) -> Result<Self> {
        let resolver =
            Resolver::new(config.lb.interfaces.clone()).context("cannot ask for routes and neighbours")?;
        let backends = config.backend_sets.values().flat_map(|set| &set.backends);
        resolver.watch(backends.map(|backend| backend.address).collect());
        resolver.first_round(NEIGHBOUR_WAIT).await;
        let ways = resolver.ways().borrow().clone();
        let forwarding = (is_on("ipv4/ip_forward"), is_on("ipv6/conf/all/forwarding"));
        // The stricter of the two settings counts (ip-sysctl.rst).
        let filter = |name: &str| read(&format!("ipv4/conf/{name}/rp_filter")).unwrap_or_default();
        let for_all = filter("all");
        let is_strict = |name: &&String| for_all.max(filter(name)) == 1;
        let strict = config.lb.interfaces.iter().filter(is_strict).cloned().collect();
        Ok(Self { ways, forwarding, strict })
    }
}

fn read(sysctl: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/{sysctl}")).ok()?.trim().parse().ok()
}

fn is_on(sysctl: &str) -> bool {
    read(sysctl).is_some_and(|value| value != 0)
}

/// Judges the ways of a configuration.
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, set) in &config.backend_sets {
        for backend in &set.backends {
            findings.push(way_to(backend, facts).of(format!("{name}/{}", backend.name)));
        }
        findings.extend(way_back(name, set, facts));
    }
    findings.push(forwarding(config, facts));
    findings.push(reverse_path_filter(facts));
    findings
}

fn way_to(backend: &Backend, facts: &Facts) -> Finding {
    let address = backend.address;
    let Some(way) = facts.ways.get(&address) else {
        return Finding::new(Grade::Warning, "route", format!("the way to {address} is not known yet"))
            .fix(format!("ip route get {address}; ip neigh show {address}"));
    };
    match &way.problem {
        Some(problem) => {
            Finding::new(Grade::Warning, "route", format!("{address}: {problem}")).fix(cure(address, problem))
        }
        None => Finding::new(Grade::Ok, "route", describe(address, way)),
    }
}

fn describe(address: IpAddr, way: &Way) -> String {
    let interface = way.interface.as_deref().unwrap_or("?");
    let gateway = way.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    let neighbour = match way.next_hop {
        Some(hop) => hop.peer.map(|byte| format!("{byte:02x}")).join(":"),
        None => "a neighbour that has not answered yet".to_owned(),
    };
    format!("{address} is reached by {interface}{gateway}, {neighbour}, MTU {}", way.mtu)
}

fn cure(address: IpAddr, problem: &Problem) -> String {
    match problem {
        Problem::NoRoute | Problem::Refused => format!("ip route get {address}; add a route"),
        Problem::OwnAddress => "a backend has to be another host: move it, or remove the address".to_owned(),
        Problem::NotUnicast => "give the backend's own address".to_owned(),
        Problem::NotEthernet { interface } => format!("reach it by another interface than {interface}"),
        Problem::NotInInterfaces { interface } => format!("add \"{interface}\" to lb.interfaces"),
        Problem::NoLinkLocal { interface } => {
            format!(
                "sysctl -w net.ipv6.conf.{interface}.disable_ipv6=0, addr_gen_mode=0; ip -6 address show {interface}"
            )
        }
        Problem::NeighbourSilent { neighbour } => {
            format!("is {neighbour} up and on this link? ip neigh show {neighbour}; ping {neighbour}")
        }
        Problem::NeighbourTableFull { .. } => "raise the sysctl named above".to_owned(),
        Problem::NeighbourRefused { neighbour, .. } => format!("ip neigh show {neighbour}"),
    }
}

/// Where the client's own address reaches the backend, its answers have to come back through this host.
fn way_back(name: &str, set: &BackendSet, facts: &Facts) -> Vec<Finding> {
    if set.snat == Snat::Always || set.mode == Mode::Dsr {
        return Vec::new();
    }
    let snat = set.snat.word();
    let mut sources = BTreeMap::<IpAddr, &str>::new();
    let mut findings = Vec::new();
    for backend in &set.backends {
        let Some(way) = facts.ways.get(&backend.address) else { continue };
        if let Some(gateway) = way.gateway {
            let text = format!(
                "with snat = \"{snat}\" its answers go to the clients; it is behind {gateway}, which sends them past \
                 this host unless it is told otherwise"
            );
            findings.push(
                Finding::new(Grade::Warning, "way_back", text).of(format!("{name}/{}", backend.name)).fix(
                    format!("make {gateway} route the backend's answers here, or set snat = \"always\""),
                ),
            );
        } else if let Some(source) = way.source {
            sources.entry(source).or_insert(&backend.name);
        }
    }
    for (source, backend) in sources {
        let text = format!(
            "with snat = \"{snat}\" the backends see the clients' addresses: their route to the clients has to lead \
             through this host ({source})"
        );
        findings.push(
            Finding::new(Grade::Note, "way_back", text)
                .of(name)
                .fix(format!("on {backend} and its like: ip route replace default via {source}")),
        );
    }
    findings
}

/// The program forwards without the kernel's help; only what is not balanced needs that.
fn forwarding(config: &Config, facts: &Facts) -> Finding {
    let is_gateway = |set: &&BackendSet| set.snat != Snat::Always && set.mode == Mode::Nat;
    let gateways = config.backend_sets.values().filter(is_gateway);
    let families: BTreeSet<bool> =
        gateways.flat_map(|set| &set.backends).map(|backend| backend.address.is_ipv4()).collect();
    let missing: Vec<&str> = [
        (true, facts.forwarding.0, "net.ipv4.ip_forward"),
        (false, facts.forwarding.1, "net.ipv6.conf.all.forwarding"),
    ]
    .into_iter()
    .filter(|(family, is_on, _)| families.contains(family) && !is_on)
    .map(|(_, _, sysctl)| sysctl)
    .collect();
    if missing.is_empty() {
        let text = "balanced traffic needs no forwarding sysctl";
        return Finding::new(Grade::Ok, "forwarding", text);
    }
    let text = format!(
        "{} is off: balanced traffic does not need it, but backends whose gateway is this host have no other way out",
        missing.join(" and ")
    );
    let settings: Vec<String> = missing.iter().map(|sysctl| format!("sysctl -w {sysctl}=1")).collect();
    Finding::new(Grade::Note, "forwarding", text).fix(settings.join("; "))
}

fn reverse_path_filter(facts: &Facts) -> Finding {
    if facts.strict.is_empty() {
        return Finding::new(Grade::Ok, "rp_filter", "no interface filters strictly by the reverse path");
    }
    let interfaces: Vec<&str> = facts.strict.iter().map(String::as_str).collect();
    let text = format!(
        "strict on {}: balanced traffic is not affected, but the kernel answers no ping of a client whose way back \
         is another interface",
        interfaces.join(", ")
    );
    let settings: Vec<String> = interfaces
        .iter()
        .map(|interface| format!("sysctl -w net.ipv4.conf.{interface}.rp_filter=2"))
        .collect();
    Finding::new(Grade::Note, "rp_filter", text).fix(settings.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::NextHop;

    fn config(snat: &str) -> Config {
        let text = format!(
            "[lb]\ninterfaces = [\"eth0\"]\n[backend_set.web]\nsnat = \"{snat}\"\n[[backend_set.web.backend]]\n\
             name = \"a\"\naddress = \"10.0.1.10\"\nport = 80\n[backend_set.web.health_check]\nprotocol = \"tcp\"\n"
        );
        crate::config::parse(&text, "test.toml").unwrap_or_else(|report| panic!("{report}")).config
    }

    fn facts(way: Way) -> Facts {
        let ways = [("10.0.1.10".parse().unwrap(), way)].into();
        Facts { ways, forwarding: (true, true), strict: BTreeSet::new() }
    }

    fn good() -> Way {
        Way {
            next_hop: Some(NextHop { ifindex: 2, peer: [2, 0, 0, 0, 0, 0x1a], local: [2, 0, 0, 0, 0, 1] }),
            onlink_prefix_len: 24,
            mtu: 1500,
            interface: Some("eth0".into()),
            source: "10.0.1.2".parse().ok(),
            ..Way::default()
        }
    }

    fn complaints(snat: &str, facts: &Facts) -> Vec<(Grade, &'static str)> {
        let findings = judge(&config(snat), facts);
        for finding in &findings {
            assert!(finding.grade == Grade::Ok || finding.fix.is_some(), "{finding:?}");
        }
        findings.iter().filter(|f| f.grade > Grade::Ok).map(|f| (f.grade, f.check)).collect()
    }

    #[test]
    fn a_backend_on_the_link_is_fine_and_described() {
        let facts = facts(good());
        assert_eq!(complaints("always", &facts), []);
        let findings = judge(&config("always"), &facts);
        assert!(findings[0].text.contains("eth0, 02:00:00:00:00:1a, MTU 1500"), "{findings:?}");
        assert_eq!(findings[0].subject.as_deref(), Some("web/a"));
    }

    #[test]
    fn a_problem_of_the_way_is_a_warning_with_a_fix() {
        let silent = Problem::NeighbourSilent { neighbour: "10.0.1.10".parse().unwrap() };
        let not_attached = Problem::NotInInterfaces { interface: "eth1".into() };
        for problem in [silent, not_attached, Problem::NoRoute, Problem::OwnAddress] {
            let facts = facts(Way { problem: Some(problem), ..good() });
            assert_eq!(complaints("always", &facts), [(Grade::Warning, "route")]);
        }
        assert_eq!(complaints("always", &Facts { forwarding: (true, true), ..Facts::default() }).len(), 1);
    }

    #[test]
    fn without_source_translation_the_way_back_matters() {
        assert_eq!(complaints("auto", &facts(good())), [(Grade::Note, "way_back")]);
        let behind = Way { gateway: "10.0.1.1".parse().ok(), ..good() };
        assert_eq!(complaints("never", &facts(behind)), [(Grade::Warning, "way_back")]);
        let no_gateway = Facts { forwarding: (false, true), ..facts(good()) };
        assert_eq!(complaints("auto", &no_gateway), [(Grade::Note, "way_back"), (Grade::Note, "forwarding")]);
        assert_eq!(complaints("always", &no_gateway), []);
        let strict = Facts { strict: ["eth0".to_owned()].into(), ..facts(good()) };
        assert_eq!(complaints("always", &strict), [(Grade::Note, "rp_filter")]);
    }
}
