//! That every flow whose source is translated can find a source port.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::config::document::at;
use crate::config::facts::{Facts, ListenerFacts, SetFacts};
use crate::config::findings::Findings;
use crate::config::problem::{Problem, all_of};
use crate::config::schema::PortRange;

/// Most listeners that a message names.
const NAMED: usize = 5;

/// A source port that belongs to a listener would turn the backend's answer into a request to that listener;
/// hence `snat_ports` counts without the ports of the listeners on the same address.
pub(super) fn judge(findings: &Findings<'_>, facts: &Facts<'_>) {
    let Some(range) = facts.instance.snat_ports else { return };
    let mut listeners_at: HashMap<IpAddr, Vec<&ListenerFacts<'_>>> = HashMap::new();
    for listener in &facts.listeners {
        if let Some(address) = listener.address {
            listeners_at.entry(address).or_default().push(listener);
        }
    }
    for (source, user) in sources(facts) {
        let owners = listeners_at.get(&source).map(Vec::as_slice).unwrap_or_default();
        let ports: Vec<PortRange> = owners.iter().filter_map(|listener| listener.ports).collect();
        if covers(ports, range) {
            refuse(findings, range, source, user, owners);
        }
    }
}

/// The addresses that become sources, each with the first listener whose flows get it.
fn sources<'f, 'd>(facts: &'f Facts<'d>) -> BTreeMap<IpAddr, &'f ListenerFacts<'d>> {
    let Some(configured) = &facts.instance.snat_addresses else { return BTreeMap::new() };
    let translated = |listener: &&ListenerFacts<'_>| {
        listener.backend_set.and_then(|set| facts.sets.get(set)).is_some_and(SetFacts::translates_sources)
    };
    let mut sources = BTreeMap::new();
    for listener in facts.listeners.iter().filter(translated) {
        let Some(vip) = listener.address else { continue };
        if configured.is_empty() {
            sources.entry(vip).or_insert(listener);
        }
        for address in configured.iter().filter(|address| address.is_ipv4() == vip.is_ipv4()) {
            sources.entry(*address).or_insert(listener);
        }
    }
    sources
}

/// Whether the given ports leave none of `range`.
fn covers(mut ports: Vec<PortRange>, range: PortRange) -> bool {
    ports.sort_unstable_by_key(|ports| ports.first);
    let mut next_free = u32::from(range.first);
    for ports in ports {
        if u32::from(ports.first) > next_free {
            break;
        }
        next_free = next_free.max(u32::from(ports.last) + 1);
    }
    next_free > u32::from(range.last)
}

fn refuse(
    findings: &Findings<'_>,
    range: PortRange,
    source: IpAddr,
    user: &ListenerFacts<'_>,
    owners: &[&ListenerFacts<'_>],
) {
    let PortRange { first, last } = range;
    let allowed = "at least one port of `lb.snat_ports` that no listener has on a SNAT address";
    if let Some(every) = owners.iter().find(|listener| listener.ports == Some(PortRange::EVERY)) {
        let problem = Problem::new(format!(
            "takes every port of {source}, which leaves no source port for the flows of {}",
            user.title()
        ))
        .allowed("this only if `lb.snat_addresses` is set to other addresses of this host");
        findings.refuse_at(&every.ports_path(findings), problem);
        return;
    }
    let mut names: Vec<String> = owners.iter().take(NAMED).map(|listener| listener.title()).collect();
    if owners.len() > NAMED {
        names.push(format!("{} more", owners.len() - NAMED));
    }
    let problem = Problem::new(format!(
        "all of {first}-{last} belong to listeners on {source} ({}), which leaves no source port for the \
         flows of {}",
        all_of(names),
        user.title()
    ))
    .allowed(allowed);
    findings.refuse_at(&at!["lb", "snat_ports"], problem);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn listener_ports_are_taken_from_the_range() {
        assert!(covers(vec![PortRange::EVERY], range(1024, 65535)));
        assert!(covers(vec![range(11, 20), range(5, 10)], range(6, 15)));
        assert!(!covers(vec![range(5, 10), range(12, 20)], range(6, 15)));
        assert!(!covers(vec![range(80, 80)], range(1024, 65535)));
        assert!(covers(
            vec![range(1, 30_000), range(60_000, 65_535), range(100, 59_999)],
            range(1024, 65535)
        ));
        assert!(!covers(vec![], range(65535, 65535)));
    }
}
