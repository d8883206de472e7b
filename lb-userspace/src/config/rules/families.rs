//! IPv4 and IPv6 do not mix between a listener, its backends, its checks and its SNAT addresses.

use std::net::IpAddr;

use crate::config::document::{Path, at};
use crate::config::facts::{BackendFacts, Facts, ListenerFacts, SetFacts};
use crate::config::findings::Findings;
use crate::config::problem::Problem;

pub(super) fn judge(findings: &Findings<'_>, facts: &Facts<'_>) {
    facts.listeners.iter().for_each(|listener| warn_of_foreign_sources(findings, listener));
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

/// A backend or a listener with its address.
#[derive(Clone, Copy)]
enum Member<'f, 'd> {
    Backend(&'f BackendFacts, IpAddr),
    Listener(&'f ListenerFacts<'d>, IpAddr),
}

impl<'f, 'd> Member<'f, 'd> {
    fn backend(backend: &'f BackendFacts) -> Option<Self> {
        Some(Self::Backend(backend, backend.address?))
    }

    fn listener(listener: &'f ListenerFacts<'d>) -> Option<Self> {
        Some(Self::Listener(listener, listener.address?))
    }

    fn address(self) -> IpAddr {
        match self {
            Self::Backend(_, address) | Self::Listener(_, address) => address,
        }
    }

    fn title(self) -> String {
        match self {
            Self::Backend(backend, _) => backend.title(),
            Self::Listener(listener, _) => listener.title(),
        }
    }

    /// Where its address stands.
    fn path(self, set: &str) -> Path<'_> {
        match self {
            Self::Backend(backend, _) => backend.path(set).then("address"),
            Self::Listener(listener, _) => listener.path().then("address"),
        }
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn differ(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() != b.is_ipv4()
}

/// The first listener sets the family, unless all backends agree on the other one.
fn refuse_mixed_set(findings: &Findings<'_>, name: &str, set: &SetFacts, listeners: &[&ListenerFacts<'_>]) {
    let backends = || set.backends.iter().filter_map(Member::backend);
    let mut listeners = listeners.iter().filter_map(|listener| Member::listener(listener)).peekable();
    let Some(first_backend) = backends().next() else { return };
    let backends_agree = backends().all(|backend| !differ(backend.address(), first_backend.address()));
    let norm = match listeners.peek() {
        Some(listener) if !backends_agree => *listener,
        _ => first_backend,
    };
    for member in backends().chain(listeners).filter(|member| differ(member.address(), norm.address())) {
        refuse(findings, name, member.address(), &member.path(name), norm);
    }
}

fn refuse(findings: &Findings<'_>, set: &str, address: IpAddr, path: &Path<'_>, norm: Member<'_, '_>) {
    let problem = Problem::new(format!(
        "an {} address, but {} ({}) in set `{set}` has the {} address {}",
        family(address),
        norm.title(),
        findings.line_of(&norm.path(set)),
        family(norm.address()),
        norm.address()
    ))
    .allowed("one family for a listener, its backends and its SNAT addresses");
    findings.refuse_at(path, problem);
}

fn refuse_foreign_check_source(findings: &Findings<'_>, name: &str, set: &SetFacts) {
    let Some(address) = set.check.source_address else { return };
    let mut backends = set.backends.iter().filter_map(Member::backend);
    if let Some(backend) = backends.find(|backend| differ(backend.address(), address)) {
        let path = at!["backend_set", name, "health_check", "source_address"];
        refuse(findings, name, address, &path, backend);
    }
}

/// `snat_addresses` may hold both families, but has to hold that of each listener that uses them.
fn refuse_foreign_snat_addresses(
    findings: &Findings<'_>,
    facts: &Facts<'_>,
    listeners: &[&ListenerFacts<'_>],
) {
    let addresses = facts.instance.snat_addresses.as_deref().unwrap_or_default();
    let Some(first) = addresses.first() else { return };
    let is_foreign = |address: IpAddr| addresses.iter().all(|snat| differ(*snat, address));
    for listener in listeners {
        let Some(address) = listener.address.filter(|address| is_foreign(*address)) else { continue };
        let line = findings.line_of(&at!["lb", "snat_addresses"]);
        let own = family(address);
        let problem = Problem::new(format!(
            "an {own} address, but `lb.snat_addresses` ({line}) has only {} ones",
            family(*first)
        ))
        .allowed(format!("at least one {own} address in `lb.snat_addresses`, or none at all"));
        findings.refuse_at(&listener.path().then("address"), problem);
    }
}

/// The lists of sources may hold both families, so that listeners can share them; but a listener whose
/// `allow_sources` has only the other one serves nobody.
fn warn_of_foreign_sources(findings: &Findings<'_>, listener: &ListenerFacts<'_>) {
    let (Some(address), Some(allowed)) = (listener.address, &listener.allow_sources) else { return };
    if let Some(first) = allowed.first()
        && allowed.iter().all(|prefix| differ(prefix.addr(), address))
    {
        let problem = Problem::new(format!(
            "only {} prefixes, but the listener has an {} address, so nobody may open a flow",
            family(first.addr()),
            family(address)
        ));
        findings.warn_at(&listener.path().then("allow_sources"), problem);
    }
}
