//! Why a set is not well: from configuration, results and counters to findings. A pure function; what to try by
//! hand is printed, not run.

mod by_hand;
mod cause;

use serde::{Deserialize, Serialize};

pub use self::by_hand::commands;
use super::check::CheckSpec;
use super::level::Level;
use super::result::{CheckResult, Outcome};
use crate::config::{Backend, BackendSet, Listener, PortRange, Snat};

/// One set with everything that is known of it.
#[derive(Clone, Copy, Debug)]
pub struct SetView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its configuration.
    pub set: &'a BackendSet,
    /// Its backends.
    pub backends: &'a [BackendView<'a>],
    /// The listeners that name it.
    pub listeners: &'a [ListenerView<'a>],
}

/// A backend: what the checks say and what its traffic says.
#[derive(Clone, Copy, Debug)]
pub struct BackendView<'a> {
    /// Its configuration.
    pub backend: &'a Backend,
    /// Its level.
    pub level: Level,
    /// False if it is offline or draining.
    pub counted: bool,
    /// Its last result.
    pub result: &'a CheckResult,
    /// What its traffic says.
    pub passive: Passive,
}

/// What the data plane has seen of the TCP flows given to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Passive {
    /// Flows it was given.
    pub new_flows: u64,
    /// Flows whose SYN it did not answer.
    pub unanswered: u64,
    /// Flows whose SYN it answered with a RST.
    pub refused: u64,
}

/// A listener and what arrives at it.
#[derive(Clone, Copy, Debug)]
pub struct ListenerView<'a> {
    /// Its configuration.
    pub listener: &'a Listener,
    /// Flows that began at it.
    pub new_flows: u64,
    /// Packets it dropped, by the name of the reason.
    pub drops: &'a [(&'a str, u64)],
    /// What came to its address, but to no listener.
    pub strays: &'a [Stray<'a>],
}

/// Packets to an address of ours at which nothing listens for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray<'a> {
    /// `tcp`, `udp`.
    pub protocol: &'a str,
    /// Destination port.
    pub port: u16,
    /// How many.
    pub packets: u64,
}

/// What kind of finding it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hint {
    /// No listener names the set.
    NoListener,
    /// Every backend fails for the same reason: probably the check, not the servers.
    CheckProbablyWrong,
    /// Host down or rejecting firewall.
    Unreachable,
    /// Nothing listens on the port.
    Refused,
    /// No route.
    NoRoute,
    /// `source_address` is not an address of this host.
    SourceAddress,
    /// Nothing comes back at all.
    Dropped,
    /// The connection stands, the answer does not come.
    Silent,
    /// Another status code or response code.
    StatusCode,
    /// Another answer.
    Mismatch,
    /// The port speaks another protocol.
    WrongProtocol,
    /// The certificate.
    Certificate,
    /// The server breaks off.
    Closed,
    /// The check cannot be made, or has not been made yet.
    NotChecked,
    /// Some of the last results are good and some bad.
    Unsteady,
    /// All backends OK, but the listener gets no traffic.
    NoTraffic,
    /// The checks get through, the traffic does not.
    TrafficUnanswered,
    /// The checks get through, the traffic is refused.
    TrafficRefused,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What kind.
    pub hint: Hint,
    /// How bad.
    pub level: Level,
    /// In which set.
    pub backend_set: String,
    /// Whom it concerns; empty: the whole set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<String>,
    /// What is the matter, in one sentence.
    pub text: String,
    /// The result behind it.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What to look at, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<String>,
    /// Commands for a shell on this host that show the same.
    #[serde(rename = "try", default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

/// Backends of one group whose command is spelled out; the others differ in the address.
const COMMANDS_FOR: usize = 2;

