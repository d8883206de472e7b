//! Plays a case step by step against the real program, and checks after each packet: the verdict, every byte of
//! the frame, all counters; and, whatever the case says, that checksums are right, that a frame which does not
//! travel on is untouched, and that no two flows look alike to a backend.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_common::Reason;
use lb_userspace::config::{Config, Listener, Protocol};
use lb_userspace::control::{Health, Way};
use lb_userspace::dataplane::collect::GRAIN;
use toml::Table;

use super::case::{Case, CaseFile, Out, Packet, Pass, Step};
use super::interfaces;
use super::network::Interface;
use super::oracle::{self, Dissected, State, Translation};
use super::packet::{self, Ends};
use super::symbols::{Scope, Symbols};
use super::{Answer, Bench, Counts, Family, Network, Verdict, settings};

/// Plays a case for one IP version.
///
/// # Errors
///
/// Says what was expected, what was found, and in which line of the file the step is.
pub fn play(file: &CaseFile, case: &Case, network: &Network, family: Family) -> Result<()> {
    let place = |line| format!("{}:{line}", file.path.display());
    let begin = || {
        let why = case.why.as_ref().map_or(String::new(), |why| format!(" ({why})"));
        format!("{}: {}{why}", place(file.line(&case.name)), case.name.get_ref())
    };
    let mut player = Player::new(file, case, network, family).with_context(begin)?;
    for (number, step) in case.steps.iter().enumerate() {
        player
            .step(step.get_ref())
            .with_context(|| format!("{}: step {}", place(file.line(step)), number + 1))
            .with_context(begin)?;
    }
    Ok(())
}

/// A tuple: protocol, source, destination.
type Tuple = (u8, SocketAddr, SocketAddr);

struct Player<'a> {
    network: &'a Network,
    family: Family,
    table: Table,
    bench: Bench,
    symbols: Symbols,
    /// Which client tuple each tuple that a backend sees belongs to.
    owners: BTreeMap<Tuple, Tuple>,
}

/// A packet of a step, about to be judged.
struct Sent<'a> {
    packet: &'a Packet,
    frame: Vec<u8>,
    ends: Option<Ends>,
    ingress: Interface,
    number: u16,
}

impl<'a> Player<'a> {
    fn new(file: &CaseFile, case: &Case, network: &'a Network, family: Family) -> Result<Self> {
        let mut table = file.topic.config.clone();
        settings::merge(&mut table, &case.change);
        let config = settings::parse(&table, network, family)?;
        let sends_elsewhere = |step: &Step| step.send.as_ref().is_some_and(|packet| packet.on.is_some());
        if case.steps.iter().any(|step| sends_elsewhere(step.get_ref())) {
            interfaces::enter(network)?;
        }
        let mut bench = Bench::new(config, network.states(family)?)?;
        bench.introduce(network)?;
        Ok(Self { network, family, table, bench, symbols: Symbols::default(), owners: BTreeMap::new() })
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        self.surroundings(step)?;
        match &step.send {
            Some(packet) => {
                for number in 0..step.repeat.unwrap_or(1) {
                    self.packet(step, packet, number).with_context(|| format!("packet {number}"))?;
                }
            }
            None => ensure!(step.outcomes() == 0, "a step without `send` expects a packet"),
        }
        if let Some(expected) = step.connections {
            let flows = self.bench.flows()?;
            ensure!(
                flows.len() == expected,
                "expected {expected} connections, found {}: {flows:#?}",
                flows.len()
            );
        }
        Ok(())
    }

    /// Changes what the step changes.
    fn surroundings(&mut self, step: &Step) -> Result<()> {
        if let Some(change) = &step.change {
            settings::merge(&mut self.table, change);
        }
        let mut states = self.bench.states().clone();
        for (backend, health) in &step.health {
            let health = match health.as_str() {
                "healthy" => Health::Healthy,
                "unhealthy" => Health::Unhealthy,
                "unknown" => Health::Unknown,
                other => bail!("expected healthy, unhealthy or unknown, found `{other}`"),
            };
            states.health.insert(backend.clone(), health);
        }
        for (name, state) in &step.next_hop {
            let host = self.network.host(name)?;
            let way = match state.as_str() {
                "resolved" => self.network.way(host, self.family)?,
                "unresolved" => Way::default(),
                other => bail!("expected resolved or unresolved, found `{other}`"),
            };
            states.ways.insert(host.address(self.family), way);
        }
        if step.change.is_some() || !step.health.is_empty() || !step.next_hop.is_empty() {
            self.bench.update(settings::parse(&self.table, self.network, self.family)?, states)?;
        }
        if step.restart {
            self.bench.restart()?;
        }
        if let Some(seconds) = step.wait_s {
            // Flows are given that much longer, since the time of their last packet is coarse.
            self.bench.age(Duration::from_secs(seconds) + GRAIN)?;
            self.bench.sweep()?;
            self.forget_ended_flows()?;
        }
        Ok(())
    }

