//! Between listeners: names, and who gets a packet. Between a listener and its set: that there is one.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::config::document::at;
use crate::config::facts::{Facts, ListenerFacts};
use crate::config::findings::Findings;
use crate::config::problem::{Problem, nearest};
use crate::config::schema::{PortRange, Protocol};

/// Most unknown names of sets that are compared with all known ones.
const MAX_SUGGESTIONS: usize = 64;

pub(super) fn judge(findings: &Findings<'_>, facts: &Facts<'_>) {
    refuse_too_many(findings, facts);
    refuse_too_many_ranges(findings, facts);
    refuse_too_many_sources(findings, facts);
    refuse_equal_names(findings, facts);
    refuse_overlaps(findings, facts);
    refuse_unknown_sets(findings, facts);
    if facts.listeners.is_empty() {
        let problem =
            Problem::new("no listener, so nothing is forwarded").allowed("any number of [[listener]]");
        findings.warn_at(&at!["listener"], problem);
    }
}

fn refuse_too_many(findings: &Findings<'_>, facts: &Facts<'_>) {
    let limit = lb_common::MAX_LISTENERS as usize;
    if let Some(first_beyond) = facts.listeners.get(limit) {
        let problem = Problem::new(format!("{} listeners in this file", facts.listeners.len()));
        findings.refuse_at(&first_beyond.path(), problem.allowed(format!("at most {limit} listeners")));
    }
}

/// Ranges are held as prefixes of ports, of which there is room for a number in all.
fn refuse_too_many_ranges(findings: &Findings<'_>, facts: &Facts<'_>) {
    let limit = lb_common::MAX_LISTENER_RANGES as usize;
    let prefixes = |listener: &ListenerFacts<'_>| {
        let ports = listener.ports.filter(|ports| !ports.is_single());
        let transports = if listener.protocol == Some(Protocol::TcpAndUdp) { 2 } else { 1 };
        ports.map_or(0, |ports| ports.prefixes().len() * transports)
    };
    if let Some((beyond, total)) = first_beyond(facts, limit, prefixes) {
        let problem = Problem::new(format!(
            "the ranges of all listeners are {total} blocks whose size is a power of two and that begin at a multiple \
             of it"
        ));
        findings.refuse_at(&beyond.ports_path(findings), problem.allowed(format!("at most {limit} blocks")));
    }
}

fn refuse_too_many_sources(findings: &Findings<'_>, facts: &Facts<'_>) {
    let limit = lb_common::MAX_SOURCE_RULES as usize;
    let prefixes = |listener: &ListenerFacts<'_>| {
        let lists = [&listener.allow_sources, &listener.deny_sources];
        lists.into_iter().flatten().map(Vec::len).sum()
    };
    if let Some((beyond, total)) = first_beyond(facts, limit, prefixes) {
        let problem = Problem::new(format!(
            "{total} prefixes in the `allow_sources` and `deny_sources` of all listeners"
        ));
        findings.refuse_at(&beyond.path(), problem.allowed(format!("at most {limit} prefixes")));
    }
}

