//! IPv4 and IPv6 do not mix between a listener, its backends, its checks and its SNAT addresses.

use std::net::IpAddr;

use crate::config::document::{Path, at};
use crate::config::facts::{BackendFacts, Facts, ListenerFacts, SetFacts};
use crate::config::findings::Findings;
use crate::config::problem::Problem;

pub(super) fn judge(findings: &Findings<'_>, facts: &Facts<'_>) {
    let listeners = facts.listeners_by_set();
    for (&name, set) in &facts.sets {
        let listeners = listeners.get(name).map(Vec::as_slice).unwrap_or_default();
        refuse_mixed_set(findings, name, set, listeners);
        refuse_foreign_check_source(findings, name, set);
        if set.translates_sources() {
            refuse_foreign_snat_addresses(findings, facts, listeners);
        }
    }
}

/// Something with an address, and how a message names it.
struct Member {
    address: IpAddr,
    title: String,
    path: Path<'static>,
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn differ(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() != b.is_ipv4()
}

/// The first listener sets the family, unless all backends agree on the other one.
fn refuse_mixed_set(findings: &Findings<'_>, name: &str, set: &SetFacts, listeners: &[&ListenerFacts<'_>]) {
    let backends = || set.backends.iter().filter_map(|backend| backend_member(name, backend));
    let Some(first_backend) = backends().next() else { return };
    let backends_agree = backends().all(|backend| !differ(backend.address, first_backend.address));
    let first_listener = listeners.iter().find_map(|listener| listener_member(listener));
    let norm = match first_listener {
        Some(listener) if !backends_agree => listener,
        _ => first_backend,
    };
    let listeners = listeners.iter().filter_map(|listener| listener_member(listener));
    for member in backends().chain(listeners).filter(|member| differ(member.address, norm.address)) {
        refuse(findings, &member, &norm, &format!("in set `{name}`"));
    }
}

fn refuse(findings: &Findings<'_>, member: &Member, norm: &Member, place: &str) {
    let problem = Problem::new(format!(
        "an {} address, but {} ({}) {place} has the {} address {}",
        family(member.address),
        norm.title,
        findings.line_of(&norm.path),
        family(norm.address),
        norm.address
    ))
    .allowed("one family for a listener, its backends and its SNAT addresses");
    findings.refuse_at(&member.path, problem);
}

fn refuse_foreign_check_source(findings: &Findings<'_>, name: &str, set: &SetFacts) {
    let Some(address) = set.check.source_address else { return };
    let mut backends = set.backends.iter().filter_map(|backend| backend_member(name, backend));
    if let Some(backend) = backends.find(|backend| differ(backend.address, address)) {
        let path = at!["backend_set", name.to_owned(), "health_check", "source_address"];
        let member = Member { address, title: String::new(), path };
        refuse(findings, &member, &backend, &format!("in set `{name}`"));
    }
}

/// `snat_addresses` may hold both families, but has to hold that of each listener that uses them.
fn refuse_foreign_snat_addresses(
    findings: &Findings<'_>,
    facts: &Facts<'_>,
    listeners: &[&ListenerFacts<'_>],
) {
    let Some(&[first, ..]) = facts.instance.snat_addresses.as_deref() else { return };
    let all = facts.instance.snat_addresses.iter().flatten();
    for listener in listeners.iter().filter_map(|listener| listener_member(listener)) {
        if all.clone().all(|snat| differ(*snat, listener.address)) {
            let line = findings.line_of(&at!["lb", "snat_addresses"]);
            let problem = Problem::new(format!(
                "an {} address, but `lb.snat_addresses` ({line}) has only {} ones",
                family(listener.address),
                family(first)
            ))
            .allowed(format!(
                "at least one {} address in `lb.snat_addresses`, or none at all",
                family(listener.address)
            ));
            findings.refuse_at(&listener.path, problem);
        }
    }
}

fn listener_member(listener: &ListenerFacts<'_>) -> Option<Member> {
    Some(Member {
        address: listener.address?,
        title: listener.title(),
        path: listener.path().then("address"),
    })
}

fn backend_member(set: &str, backend: &BackendFacts) -> Option<Member> {
    let path = at!["backend_set", set.to_owned(), "backend", backend.index, "address"];
    Some(Member { address: backend.address?, title: backend.title(), path })
}
