//! Who may be given new flows of a set, and who of a pair is the active one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tracing::info;

use super::desired::{Health, Surroundings};
use crate::config::{Backend, BackendSet, Config};

/// Who is in the rotation of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// In the order of the backends of the set.
    pub members: Vec<bool>,
    /// Who holds the active role.
    pub holder: Option<SocketAddr>,
}

/// Holders of the active role by set name: who alone is in the rotation, or was the last to be.
///
/// The role needs no record of its own. Who alone is in the rotation stands in the map `backends`, so that the next
/// controller knows it, however this one ends.
pub type Holders = BTreeMap<String, SocketAddr>;

/// Computes the rotation: the healthy backends that are no backups; without any, the healthy backups; without any,
/// with `fail_open`, all that are neither drained nor offline. With `preempt = false` the holder of the active role
/// comes before all others for as long as it is healthy.
pub fn rotation(name: &str, set: &BackendSet, surroundings: &impl Surroundings) -> Rotation {
    let holder = surroundings.holder(name);
    let health = |backend: &Backend| surroundings.health(name, &backend.name);
    let eligible = |backend: &Backend| {
        is_in_service(backend) && surroundings.way(backend.address).next_hop.is_resolved()
    };
    let healthy = |backend: &Backend| eligible(backend) && health(backend) == Health::Healthy;
    let choose = |pick: &dyn Fn(&Backend) -> bool| {
        let picked: Vec<bool> = set.backends.iter().map(pick).collect();
        picked.contains(&true).then_some(picked)
    };
    let members = choose(&|backend| !set.preempt && holder == Some(backend.socket()) && healthy(backend))
        .or_else(|| choose(&|backend| healthy(backend) && !backend.backup))
        .or_else(|| choose(&healthy))
        .or_else(|| choose(&|backend| set.fail_open && eligible(backend)))
        .unwrap_or_else(|| vec![false; set.backends.len()]);

    let mut active =
        set.backends.iter().zip(&members).filter(|(_, is_in)| **is_in).map(|(backend, _)| backend);
    let holder = match (active.next(), active.next()) {
        (None, _) => holder,
        // Of a set that has just begun the first backup may be checked before the first primary: it does not take
        // over from one that nobody has found bad.
        (Some(alone), None) if alone.backup && holder.is_none() => {
            let may_come = |backend: &Backend| {
                !backend.backup && is_in_service(backend) && health(backend) != Health::Unhealthy
            };
            (!set.backends.iter().any(may_come)).then(|| alone.socket())
        }
        (Some(alone), None) => Some(alone.socket()),
        (Some(_), Some(_)) => None,
    };
    Rotation { members, holder }
}

/// Whether the configuration lets a backend have new flows.
const fn is_in_service(backend: &Backend) -> bool {
    !backend.drain && !backend.offline && backend.weight > 0
}

/// Logs in which pairs somebody took over.
pub fn log_take_overs(config: &Config, before: &Holders, after: &Holders) {
    for (name, _) in config.backend_sets.iter().filter(|(_, set)| !set.preempt) {
        let (Some(from), Some(to)) = (before.get(name), after.get(name)) else { continue };
        if from != to {
            info!(backend_set = name, %from, %to, "took over the active role, and keeps it");
        }
    }
}

#[cfg(test)]
mod tests;
