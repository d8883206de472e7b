//! How full the ranges of SNAT ports are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::{PROTO_TCP, PROTO_UDP};

use super::report::Sources;
use crate::config::{Config, Protocol};
use crate::status::SnatStatus;

/// Share of the ports in use, in percent, from which on the status says so.
const TELLING: u64 = 75;

/// SNAT ports in use, by SNAT address, backend and protocol. Flows of several sets to the same destination share its
/// ports; of a backend that keeps the destination port, the fullest one counts.
pub(super) fn usage(sources: &Sources<'_>) -> Vec<SnatStatus> {
    let mut by_destination: BTreeMap<(IpAddr, u8, IpAddr, u16), u64> = BTreeMap::new();
    for (used, &count) in &sources.census.snat_ports {
        if let Some(backend) = sources.desired.backends.get(&used.backend) {
            let destination = IpAddr::from(backend.address);
            let key = (used.address, used.protocol, destination, used.destination_port);
            *by_destination.entry(key).or_default() += count;
        }
    }
    let mut fullest: BTreeMap<(IpAddr, u8, u32), u64> = BTreeMap::new();
    for used in sources.census.snat_ports.keys() {
        let Some(backend) = sources.desired.backends.get(&used.backend) else { continue };
        let key = (used.address, used.protocol, backend.address.into(), used.destination_port);
        let in_use = by_destination.get(&key).copied().unwrap_or_default();
        let most = fullest.entry((used.address, used.protocol, used.backend)).or_default();
        *most = in_use.max(*most);
    }
    let owners: BTreeMap<u32, &(String, String)> =
        sources.desired.names.backends.iter().map(|(name, &id)| (id, name)).collect();
    let mut ports = BTreeMap::new();
    let status = |((address, protocol, id), in_use): ((IpAddr, u8, u32), u64)| {
        let (backend_set, backend) = owners.get(&id)?;
        let is_reserved = |port| sources.host_ports.contains(port);
        let ports = *ports
            .entry((address, protocol))
            .or_insert_with(|| usable_ports(sources.config, address, protocol, is_reserved));
        Some(SnatStatus {
            address,
            backend_set: backend_set.clone(),
            backend: backend.clone(),
            protocol: protocol_word(protocol).to_owned(),
            in_use,
            ports,
        })
    };
    fullest.into_iter().filter_map(status).collect()
}

/// The ports of the range that are neither a listener's of the same address nor the host's.
fn usable_ports(config: &Config, address: IpAddr, protocol: u8, is_reserved: impl Fn(u16) -> bool) -> u64 {
    let is_at = |listened: Protocol| match listened {
        Protocol::Tcp => protocol == PROTO_TCP,
        Protocol::Udp => protocol == PROTO_UDP,
        Protocol::TcpAndUdp => true,
    };
    let mut taken = vec![false; usize::from(u16::MAX) + 1];
    let at_address = config.listeners.iter().filter(|listener| listener.address == address);
    for listener in at_address.filter(|listener| is_at(listener.protocol)) {
        taken[usize::from(listener.ports.first)..=usize::from(listener.ports.last)].fill(true);
    }
    let range = config.lb.snat_ports.first..=config.lb.snat_ports.last;
    range.filter(|&port| !taken[usize::from(port)] && !is_reserved(port)).count() as u64
}

/// What the operator should know of: the fullest first, a few of them.
pub(super) fn warning(usage: &[SnatStatus]) -> Option<String> {
    let mut telling: Vec<&SnatStatus> =
        usage.iter().filter(|snat| snat.in_use * 100 >= snat.ports * TELLING && snat.in_use > 0).collect();
    telling.sort_by_key(|snat| std::cmp::Reverse(percent(snat)));
    let (fullest, others) = telling.split_first()?;
    let SnatStatus { address, backend_set, backend, protocol, in_use, ports } = fullest;
    let many = if others.is_empty() { String::new() } else { format!(", and {} more", others.len()) };
    let what = if in_use >= ports { "new flows fail" } else { "soon new flows fail" };
    Some(format!(
        "SNAT ports of {address} towards {backend_set}/{backend} ({protocol}): {in_use} of {ports} in use \
         ({} %){many}; {what}: add addresses to lb.snat_addresses, or widen lb.snat_ports",
        percent(fullest)
    ))
}

/// Share of the ports in use; all of none is everything.
fn percent(snat: &SnatStatus) -> u64 {
    (snat.in_use * 100).checked_div(snat.ports).unwrap_or(100).min(100)
}

const fn protocol_word(protocol: u8) -> &'static str {
    if protocol == PROTO_TCP { "tcp" } else { "udp" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snat(backend: &str, in_use: u64) -> SnatStatus {
        SnatStatus {
            address: [10, 0, 1, 9].into(),
            backend_set: "web".to_owned(),
            backend: backend.to_owned(),
            protocol: "tcp".to_owned(),
            in_use,
            ports: 1000,
        }
    }

    #[test]
    fn three_quarters_and_all_are_told() {
        assert_eq!(warning(&[snat("a", 749), snat("b", 0)]), None);
        let most = warning(&[snat("a", 750), snat("b", 10)]).unwrap();
        assert!(most.contains("10.0.1.9 towards web/a (tcp): 750 of 1000 in use (75 %); soon"), "{most}");
        let all = warning(&[snat("a", 800), snat("b", 1000)]).unwrap();
        assert!(all.contains("web/b (tcp): 1000 of 1000 in use (100 %), and 1 more; new flows"), "{all}");
    }

    #[test]
    fn ports_of_listeners_and_of_the_host_do_not_count() {
        let source = "[lb]\ninterfaces = [\"eth0\"]\nsnat_ports = \"8000-8099\"\n\
             [[listener]]\nname = \"web\"\naddress = \"10.0.1.100\"\nprotocol = \"tcp\"\nports = \"8090-8200\"\n\
             backend_set = \"web\"\n\
             [backend_set.web]\n[[backend_set.web.backend]]\naddress = \"10.0.1.10\"\nport = 0\n\
             [backend_set.web.health_check]\nprotocol = \"tcp\"\nport = 80\n";
        let config =
            crate::config::parse(source, "test.toml").unwrap_or_else(|report| panic!("{report}")).config;
        let usable = |address: [u8; 4], protocol| {
            usable_ports(&config, address.into(), protocol, |port| port == 8000 || port == 8095)
        };
        assert_eq!(usable([10, 0, 1, 100], PROTO_TCP), 89);
        assert_eq!(usable([10, 0, 1, 100], PROTO_UDP), 98);
        assert_eq!(usable([10, 0, 1, 9], PROTO_TCP), 98);
    }
}