/// Everything that is wrong with a set, the most telling first. Nothing wrong: nothing.
pub fn diagnose(view: &SetView<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if view.listeners.is_empty() {
        findings.push(view.finding(
            Hint::NoListener,
            Level::Unknown,
            "no listener names this set: it gets no traffic".into(),
        ));
    }
    let groups = ill_by_outcome(view);
    findings.extend(common_cause(view, &groups));
    findings.extend(groups.iter().map(|group| group_finding(view, group)));
    findings.extend(unsteady(view));
    findings.extend(failing_traffic(
        view,
        Hint::TrafficUnanswered,
        |passive| passive.unanswered,
        "got no answer to their SYN: a firewall lets the checks through but not the traffic",
    ));
    findings.extend(failing_traffic(
        view,
        Hint::TrafficRefused,
        |passive| passive.refused,
        "were refused by the backend",
    ));
    if groups.is_empty() {
        findings.extend(view.listeners.iter().filter_map(|listener| no_traffic(view, listener)));
    }
    findings
}

impl SetView<'_> {
    fn finding(&self, hint: Hint, level: Level, text: String) -> Finding {
        Finding {
            hint,
            level,
            backend_set: self.name.into(),
            backends: Vec::new(),
            text,
            outcome: None,
            advice: Vec::new(),
            commands: Vec::new(),
        }
    }

    fn counted(&self) -> impl Iterator<Item = &BackendView<'_>> {
        self.backends.iter().filter(|backend| backend.counted)
    }

    fn spec(&self, backend: &BackendView<'_>) -> CheckSpec {
        CheckSpec::new(backend.backend, &self.set.health_check)
    }
}

fn names(backends: &[&BackendView<'_>]) -> Vec<String> {
    backends.iter().map(|backend| backend.backend.name.clone()).collect()
}

/// Backends whose last result is not good, those with the same outcome together, in the order of the file.
fn ill_by_outcome<'v>(view: &'v SetView<'_>) -> Vec<Vec<&'v BackendView<'v>>> {
    let mut groups: Vec<Vec<&BackendView<'_>>> = Vec::new();
    for backend in view.counted().filter(|backend| backend.result.outcome.verdict() != Some(true)) {
        let same = |group: &&mut Vec<&BackendView<'_>>| group[0].result.outcome == backend.result.outcome;
        match groups.iter_mut().find(same) {
            Some(group) => group.push(backend),
            None => groups.push(vec![backend]),
        }
    }
    groups
}

/// Servers seldom fail all at once and in the same way; a wrong check does it always.
fn common_cause(view: &SetView<'_>, groups: &[Vec<&BackendView<'_>>]) -> Option<Finding> {
    let [group] = groups else { return None };
    let outcome = &group[0].result.outcome;
    if group.len() < 2 || group.len() < view.counted().count() || outcome.verdict() != Some(false) {
        return None;
    }
    let text =
        format!("all {} backends, same reason: probably the health check, not the servers", group.len());
    Some(Finding {
        outcome: Some(outcome.clone()),
        advice: vec![format!(
            "if the servers are fine, correct [backend_set.{}.health_check]: protocol, port and what is expected",
            view.name
        )],
        ..view.finding(Hint::CheckProbablyWrong, Level::Critical, text)
    })
}

fn group_finding(view: &SetView<'_>, group: &[&BackendView<'_>]) -> Finding {
    let first = group[0];
    let cause = cause::of(&view.spec(first), first.result);
    let worst = if group.iter().any(|backend| backend.level == Level::Critical) {
        Level::Critical
    } else {
        first.level
    };
    let probed = group.iter().take(COMMANDS_FOR);
    Finding {
        backends: names(group),
        outcome: Some(first.result.outcome.clone()),
        advice: cause.advice,
        commands: probed.flat_map(|backend| commands(&view.spec(backend))).collect(),
        ..view.finding(cause.hint, worst, cause.text)
    }
}

/// Those whose last result is good and an earlier one was not.
fn unsteady(view: &SetView<'_>) -> Option<Finding> {
    let wavering = |backend: &&BackendView<'_>| {
        backend.level != Level::Ok && backend.result.outcome.verdict() == Some(true)
    };
    let backends: Vec<&BackendView<'_>> = view.counted().filter(wavering).collect();
    let level = backends.first()?.level;
    Some(Finding {
        backends: names(&backends),
        advice: vec![format!("`lb history {}` shows when and why", view.name)],
        ..view.finding(
            Hint::Unsteady,
            level,
            "the last result is good, but not all of the last ones are".into(),
        )
    })
}