    /// A tuple that a backend saw may be given to another flow once its own has ended.
    fn forget_ended_flows(&mut self) -> Result<()> {
        let flows = self.bench.flows()?;
        let is_alive = |tuple: &Tuple| flows.iter().any(|flow| (flow.protocol, flow.leaves) == key(*tuple));
        self.owners.retain(|tuple, _| is_alive(tuple));
        Ok(())
    }

    fn packet(&mut self, step: &Step, packet: &Packet, number: u16) -> Result<()> {
        ensure!(
            step.outcomes() == 1,
            "a step that sends a packet expects exactly one of `tx`, `redirect`, `pass` and `drop`"
        );
        let sent = self.build(packet, number)?;
        let before = self.bench.counts()?;
        let answer = self.bench.send(&sent.frame, sent.ingress.index)?;
        let moved = self.bench.counts()?.since(&before);
        let judged = self.judge(step, &sent, &answer);
        let expected = judged.with_context(|| format!("sent:\n{}", oracle::describe(&sent.frame)))?;
        ensure!(moved == expected, "expected these counters to move:\n{expected}\nfound:\n{moved}");
        Ok(())
    }

    fn build(&self, packet: &'a Packet, number: u16) -> Result<Sent<'a>> {
        let ingress = self.network.interface(packet.on.as_deref().unwrap_or(Network::FRONT))?;
        let (frame, ends) = match &packet.hex {
            Some(hex) => (hex.0.clone(), None),
            None => {
                let ends = Ends::of(packet, &self.symbols, self.scope(number), ingress)?;
                (packet::build(packet, &ends)?, Some(ends))
            }
        };
        Ok(Sent { packet, frame, ends, ingress, number })
    }

    const fn scope(&self, number: u16) -> Scope<'a> {
        Scope { network: self.network, family: self.family, number }
    }

    /// Compares verdict and frame with what the step expects, and tells which counters must have moved.
    fn judge(&mut self, step: &Step, sent: &Sent<'_>, answer: &Answer) -> Result<Counts> {
        let wanted = match (&step.tx, &step.redirect, &step.drop) {
            (Some(_), ..) => Verdict::Tx,
            (_, Some(_), _) => Verdict::Redirect,
            (.., Some(_)) => Verdict::Drop,
            _ => Verdict::Pass,
        };
        if answer.verdict != wanted {
            bail!(
                "expected the verdict {wanted:?}, found {:?}; counters so far:\n{}",
                answer.verdict,
                self.bench.counts()?
            );
        }
        match step.tx.as_ref().or(step.redirect.as_ref()) {
            Some(out) => self.judge_travelling(step, sent, out, &answer.frame),
            None => {
                oracle::require_equal(&sent.frame, &answer.frame).context("the frame was touched")?;
                self.count_stopped(step, sent)
            }
        }
    }

    fn judge_travelling(&mut self, step: &Step, sent: &Sent<'_>, out: &Out, found: &[u8]) -> Result<Counts> {
        let before = Dissected::new(&sent.frame)?;
        let after = Dissected::new(found).with_context(|| format!("found:\n{}", oracle::describe(found)))?;
        let scope = self.scope(sent.number);
        let src = self.symbols.bind(&out.src, scope, after.src)?;
        let dst = self.symbols.bind(&out.dst, scope, after.dst)?;
        let egress = match &out.via {
            Some(name) => self.network.interface(name)?,
            None => sent.ingress,
        };
        let dst_mac = match out.dst_mac {
            Some(mac) => mac,
            None => self.network.owner(dst.ip())?.mac,
        };
        let ttl = out.ttl.unwrap_or(before.ttl.saturating_sub(1));
        let expected = before.translated(&Translation { src, dst, src_mac: egress.mac, dst_mac, ttl })?;
        oracle::require_equal(&expected, found)?;
        let was_right =
            before.ip_checksum() == State::Right && !matches!(before.transport_checksum(), State::Wrong(_));
        if was_right {
            oracle::require_right_checksums(found)?;
        }
        self.count_travelling(step, &before, &after)
    }

