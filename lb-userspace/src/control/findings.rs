//! `lb diagnose`: gathers what the checks and the traffic say of each set, and lets `health::diagnose` judge it.

use anyhow::Result;
use lb_common::{Kind, PROTO_TCP, PROTO_UDP, Reason};
use serde::Serialize;

use super::report::{self, Sources};
use crate::config::{BackendSet, Listener};
use crate::health::Level;
use crate::health::diagnose::{BackendView, Finding, ListenerView, Passive, SetView, Stray, diagnose};

/// What is wrong, and how well the sets are that were asked about.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// The level of the set asked about, or of the instance.
    pub status: Level,
    /// Why.
    pub reason: String,
    /// The most telling first, set by set.
    pub findings: Vec<Finding>,
}

/// Diagnoses one set or all of them; `None` if there is no set of that name.
///
/// # Errors
///
/// If counters cannot be read.
pub fn diagnosis(sources: &Sources<'_>, only: Option<&str>) -> Result<Option<Diagnosis>> {
    if only.is_some_and(|name| !sources.config.backend_sets.contains_key(name)) {
        return Ok(None);
    }
    let verdict = match only {
        Some(name) => report::set_level(sources, name).verdict,
        None => report::instance_level(sources),
    };
    let mut findings = Vec::new();
    for (name, set) in &sources.config.backend_sets {
        if only.is_none_or(|only| only == name) {
            findings.extend(of_set(sources, name, set)?);
        }
    }
    Ok(Some(Diagnosis { status: verdict.level, reason: verdict.reason, findings }))
}

fn of_set(sources: &Sources<'_>, name: &str, set: &BackendSet) -> Result<Vec<Finding>> {
    let mut backends = Vec::new();
    for backend in &set.backends {
        // Every backend of the configuration is in the book.
        let Some(health) = sources.book.get(name, &backend.name) else { continue };
        backends.push(BackendView {
            backend,
            level: health.level(),
            counted: !backend.drain && !backend.offline,
            result: health.result(),
            passive: passive(sources, name, &backend.name)?,
        });
    }
    let named = sources.config.listeners.iter().filter(|listener| listener.backend_set == name);
    let traffic: Vec<(&Listener, Arrived)> =
        named.map(|listener| Ok((listener, Arrived::at(sources, listener)?))).collect::<Result<_>>()?;
    let listeners: Vec<ListenerView<'_>> = traffic
        .iter()
        .map(|(listener, arrived)| ListenerView {
            listener,
            new_flows: arrived.new_flows,
            drops: &arrived.drops,
            strays: &arrived.strays,
        })
        .collect();
    Ok(diagnose(&SetView { name, set, backends: &backends, listeners: &listeners }))
}

fn passive(sources: &Sources<'_>, set: &str, backend: &str) -> Result<Passive> {
    let Some(&id) = sources.desired.names.backends.get(&(set.to_owned(), backend.to_owned())) else {
        return Ok(Passive::default());
    };
    let counters = sources.tally.backend(id)?;
    Ok(Passive {
        new_flows: counters.new_flows,
        unanswered: sources.census.unanswered.get(&id).copied().unwrap_or_default(),
        refused: counters.refused,
    })
}

/// What came to a listener, and past it to its address.
struct Arrived {
    new_flows: u64,
    drops: Vec<(&'static str, u64)>,
    strays: Vec<Stray<'static>>,
}

impl Arrived {
    fn at(sources: &Sources<'_>, listener: &Listener) -> Result<Self> {
        let id = sources.desired.names.listeners.get(&listener.name).copied().unwrap_or_default();
        let dropped = sources.maps.drops(Some(id))?;
        let drops = Reason::ALL
            .iter()
            .filter(|reason| reason.kind() == Kind::Drop)
            .map(|&reason| (reason.name(), dropped.get(reason)));
        let to_this = |key: &lb_common::ListenerKey| std::net::IpAddr::from(key.address) == listener.address;
        let strays = sources.maps.strays()?.into_iter().filter(|(key, _)| to_this(key));
        let mut strays: Vec<Stray<'_>> = strays
            .map(|(key, packets)| Stray { protocol: protocol_name(key.protocol), port: key.port, packets })
            .collect();
        strays.sort_by_key(|stray| std::cmp::Reverse(stray.packets));
        Ok(Self {
            new_flows: sources.tally.listener(id)?.new_flows,
            drops: drops.filter(|(_, count)| *count > 0).collect(),
            strays,
        })
    }
}

const fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        PROTO_TCP => "tcp",
        PROTO_UDP => "udp",
        _ => "another protocol",
    }
}
