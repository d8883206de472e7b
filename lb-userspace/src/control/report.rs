//! Makes the status document out of what the controller knows and the maps count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use lb_common::{Backend as MapBackend, Counters, Drops, Kind, NextHop, Reason};
use serde_json::{Value, json};

use super::book::Book;
use super::desired::{self, Desired};
use super::host_ports::HostPorts;
use super::snat;
use crate::config::{self, Config};
use crate::dataplane::{Attachment, Census, Maps, Tally};
use crate::health::Level;
use crate::health::level::{self, Member, SetLevel};
use crate::network::next_hop::Ways;
use crate::status::{
    BackendName, BackendStatus, ConfigStatus, InterfaceStatus, ListenerName, ListenerStatus, Names,
    SetStatus, Status,
};

/// Where the status comes from.
pub struct Sources<'a> {
    /// Name of the instance.
    pub instance: &'a str,
    /// Path of the configuration.
    pub file: &'a Path,
    /// When it was loaded.
    pub loaded_at: Timestamp,
    /// Why the last reload was refused.
    pub last_reload_error: Option<&'a str>,
    /// Reloads refused.
    pub reload_failures: u64,
    /// The configuration in force.
    pub config: &'a Config,
    /// Interfaces and modes.
    pub attached: &'a [Attachment],
    /// Those that are no longer there.
    pub lost: &'a BTreeSet<String>,
    /// Kernel id of the program.
    pub program_id: u32,
    /// What the maps hold.
    pub desired: &'a Desired,
    /// Health.
    pub book: &'a Book,
    /// Ways to the backends.
    pub ways: &'a Ways,
    /// Live flows.
    pub census: &'a Census,
    /// Counters of drops.
    pub maps: &'a Maps,
    /// All other counters.
    pub tally: &'a Tally<'a>,
    /// Ports of the host.
    pub host_ports: &'a HostPorts,
}

/// The status document.
///
/// # Errors
///
/// If counters cannot be read.
pub fn status(sources: &Sources<'_>) -> Result<Status> {
    let levels: BTreeMap<&str, SetLevel> =
        sources.config.backend_sets.keys().map(|name| (name.as_str(), set_level(sources, name))).collect();
    let verdict = instance_level(sources);
    let snat = snat::usage(sources);
    let lost = sources.lost.iter().map(|name| format!("interface {name} is gone"));
    let remarks = [sources.host_ports.warning().map(str::to_owned), snat::warning(&snat)];
    let reason = std::iter::once(verdict.reason).chain(lost).chain(remarks.into_iter().flatten());
    let counted = all_reasons(sources)?;
    let listeners: Vec<ListenerStatus> = sources
        .config
        .listeners
        .iter()
        .map(|listener| listener_status(sources, listener, &levels))
        .collect::<Result<_>>()?;
    let mut backend_sets = Vec::new();
    for (name, set) in &sources.config.backend_sets {
        backend_sets.push(set_status(sources, name, set, &levels[name.as_str()])?);
    }
    Ok(Status {
        version: 1,
        instance: sources.instance.to_owned(),
        status: verdict.level.word().to_owned(),
        reason: reason.collect::<Vec<_>>().join("; "),
        config: ConfigStatus {
            file: sources.file.display().to_string(),
            loaded_at: format!("{:.3}", sources.loaded_at),
            last_reload_error: sources.last_reload_error.map(str::to_owned),
            reload_failures: sources.reload_failures,
        },
        interfaces: interfaces(sources),
        drops: of_kind(&counted, Kind::Drop).collect(),
        passes: of_kind(&counted, Kind::Pass).collect(),
        notes: of_kind(&counted, Kind::Note).collect(),
        listeners,
        backend_sets,
        snat,
    })
}

/// The names behind the ids in the maps.
pub fn names(names: &desired::Names) -> Names {
    let listeners = names.listeners.iter().map(|(name, &id)| ListenerName { id, name: name.clone() });
    let backends = names.backends.iter().map(|((set, name), &id)| BackendName {
        id,
        backend_set: set.clone(),
        name: name.clone(),
    });
    Names { listeners: listeners.collect(), backends: backends.collect() }
}

/// The level of the instance.
pub(super) fn instance_level(sources: &Sources<'_>) -> level::Verdict {
    let names = sources.config.backend_sets.keys();
    let sets: Vec<(&str, Level)> =
        names.map(|name| (name.as_str(), set_level(sources, name).verdict.level)).collect();
    level::instance(&sets)
}

fn interfaces(sources: &Sources<'_>) -> Vec<InterfaceStatus> {
    let status = |attachment: &Attachment| {
        let is_lost = sources.lost.contains(&attachment.interface);
        InterfaceStatus {
            name: attachment.interface.clone(),
            mode: if is_lost { "gone" } else { attachment.mode.word() }.to_owned(),
            program_id: sources.program_id,
        }
    };
    sources.attached.iter().map(status).collect()
}

/// The level of a set of the configuration.
pub(super) fn set_level(sources: &Sources<'_>, name: &str) -> SetLevel {
    let set = &sources.config.backend_sets[name];
    let members: Vec<Member<'_>> = set
        .backends
        .iter()
        .map(|backend| Member {
            name: &backend.name,
            level: sources.book.get(name, &backend.name).map_or(Level::Unknown, |health| health.level()),
            counted: !backend.drain && !backend.offline,
        })
        .collect();
    let has_listener = sources.config.listeners.iter().any(|listener| listener.backend_set == name);
    level::set(&members, has_listener, set.min_healthy)
}