/// The listener whose share of something is the first that a limit does not leave room for, and what all need.
fn first_beyond<'f, 'd>(
    facts: &'f Facts<'d>,
    limit: usize,
    need: impl Fn(&ListenerFacts<'d>) -> usize,
) -> Option<(&'f ListenerFacts<'d>, usize)> {
    let mut total = 0;
    let mut beyond = None;
    for listener in &facts.listeners {
        total += need(listener);
        if total > limit {
            beyond.get_or_insert(listener);
        }
    }
    Some((beyond?, total))
}

fn refuse_equal_names(findings: &Findings<'_>, facts: &Facts<'_>) {
    let mut seen: HashMap<&str, &ListenerFacts<'_>> = HashMap::new();
    for listener in &facts.listeners {
        let Some(name) = &listener.name else { continue };
        if let Some(earlier) = seen.get(name.as_str()) {
            let line = findings.line_of(&earlier.path().then("name"));
            let problem =
                Problem::new(format!("{line} has a listener of the same name")).allowed("a name of its own");
            findings.refuse_at(&listener.path().then("name"), problem);
        } else {
            seen.insert(name, listener);
        }
    }
}

/// A listener's claim to the packets of one transport protocol.
struct Claim<'f, 'd> {
    ports: PortRange,
    listener: &'f ListenerFacts<'d>,
}

fn refuse_overlaps(findings: &Findings<'_>, facts: &Facts<'_>) {
    let mut claims: HashMap<(IpAddr, Protocol), Vec<Claim<'_, '_>>> = HashMap::new();
    for listener in &facts.listeners {
        let (Some(address), Some(protocol), Some(ports)) =
            (listener.address, listener.protocol, listener.ports)
        else {
            continue;
        };
        let transports: &[Protocol] = match protocol {
            Protocol::Tcp => &[Protocol::Tcp],
            Protocol::Udp => &[Protocol::Udp],
            Protocol::TcpAndUdp => &[Protocol::Tcp, Protocol::Udp],
        };
        for transport in transports {
            claims.entry((address, *transport)).or_default().push(Claim { ports, listener });
        }
    }
    // Two listeners with tcp_and_udp collide in both protocols; that is one mistake.
    let mut reported = HashSet::new();
    for ((address, transport), mut claims) in claims {
        claims.sort_by_key(|claim| (claim.ports.first, claim.listener.index));
        let mut claims = claims.into_iter();
        let Some(mut widest) = claims.next() else { continue };
        for claim in claims {
            if claim.ports.first <= widest.ports.last {
                let (earlier, later) = if claim.listener.index < widest.listener.index {
                    (&claim, &widest)
                } else {
                    (&widest, &claim)
                };
                if reported.insert((earlier.listener.index, later.listener.index)) {
                    refuse_overlap(findings, address, transport, earlier, later);
                }
            }
            if claim.ports.last > widest.ports.last {
                widest = claim;
            }
        }
    }
}

fn refuse_overlap(
    findings: &Findings<'_>,
    address: IpAddr,
    transport: Protocol,
    earlier: &Claim<'_, '_>,
    later: &Claim<'_, '_>,
) {
    let shared = PortRange {
        first: earlier.ports.first.max(later.ports.first),
        last: earlier.ports.last.min(later.ports.last),
    };
    let problem = Problem::new(format!(
        "{} {} of {address} belongs to {} ({}) already",
        transport.word(),
        describe(shared),
        earlier.listener.title(),
        findings.line_of(&earlier.listener.path()),
    ))
    .allowed("each (address, protocol, port) in one listener");
    findings.refuse_at(&later.listener.ports_path(findings), problem);
}

/// `port 80`, `ports 8000-8100`, `every port`
fn describe(ports: PortRange) -> String {
    match ports {
        PortRange::EVERY => "every port".into(),
        PortRange { first, last } if first == last => format!("port {first}"),
        PortRange { first, last } => format!("ports {first}-{last}"),
    }
}

fn refuse_unknown_sets(findings: &Findings<'_>, facts: &Facts<'_>) {
    let unknown = facts.listeners.iter().filter_map(|listener| {
        let name = listener.backend_set.filter(|name| !facts.sets.contains_key(name))?;
        Some((listener, name))
    });
    for (number, (listener, name)) in unknown.enumerate() {
        let mut problem = Problem::new("no set of this name").allowed(match facts.sets.is_empty() {
            true => format!("a table [backend_set.{name}]"),
            false => "the name of a [backend_set.NAME] of this file".into(),
        });
        if number < MAX_SUGGESTIONS {
            problem = problem.suggest_any(nearest(name, facts.sets.keys().copied()));
        }
        findings.refuse_at(&listener.path().then("backend_set"), problem);
    }
}
