//! Within one set, and between its backends and everybody's addresses.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::config::backend_set::MAX_BACKENDS;
use crate::config::document::at;
use crate::config::facts::{BackendFacts, Facts, ListenerFacts, SetFacts};
use crate::config::findings::Findings;
use crate::config::problem::Problem;
use crate::config::schema::{MinHealthy, Mode, Snat};

pub(super) fn judge(findings: &Findings<'_>, facts: &Facts<'_>) {
    refuse_too_many(findings, facts);
    refuse_foreign_addresses(findings, facts);
    let listeners = facts.listeners_by_set();
    // A listener whose set is not known may mean any of them.
    let any_unclear = facts
        .listeners
        .iter()
        .any(|listener| listener.backend_set.is_none_or(|set| !facts.sets.contains_key(set)));
    for (&name, set) in &facts.sets {
        if !listeners.contains_key(name) && !any_unclear {
            let problem = Problem::new("no listener names this set, so its backends get no traffic");
            findings.warn_at(&at!["backend_set", name], problem);
        }
        refuse_equal_backends(findings, name, set);
        refuse_idle_sets(findings, name, set);
        refuse_odd_pairs(findings, name, set);
        refuse_translated_dsr(findings, name, set);
        warn_of_unreachable_minimum(findings, name, set);
    }
}

fn refuse_too_many(findings: &Findings<'_>, facts: &Facts<'_>) {
    let limit = lb_common::MAX_SETS as usize;
    if facts.sets.len() > limit {
        let problem = Problem::new(format!("{} sets in this file", facts.sets.len()));
        findings.refuse_at(&at!["backend_set"], problem.allowed(format!("at most {limit} sets")));
    }
    let backends: usize = facts.sets.values().map(|set| set.backends.len()).sum();
    if backends > MAX_BACKENDS {
        let problem = Problem::new(format!("{backends} backends in all sets together"));
        findings.refuse_at(&at!["backend_set"], problem.allowed(format!("at most {MAX_BACKENDS} backends")));
    }
}

/// A backend that has the balancer's own address would get its packets back, or never see them.
fn refuse_foreign_addresses(findings: &Findings<'_>, facts: &Facts<'_>) {
    let mut vips: BTreeMap<IpAddr, &ListenerFacts<'_>> = BTreeMap::new();
    for listener in &facts.listeners {
        if let Some(address) = listener.address {
            vips.entry(address).or_insert(listener);
        }
    }
    let snat_addresses = facts.instance.snat_addresses.as_deref().unwrap_or_default();
    for (&name, set) in &facts.sets {
        for backend in &set.backends {
            let Some(address) = backend.address else { continue };
            let owner = if let Some(listener) = vips.get(&address) {
                format!(
                    "the VIP of {} ({})",
                    listener.title(),
                    findings.line_of(&listener.path().then("address"))
                )
            } else if let Some(index) = snat_addresses.iter().position(|snat| *snat == address) {
                let path = at!["lb", "snat_addresses", index];
                format!("the SNAT address {path} ({})", findings.line_of(&path))
            } else {
                continue;
            };
            let problem = Problem::new(format!("this is {owner}")).allowed("the address of another host");
            findings.refuse_at(&backend.path(name).then("address"), problem);
        }
    }
}

fn refuse_equal_backends(findings: &Findings<'_>, set_name: &str, set: &SetFacts) {
    let mut by_address: HashMap<(IpAddr, u16), &BackendFacts> = HashMap::new();
    let mut by_name: HashMap<&str, &BackendFacts> = HashMap::new();
    for backend in &set.backends {
        let same_address = backend
            .address
            .zip(backend.port)
            .and_then(|key| earlier(&mut by_address, key, backend))
            .map(|earlier| ("address", "address and port", earlier));
        let same_name = backend
            .name
            .as_deref()
            .and_then(|key| earlier(&mut by_name, key, backend))
            .map(|earlier| ("name", "name", earlier));
        let Some((key, what, earlier)) = same_address.or(same_name) else { continue };
        let line = findings.line_of(&earlier.path(set_name));
        let problem = Problem::new(format!("the same {what} as {} ({line})", earlier.title()));
        findings.refuse_at(&backend.path(set_name).then(key), problem.allowed("each backend once in a set"));
    }
}

/// Who came first with this key, if not `backend` itself.
fn earlier<'f, K: std::hash::Hash + Eq>(
    seen: &mut HashMap<K, &'f BackendFacts>,
    key: K,
    backend: &'f BackendFacts,
) -> Option<&'f BackendFacts> {
    let first = *seen.entry(key).or_insert(backend);
    (first.index != backend.index).then_some(first)
}

/// Sets that could never give a flow to anybody.
fn refuse_idle_sets(findings: &Findings<'_>, name: &str, set: &SetFacts) {
    let Some(first) = set.backends.first() else { return };
    let all = |test: fn(&BackendFacts) -> bool| set.backends.iter().all(test);
    let all_backups = all(|backend| backend.backup == Some(true));
    if all_backups {
        let problem = Problem::new("every backend of the set is a backup, so there is none to stand in for")
            .allowed("at least one backend with backup = false");
        findings.refuse_at(&first.path(name).then("backup"), problem);
    }
    if all(|backend| backend.weight == Some(0)) {
        let problem = Problem::new("every backend of the set has weight 0, so none gets a new flow")
            .allowed("at least one backend with a weight from 1 to 1000");
        findings.refuse_at(&first.path(name).then("weight"), problem);
    } else if !all_backups && all(|backend| backend.backup == Some(true) || backend.weight == Some(0)) {
        let problem = Problem::new(
            "only backups have a weight: while a backend without `backup` is healthy, no new flow is taken",
        );
        findings.warn_at(&first.path(name).then("weight"), problem);
    }
}

/// `preempt = false` is about two backends, one of which stands in for the other.
fn refuse_odd_pairs(findings: &Findings<'_>, name: &str, set: &SetFacts) {
    let backups: Option<Vec<bool>> = set.backends.iter().map(|backend| backend.backup).collect();
    let (Some(false), Some(backups)) = (set.preempt, backups) else { return };
    let backup_count = backups.iter().filter(|backup| **backup).count();
    if (backups.len(), backup_count) != (2, 1) {
        let problem = Problem::new(format!(
            "the set has {} backends, {backup_count} of them with backup = true",
            backups.len()
        ))
        .allowed(
            "preempt = false only in a set of exactly 2 backends, exactly one of them with backup = true",
        );
        findings.refuse_at(&at!["backend_set", name, "preempt"], problem);
    }
}

fn refuse_translated_dsr(findings: &Findings<'_>, name: &str, set: &SetFacts) {
    let (Some(Mode::Dsr), Some(snat @ (Snat::Always | Snat::Auto))) = (set.mode, set.snat) else { return };
    let problem = Problem::new(format!(
        "`snat` is \"{}\", but `mode` is \"dsr\", which leaves the source as it is",
        snat.word()
    ))
    .allowed("snat = \"never\" together with mode = \"dsr\"")
    .suggest("snat = \"never\"");
    let written = at!["backend_set", name, "snat"];
    let path = if findings.has(&written) { written } else { at!["backend_set", name, "mode"] };
    findings.refuse_at(&path, problem);
}

fn warn_of_unreachable_minimum(findings: &Findings<'_>, name: &str, set: &SetFacts) {
    if let Some(MinHealthy::Count(count)) = set.min_healthy
        && count as usize > set.backends.len()
    {
        let problem = Problem::new(format!("more than the {} backends of the set", set.backends.len()));
        findings.warn_at(&at!["backend_set", name, "min_healthy"], problem);
    }
}
