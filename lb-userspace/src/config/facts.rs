//! What the rules between sections look at. `None` stands for a value that was refused already, so that one
//! mistake is reported once and hides no other.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::document::{Path, at};
use super::findings::Findings;
use super::schema::{MinHealthy, Mode, PortRange, Protocol, Snat};

/// A whole file.
pub(super) struct Facts<'d> {
    pub(super) instance: InstanceFacts,
    /// In the order of the file.
    pub(super) listeners: Vec<ListenerFacts<'d>>,
    pub(super) sets: BTreeMap<&'d str, SetFacts>,
}

/// `[lb]`
#[derive(Default)]
pub(super) struct InstanceFacts {
    pub(super) snat_addresses: Option<Vec<IpAddr>>,
    pub(super) snat_ports: Option<PortRange>,
}

/// `[[listener]]`
pub(super) struct ListenerFacts<'d> {
    /// Place among the listeners, from 0.
    pub(super) index: usize,
    pub(super) name: Option<String>,
    pub(super) address: Option<IpAddr>,
    pub(super) protocol: Option<Protocol>,
    pub(super) ports: Option<PortRange>,
    pub(super) backend_set: Option<&'d str>,
    pub(super) allow_sources: Option<Vec<IpNet>>,
    pub(super) deny_sources: Option<Vec<IpNet>>,
}

/// `[backend_set.NAME]`
pub(super) struct SetFacts {
    pub(super) mode: Option<Mode>,
    pub(super) snat: Option<Snat>,
    pub(super) preempt: Option<bool>,
    pub(super) min_healthy: Option<MinHealthy>,
    /// In the order of the file.
    pub(super) backends: Vec<BackendFacts>,
    pub(super) check: CheckFacts,
}

/// `[[backend_set.NAME.backend]]`
pub(super) struct BackendFacts {
    /// Place among the set's backends, from 0.
    pub(super) index: usize,
    pub(super) name: Option<String>,
    pub(super) address: Option<IpAddr>,
    pub(super) port: Option<u16>,
    pub(super) weight: Option<u16>,
    pub(super) backup: Option<bool>,
}

/// `[backend_set.NAME.health_check]`
#[derive(Default)]
pub(super) struct CheckFacts {
    pub(super) port: Option<u16>,
    /// Also `None` for the kernel's choice.
    pub(super) source_address: Option<IpAddr>,
}

impl<'d> Facts<'d> {
    /// The listeners of each set, by the set's name as it is written in the listener.
    pub(super) fn listeners_by_set(&self) -> HashMap<&'d str, Vec<&ListenerFacts<'d>>> {
        let mut by_set: HashMap<_, Vec<_>> = HashMap::new();
        for listener in &self.listeners {
            if let Some(set) = listener.backend_set {
                by_set.entry(set).or_default().push(listener);
            }
        }
        by_set
    }
}

impl ListenerFacts<'_> {
    /// Where it stands in the file.
    pub(super) fn path(&self) -> Path<'static> {
        at!["listener", self.index]
    }

    /// Where its port or ports stand.
    pub(super) fn ports_path(&self, findings: &Findings<'_>) -> Path<'static> {
        let ports = self.path().then("ports");
        if findings.has(&ports) { ports } else { self.path().then("port") }
    }

    /// How a message names it.
    pub(super) fn title(&self) -> String {
        match &self.name {
            Some(name) => format!("listener `{name}`"),
            None => format!("listener[{}]", self.index),
        }
    }
}

impl BackendFacts {
    /// Where it stands in the file, in the set of the given name.
    pub(super) fn path<'n>(&self, set: &'n str) -> Path<'n> {
        at!["backend_set", set, "backend", self.index]
    }

    /// How a message names it.
    pub(super) fn title(&self) -> String {
        match &self.name {
            Some(name) => format!("backend `{name}`"),
            None => format!("backend[{}]", self.index),
        }
    }
}

impl SetFacts {
    /// Whether flows to this set may get another source address.
    pub(super) fn translates_sources(&self) -> bool {
        self.mode == Some(Mode::Nat) && matches!(self.snat, Some(Snat::Always | Snat::Auto))
    }
}