    /// The counters that a packet on its way moves.
    fn count_travelling(
        &mut self,
        step: &Step,
        before: &Dissected<'_>,
        after: &Dissected<'_>,
    ) -> Result<Counts> {
        let config = self.bench.config();
        let to_backend = listener_for(config, before.protocol, before.dst);
        let (listener, backend, direction) = match to_backend {
            Some(listener) => (listener, after.dst, "to_backend"),
            None => {
                let listener = listener_for(config, after.protocol, after.src)
                    .with_context(|| format!("an answer comes from a listener, not from {}", after.src))?;
                (listener, before.src, "to_client")
            }
        };
        let mut whose = vec![format!("listener {}", listener.name)];
        whose.extend(backend_name(config, listener, backend));
        let mut counts = Counts::default();
        for whose in whose {
            counts.add(format!("{whose} {direction}.packets"), 1);
            counts.add(format!("{whose} {direction}.bytes"), before.ip_length() as u64);
            counts.add(format!("{whose} new_flows"), step.opens.into());
            counts.add(format!("{whose} refused"), step.refused.into());
        }
        if to_backend.is_some() {
            require_fit_source(config, before, after)?;
            self.require_unique(before, after)?;
        }
        Ok(counts)
    }

    /// The counters that a packet moves which ends here.
    fn count_stopped(&self, step: &Step, sent: &Sent<'_>) -> Result<Counts> {
        let mut counts = Counts::default();
        if let Some(Pass::Counted(name)) = &step.pass {
            counts.add_drop("", reason(name)?, 1);
        }
        let Some(name) = &step.drop else { return Ok(counts) };
        let protocol = if sent.packet.udp { 17 } else { 6 };
        let listener = match (&step.listener, sent.ends) {
            (Some(name), _) => name.clone(),
            (None, Some(ends)) => {
                let listener = listener_for(self.bench.config(), protocol, ends.dst);
                listener.map(|listener| listener.name.clone()).unwrap_or_default()
            }
            (None, None) => String::new(),
        };
        counts.add_drop(&listener, reason(name)?, 1);
        Ok(counts)
    }

    /// No two flows may look alike to a backend: (source, destination, protocol) is all it has to tell them apart.
    fn require_unique(&mut self, before: &Dissected<'_>, after: &Dissected<'_>) -> Result<()> {
        let client: Tuple = (before.protocol, before.src, before.dst);
        let seen: Tuple = (after.protocol, after.src, after.dst);
        self.owners.retain(|tuple, owner| *owner != client || *tuple == seen);
        match self.owners.insert(seen, client) {
            Some(owner) if owner != client => {
                Err(anyhow!("the backend cannot tell {client:?} from {owner:?}: both look like {seen:?}"))
            }
            _ => Ok(()),
        }
    }
}

impl Step {
    /// How many outcomes a packet is said to have.
    fn outcomes(&self) -> usize {
        let outcomes = [self.tx.is_some(), self.redirect.is_some(), self.pass.is_some(), self.drop.is_some()];
        outcomes.into_iter().filter(|&is_said| is_said).count()
    }
}

const fn key((protocol, src, dst): Tuple) -> (u8, (SocketAddr, SocketAddr)) {
    (protocol, (src, dst))
}

/// A source that translation chose must be one that it may use.
fn require_fit_source(config: &Config, before: &Dissected<'_>, after: &Dissected<'_>) -> Result<()> {
    if before.src == after.src {
        return Ok(());
    }
    let (port, range) = (after.src.port(), config.lb.snat_ports);
    ensure!(
        (range.first..=range.last).contains(&port),
        "the SNAT port {port} is outside of the range {}-{}",
        range.first,
        range.last
    );
    if let Some(listener) = listener_for(config, after.protocol, after.src) {
        bail!("the SNAT port {port} belongs to the listener `{}`", listener.name);
    }
    let mut allowed = config.lb.snat_addresses.clone();
    allowed.extend([before.src.ip(), before.dst.ip()]);
    ensure!(allowed.contains(&after.src.ip()), "{} is no address to translate to", after.src);
    Ok(())
}

fn reason(name: &str) -> Result<Reason> {
    Reason::ALL.iter().copied().find(|reason| reason.name() == name).with_context(|| {
        let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        format!("expected one of the reasons {names:?}, found `{name}`")
    })
}

fn listener_for(config: &Config, protocol: u8, address: SocketAddr) -> Option<&Listener> {
    let accepts = |listener: &&Listener| {
        let protocols: &[u8] = match listener.protocol {
            Protocol::Tcp => &[6],
            Protocol::Udp => &[17],
            Protocol::TcpAndUdp => &[6, 17],
        };
        listener.address == address.ip()
            && protocols.contains(&protocol)
            && (listener.ports.first..=listener.ports.last).contains(&address.port())
    };
    config.listeners.iter().find(accepts)
}

/// The counters' name of a backend; `None` if the configuration no longer names it.
fn backend_name(config: &Config, listener: &Listener, address: SocketAddr) -> Option<String> {
    let set = config.backend_sets.get(&listener.backend_set)?;
    let backend = set.backends.iter().find(|backend| {
        backend.address == address.ip() && (backend.port == 0 || backend.port == address.port())
    })?;
    Some(format!("backend {}/{}", listener.backend_set, backend.name))
}