/// Enough flows to speak of a rule and not of an accident.
const TELLING_FLOWS: u64 = 5;

/// Backends that pass their checks while at least half of their flows come to nothing. Few flows to each of many
/// backends tell as much as many to one.
fn failing_traffic(
    view: &SetView<'_>,
    hint: Hint,
    failed: impl Fn(&Passive) -> u64,
    what_happened: &str,
) -> Option<Finding> {
    let struck = |backend: &&BackendView<'_>| {
        let failed = failed(&backend.passive);
        backend.level == Level::Ok && failed > 0 && failed * 2 >= backend.passive.new_flows
    };
    let backends: Vec<&BackendView<'_>> = view.counted().filter(struck).collect();
    let first = backends.first()?;
    let flows: u64 = backends.iter().map(|backend| backend.passive.new_flows).sum();
    let failed: u64 = backends.iter().map(|backend| failed(&backend.passive)).sum();
    if failed < TELLING_FLOWS {
        return None;
    }
    Some(Finding {
        backends: names(&backends),
        advice: traffic_advice(view, first, hint),
        ..view.finding(
            hint,
            Level::Warning,
            format!("checks pass, but {failed} of {flows} flows {what_happened}"),
        )
    })
}

fn traffic_advice(view: &SetView<'_>, backend: &BackendView<'_>, hint: Hint) -> Vec<String> {
    let mut advice = Vec::new();
    let checked = view.spec(backend).target.port();
    let served = backend.backend.port;
    if checked != served && served != 0 {
        advice.push(format!("the check asks port {checked}, the traffic goes to port {served}"));
    }
    if hint == Hint::TrafficUnanswered {
        let source = match view.set.snat {
            Snat::Always => "the SNAT addresses",
            Snat::Auto | Snat::Never => "the clients and the SNAT addresses",
        };
        advice.push(format!(
            "the backend's firewall and security list must allow {source}, not only the checks"
        ));
        if view.set.snat != Snat::Always {
            let snat = view.set.snat.word();
            advice.push(format!(
                "with snat = \"{snat}\" the backend's route to the clients must lead through this host"
            ));
        }
    }
    let port = if served == 0 { String::new() } else { format!(" and port {served}") };
    advice.push(format!("on the backend: `tcpdump -ni any tcp{port}`"));
    advice
}

/// All backends are well, and nobody comes.
fn no_traffic(view: &SetView<'_>, view_of: &ListenerView<'_>) -> Option<Finding> {
    if view_of.new_flows > 0 || view.counted().next().is_none() {
        return None;
    }
    let listener = view_of.listener;
    let (ports, protocol) = (ports(listener.ports), listener.protocol.word());
    let text = format!(
        "all backends OK, no traffic: look at listener {} ({} {protocol} {ports})",
        listener.name, listener.address
    );
    let mut advice: Vec<String> = view_of
        .strays
        .iter()
        .map(|stray| {
            format!("arrived instead: {} packets to {} port {}", stray.packets, stray.protocol, stray.port)
        })
        .collect();
    let dropped = view_of.drops.iter().filter(|(_, packets)| *packets > 0);
    advice.extend(dropped.map(|(reason, packets)| format!("dropped: {packets} packets, {reason}")));
    advice.push(format!("are address, protocol ({protocol}) and port ({ports}) those that the clients use?"));
    advice.push(format!("do packets get here? `tcpdump -ni any host {}`", listener.address));
    advice.push("if not: look at the security list and the routes on the way".into());
    let command = match listener.ports {
        PortRange { first, .. } if protocol != "udp" => format!("nc -zvw3 {} {first}", listener.address),
        PortRange { first, .. } => format!("nc -zuvw3 {} {first}", listener.address),
    };
    advice.push(format!("from a client: `{command}`"));
    Some(Finding { advice, ..view.finding(Hint::NoTraffic, Level::Warning, text) })
}

fn ports(ports: PortRange) -> String {
    match ports {
        PortRange::EVERY => "every port".into(),
        PortRange { first, last } if first == last => first.to_string(),
        PortRange { first, last } => format!("{first}-{last}"),
    }
}
