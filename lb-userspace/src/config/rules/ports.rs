//! Between the ports of listeners, backends and checks.

use crate::config::document::at;
use crate::config::facts::{BackendFacts, Facts, ListenerFacts, SetFacts};
use crate::config::findings::Findings;
use crate::config::problem::Problem;
use crate::config::schema::{Mode, PortRange};

pub(super) fn judge(findings: &Findings<'_>, facts: &Facts<'_>) {
    let listeners = facts.listeners_by_set();
    for (&name, set) in &facts.sets {
        refuse_unknown_check_port(findings, name, set);
        let listeners = listeners.get(name).map(Vec::as_slice).unwrap_or_default();
        let ports = SetPorts::of(listeners);
        for backend in &set.backends {
            refuse_port_mismatch(findings, name, backend, &ports);
            if set.mode == Some(Mode::Dsr) {
                refuse_port_change(findings, name, backend, &ports);
            }
        }
    }
}

/// A backend that takes every port does not say on which one to check it.
fn refuse_unknown_check_port(findings: &Findings<'_>, name: &str, set: &SetFacts) {
    let keeps_port = |backend: &&BackendFacts| backend.port == Some(0);
    if set.check.port == Some(0)
        && let Some(backend) = set.backends.iter().find(keeps_port)
    {
        let line = findings.line_of(&backend.path(name).then("port"));
        let problem = Problem::new(format!("no port to check: {} ({line}) has port 0 too", backend.title()))
            .allowed("the port to check, from 1 to 65535");
        findings.refuse_at(&at!["backend_set", name, "health_check", "port"], problem);
    }
}

/// One listener of each kind that matters to the ports of a set's backends.
struct SetPorts<'f, 'd> {
    /// With `ports` or `port = 0`.
    several: Option<&'f ListenerFacts<'d>>,
    /// With a single port.
    single: Option<(u16, &'f ListenerFacts<'d>)>,
    /// With a single port other than that of `single`.
    other_single: Option<(u16, &'f ListenerFacts<'d>)>,
}

impl<'f, 'd> SetPorts<'f, 'd> {
    fn of(listeners: &[&'f ListenerFacts<'d>]) -> Self {
        let mut ports = Self { several: None, single: None, other_single: None };
        for listener in listeners {
            match (listener.ports, ports.single) {
                (Some(PortRange { first, last }), _) if first != last => {
                    ports.several.get_or_insert(listener);
                }
                (Some(PortRange { first, .. }), None) => ports.single = Some((first, listener)),
                (Some(PortRange { first, .. }), Some((single, _))) if first != single => {
                    ports.other_single.get_or_insert((first, listener));
                }
                _ => {}
            }
        }
        ports
    }
}

/// A backend keeps the destination port where there are several to keep.
fn refuse_port_mismatch(
    findings: &Findings<'_>,
    set: &str,
    backend: &BackendFacts,
    ports: &SetPorts<'_, '_>,
) {
    let path = backend.path(set).then("port");
    let line = |listener: &ListenerFacts<'_>| findings.line_of(&listener.ports_path(findings));
    if let (Some(1..), Some(listener)) = (backend.port, ports.several) {
        let problem = Problem::new(format!("{} ({}) takes several ports", listener.title(), line(listener)))
            .allowed("0, which keeps the destination port, for a set behind `ports` or `port = 0`")
            .suggest("port = 0");
        findings.refuse_at(&path, problem);
    }
}

/// With `mode = "dsr"` the backend sees the packet that the client sent, port and all.
fn refuse_port_change(findings: &Findings<'_>, set: &str, backend: &BackendFacts, ports: &SetPorts<'_, '_>) {
    let Some(port @ 1..) = backend.port else { return };
    let singles = [ports.single, ports.other_single].into_iter().flatten();
    if let Some((listener_port, listener)) = singles.into_iter().find(|(single, _)| *single != port) {
        let line = findings.line_of(&listener.ports_path(findings));
        let problem = Problem::new(format!(
            "{} ({line}) has port {listener_port}, but mode = \"dsr\" cannot change the port",
            listener.title()
        ))
        .allowed("the port of the listener")
        .suggest(format!("port = {listener_port}"));
        findings.refuse_at(&backend.path(set).then("port"), problem);
    }
}
