//! What the controller knows of the health of each backend, from the first result to the last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use jiff::Timestamp;
use serde_json::json;
use tracing::{debug, warn};

use super::apply::Applier;
use super::desired::Health;
use crate::api::Answer;
use crate::config::{Config, HealthCheck};
use crate::health::state::Thresholds;
use crate::health::{BackendHealth, CheckId, CheckResult, CheckSpec, CheckStatus, Transition};
use crate::logging;

/// Health of every backend of the configuration.
#[derive(Debug, Default)]
pub struct Book {
    backends: BTreeMap<CheckId, Entry>,
}

/// One backend.
#[derive(Debug)]
struct Entry {
    health: BackendHealth,
    spec: CheckSpec,
    /// Checks made, by verdict.
    made: BTreeMap<&'static str, u64>,
}

impl Entry {
    const fn new(health: BackendHealth, spec: CheckSpec) -> Self {
        Self { health, spec, made: BTreeMap::new() }
    }
}

impl Book {
    /// A book for a configuration. A backend that the adopted maps have in rotation counts as healthy until its
    /// first result, so that a restart takes nobody out.
    pub fn inherit(config: &Config, applier: &Applier) -> Self {
        let held = applier.backends().values();
        // A backend of two sets may pass the check of one and fail that of the other.
        let in_rotation: BTreeSet<(&str, SocketAddr)> = held
            .filter(|backend| backend.has(lb_common::Backend::IN_ROTATION))
            .filter_map(|backend| {
                let set = applier.ids.name_of_set(backend.set)?;
                Some((set, SocketAddr::new(backend.address.into(), backend.port)))
            })
            .collect();
        let mut book = Self::default();
        let now = Timestamp::now();
        for (id, backend, check) in backends(config) {
            let healthy = in_rotation.contains(&(id.set.as_str(), backend.socket()));
            let health = BackendHealth::inherit(id.clone(), thresholds(check), healthy, now);
            book.backends.insert(id, Entry::new(health, CheckSpec::new(backend, check)));
        }
        book
    }

    /// Follows a configuration: backends come, go, are taken offline, are checked in another way. Those that do not
    /// change keep their health.
    pub fn follow(&mut self, config: &Config) {
        let now = Timestamp::now();
        let mut kept = BTreeMap::new();
        for (id, backend, check) in backends(config) {
            let spec = CheckSpec::new(backend, check);
            let mut entry = match self.backends.remove(&id) {
                // The same name at another address is another backend.
                Some(entry) if entry.spec.target.ip() == spec.target.ip() => entry,
                _ => Entry::new(BackendHealth::new(id.clone(), thresholds(check), now), spec.clone()),
            };
            if entry.spec == spec {
                entry.health.set_thresholds(thresholds(check));
            } else {
                entry.health.recheck(thresholds(check), now);
                entry.spec = spec;
            }
            if let Some(transition) = entry.health.set_offline(backend.offline, now) {
                log(&transition);
            }
            kept.insert(id, entry);
        }
        self.backends = kept;
    }

    /// The checks to make: of every backend that is not offline.
    pub fn checks(&self, config: &Config) -> Vec<(CheckId, CheckSpec)> {
        let checked = backends(config).filter(|(_, backend, _)| !backend.offline);
        checked.map(|(id, backend, check)| (id, CheckSpec::new(backend, check))).collect()
    }

    /// Notes a result; whether it may change the rotation.
    pub fn record(&mut self, id: &CheckId, result: CheckResult) -> bool {
        let Some(entry) = self.backends.get_mut(id) else { return false };
        *entry.made.entry(result.outcome.status.word()).or_default() += 1;
        debug!(backend_set = id.set, backend = id.backend, result = %json!(result), "checked");
        let before = health(&entry.health);
        if let Some(transition) = entry.health.observe(result) {
            log(&transition);
        }
        before != health(&entry.health)
    }

    /// Health of a backend, for the rotation.
    pub fn health(&self, set: &str, backend: &str) -> Health {
        self.get(set, backend).map_or(Health::Unknown, health)
    }

    /// Everything that is known of a backend.
    pub fn get(&self, set: &str, backend: &str) -> Option<&BackendHealth> {
        self.backends.get(&CheckId::new(set, backend)).map(|entry| &entry.health)
    }

    /// Whether every backend of a set that is checked at all has had a result.
    pub fn is_settled(&self, set: &str) -> bool {
        let from = CheckId::new(set, "");
        let mut of_set = self.backends.range(from..).take_while(|(id, _)| id.set == set);
        of_set.all(|(_, entry)| {
            entry.health.result().outcome.status == CheckStatus::Offline || !entry.made.is_empty()
        })
    }

    /// Checks made: set, backend, verdict, number.
    pub fn checks_made(&self) -> impl Iterator<Item = (&str, &str, &'static str, u64)> {
        self.backends.iter().flat_map(|(id, entry)| {
            entry.made.iter().map(|(&verdict, &count)| (id.set.as_str(), id.backend.as_str(), verdict, count))
        })
    }

    /// Transitions of all backends, of those of one set, or of one; the oldest first.
    pub fn history(&self, set: Option<&str>, backend: Option<&str>) -> Answer {
        let wanted = |id: &CheckId| {
            set.is_none_or(|set| id.set == set) && backend.is_none_or(|backend| id.backend == backend)
        };
        let found: Vec<&Entry> =
            self.backends.iter().filter(|(id, _)| wanted(id)).map(|(_, entry)| entry).collect();
        if found.is_empty() && set.is_some() {
            let names: Vec<String> =
                self.backends.keys().map(|CheckId { set, backend }| format!("{set}/{backend}")).collect();
            return Answer::NotFound(format!("no such backend; there are: {}", names.join(", ")));
        }
        let mut transitions: Vec<&Transition> =
            found.iter().flat_map(|entry| entry.health.history().iter()).collect();
        transitions.sort_by_key(|transition| transition.timestamp);
        Answer::Document(json!({ "transitions": transitions }))
    }
}

fn backends(config: &Config) -> impl Iterator<Item = (CheckId, &crate::config::Backend, &HealthCheck)> {
    config.backend_sets.iter().flat_map(|(name, set)| {
        set.backends
            .iter()
            .map(move |backend| (CheckId::new(name, &backend.name), backend, &set.health_check))
    })
}

const fn thresholds(check: &HealthCheck) -> Thresholds {
    Thresholds { rise: check.rise, fall: check.fall, retries: check.retries }
}

/// A backend without a result is neither healthy nor unhealthy, unless it was inherited as healthy.
fn health(backend: &BackendHealth) -> Health {
    if backend.healthy() {
        return Health::Healthy;
    }
    match backend.result().outcome.status {
        CheckStatus::Unknown | CheckStatus::Offline => Health::Unknown,
        _ => Health::Unhealthy,
    }
}

/// Each transition is one line of JSON, whatever the format of the other lines.
fn log(transition: &Transition) {
    match serde_json::to_string(transition) {
        Ok(line) => logging::json_line(&line),
        Err(error) => warn!("cannot write a transition of {}: {error}", transition.id.backend),
    }
}