fn listener_status(
    sources: &Sources<'_>,
    listener: &config::Listener,
    levels: &BTreeMap<&str, SetLevel>,
) -> Result<ListenerStatus> {
    let id = sources.desired.names.listeners.get(&listener.name).copied().unwrap_or_default();
    let counters = sources.tally.listener(id)?;
    let counted = sources.maps.drops(Some(id))?;
    let occurred = |kind| of_kind(&counted, kind).filter(|(_, count)| *count > 0).collect();
    let verdict = level::listener(&listener.backend_set, &levels[listener.backend_set.as_str()].verdict);
    Ok(ListenerStatus {
        name: listener.name.clone(),
        address: listener.address,
        port: if listener.ports == config::PortRange::EVERY { 0 } else { listener.ports.first },
        ports: format!("{}-{}", listener.ports.first, listener.ports.last),
        protocol: listener.protocol.word().to_owned(),
        backend_set: listener.backend_set.clone(),
        status: verdict.level.word().to_owned(),
        reason: verdict.reason,
        packets: packets(&counters),
        bytes: bytes(&counters),
        new_flows: counters.new_flows,
        active_flows: sources.census.by_listener.get(&id).copied().unwrap_or_default(),
        drops: occurred(Kind::Drop),
        passes: occurred(Kind::Pass),
        notes: occurred(Kind::Note),
    })
}

fn set_status(
    sources: &Sources<'_>,
    name: &str,
    set: &config::BackendSet,
    found: &SetLevel,
) -> Result<SetStatus> {
    let backends = set.backends.iter().map(|backend| backend_status(sources, name, set, backend));
    Ok(SetStatus {
        name: name.to_owned(),
        status: found.verdict.level.word().to_owned(),
        reason: found.verdict.reason.clone(),
        total: found.total,
        ok: found.ok,
        warning: found.warning.clone(),
        critical: found.critical.clone(),
        unknown: found.unknown.clone(),
        backends: backends.collect::<Result<_>>()?,
    })
}

fn backend_status(
    sources: &Sources<'_>,
    set_name: &str,
    set: &config::BackendSet,
    backend: &config::Backend,
) -> Result<BackendStatus> {
    let key = (set_name.to_owned(), backend.name.clone());
    let id = sources.desired.names.backends.get(&key).copied().unwrap_or_default();
    let counters = sources.tally.backend(id)?;
    let health = sources.book.get(set_name, &backend.name);
    let in_rotation = sources.desired.backends.get(&id).is_some_and(|held| held.has(MapBackend::IN_ROTATION));
    Ok(BackendStatus {
        name: backend.name.clone(),
        address: backend.address,
        port: backend.port,
        status: health.map_or(Level::Unknown, |health| health.level()).word().to_owned(),
        state: state(set, backend, in_rotation, health.is_some_and(|health| health.healthy())).to_owned(),
        in_rotation,
        weight: backend.weight,
        packets: packets(&counters),
        bytes: bytes(&counters),
        new_flows: counters.new_flows,
        active_flows: sources.census.by_backend.get(&id).copied().unwrap_or_default(),
        refused: counters.refused,
        unanswered: sources.census.unanswered.get(&id).copied().unwrap_or_default(),
        next_hop_problem: next_hop_problem(sources, backend),
        result: health.map_or(Value::Null, |health| json!(health.result())),
    })
}

/// The contract's state of a backend.
const fn state(
    set: &config::BackendSet,
    backend: &config::Backend,
    in_rotation: bool,
    healthy: bool,
) -> &'static str {
    match () {
        () if backend.offline => "OFFLINE",
        () if backend.drain => "DRAINING",
        () if in_rotation => "ACTIVE",
        () if healthy && (backend.backup || !set.preempt) => "STANDBY",
        () if healthy && backend.weight == 0 => "ACTIVE",
        () => "DOWN",
    }
}

fn next_hop_problem(sources: &Sources<'_>, backend: &config::Backend) -> Option<String> {
    let way = sources.ways.get(&backend.address)?;
    let is_resolved = way.next_hop.as_ref().is_some_and(NextHop::is_resolved);
    way.problem
        .as_ref()
        .map(ToString::to_string)
        .or_else(|| (!is_resolved).then(|| "the next hop is not resolved yet".to_owned()))
}

fn all_reasons(sources: &Sources<'_>) -> Result<Drops> {
    let mut total = sources.maps.drops(None)?;
    for &id in sources.desired.names.listeners.values() {
        total.add(&sources.maps.drops(Some(id))?);
    }
    Ok(total)
}

/// The counters of the reasons of a kind.
fn of_kind(counted: &Drops, kind: Kind) -> impl Iterator<Item = (String, u64)> {
    let reasons = Reason::ALL.iter().filter(move |reason| reason.kind() == kind);
    reasons.map(|&reason| (reason.name().to_owned(), counted.get(reason)))
}

const fn packets(counters: &Counters) -> u64 {
    counters.to_backend.packets + counters.to_client.packets
}

const fn bytes(counters: &Counters) -> u64 {
    counters.to_backend.bytes + counters.to_client.bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_documented_in_its_own_words() {
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
        let document = std::fs::read_to_string(document).unwrap();
        for reason in Reason::ALL {
            let kind = format!("{:?}", reason.kind()).to_lowercase();
            let row = format!("| `{}` | {kind} | {} |\n", reason.name(), reason.text());
            assert!(document.contains(&row), "expected the row {row:?} in docs/api.md");
        }
    }
}
