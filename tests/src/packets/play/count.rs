//! Which counters a packet moves.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_common::Reason;
use lb_userspace::config::{Config, Listener, Protocol};

use super::{Player, Sent, Tuple};
use crate::packets::Counts;
use crate::packets::case::{Out, Pass, Reply, Step};
use crate::packets::oracle::{Dissected, Translation};

/// Whose traffic a packet is.
struct Traffic<'a> {
    listener: &'a Listener,
    /// Address that tells the backend.
    backend: SocketAddr,
    direction: &'static str,
}

impl<'a> Player<'a> {
    /// The counters that a packet on its way moves.
    pub(super) fn count_travelling(
        &mut self,
        step: &Step,
        sent: &Sent<'a>,
        before: &Dissected<'_>,
        out: &Out,
        to: &Translation,
    ) -> Result<Counts> {
        let (src, dst) = sent.tuple(before);
        let config = self.bench.config();
        if to.about.is_some() {
            let mut counts = notes(step)?;
            counts.add_reason("", Reason::IcmpTranslated, 1);
            return Ok(counts);
        }
        let traffic = traffic_of(config, before.protocol, (src, dst), (to.src, to.dst))?;
        let backend = match &out.to {
            Some(host) => {
                let address = self.network.host(host)?.address(self.family);
                SocketAddr::new(address, traffic.backend.port())
            }
            None => traffic.backend,
        };
        let mut whose = vec![format!("listener {}", traffic.listener.name)];
        whose.extend(backend_name(config, traffic.listener, backend));
        let mut counts = notes(step)?;
        for whose in whose {
            let direction = traffic.direction;
            counts.add(format!("{whose} {direction}.packets"), 1);
            counts.add(format!("{whose} {direction}.bytes"), before.ip_length() as u64);
            counts.add(format!("{whose} new_flows"), step.opens.into());
            counts.add(format!("{whose} refused"), step.refused.into());
        }
        if traffic.direction == "to_backend" {
            require_fit_source(config, before.protocol, (src, dst), to.src)?;
            if out.to.is_none() {
                self.require_unique((before.protocol, src, dst), (before.protocol, to.src, to.dst))?;
            }
        }
        Ok(counts)
    }

    /// The counters that a packet moves which ends here.
    pub(super) fn count_stopped(&self, step: &Step, sent: &Sent<'a>, moved: &Counts) -> Result<Counts> {
        let mut counts = notes(step)?;
        match &step.pass {
            Some(Pass::Named(name)) => counts.add_reason("", reason(name)?, 1),
            Some(Pass::Any(_)) => counts.add_any_pass(moved)?,
            None => {}
        }
        if step.hold {
            counts.add_reason("", Reason::FragmentHeld, 1);
        }
        self.count_drop(step, sent, &mut counts)?;
        Ok(counts)
    }

    /// The counters that a packet moves which the balancer answers.
    pub(super) fn count_answered(&self, step: &Step, sent: &Sent<'a>, reply: &Reply) -> Result<Counts> {
        let mut counts = notes(step)?;
        let note = match reply {
            Reply::Echo => Reason::EchoAnswered,
            _ => Reason::Answered,
        };
        counts.add_reason("", note, 1);
        self.count_drop(step, sent, &mut counts)?;
        Ok(counts)
    }

    fn count_drop(&self, step: &Step, sent: &Sent<'a>, counts: &mut Counts) -> Result<()> {
        let Some(name) = &step.drop else { return Ok(()) };
        let listener = step.listener.clone().unwrap_or_else(|| sent.listener(self.bench.config()));
        counts.add_reason(&listener, reason(name)?, 1);
        Ok(())
    }

    /// No two flows may look alike to a backend: (source, destination, protocol) is all it has to tell them apart.
    fn require_unique(&mut self, client: Tuple, seen: Tuple) -> Result<()> {
        self.owners.retain(|tuple, owner| *owner != client || *tuple == seen);
        match self.owners.insert(seen, client) {
            Some(owner) if owner != client && self.has_flow(owner)? => {
                Err(anyhow!("the backend cannot tell {client:?} from {owner:?}: both look like {seen:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the flow of this client's packets is still there: it may have ended to make room.
    fn has_flow(&mut self, (protocol, source, destination): Tuple) -> Result<bool> {
        let flows = self.bench.flows()?;
        Ok(flows.iter().any(|flow| (flow.protocol, flow.arrives) == (protocol, (source, destination))))
    }
}

/// What else a step says is counted.
fn notes(step: &Step) -> Result<Counts> {
    let mut counts = Counts::default();
    for name in &step.notes {
        counts.add_reason("", reason(name)?, 1);
    }
    Ok(counts)
}

/// Whose traffic a TCP or UDP packet is.
fn traffic_of(
    config: &Config,
    protocol: u8,
    before: (SocketAddr, SocketAddr),
    after: (SocketAddr, SocketAddr),
) -> Result<Traffic<'_>> {
    if let Some(listener) = listener_for(config, protocol, before.1) {
        return Ok(Traffic { listener, backend: after.1, direction: "to_backend" });
    }
    let listener = listener_for(config, protocol, after.0)
        .with_context(|| format!("an answer comes from a listener, not from {}", after.0))?;
    Ok(Traffic { listener, backend: before.0, direction: "to_client" })
}

/// A source that translation chose must be one that it may use.
fn require_fit_source(
    config: &Config,
    protocol: u8,
    (src, dst): (SocketAddr, SocketAddr),
    chosen: SocketAddr,
) -> Result<()> {
    if src == chosen {
        return Ok(());
    }
    let (port, range) = (chosen.port(), config.lb.snat_ports);
    ensure!(
        (range.first..=range.last).contains(&port),
        "the SNAT port {port} is outside of the range {}-{}",
        range.first,
        range.last
    );
    if let Some(listener) = listener_for(config, protocol, chosen) {
        bail!("the SNAT port {port} belongs to the listener `{}`", listener.name);
    }
    let mut allowed = config.lb.snat_addresses.clone();
    allowed.extend([src.ip(), dst.ip()]);
    ensure!(allowed.contains(&chosen.ip()), "{chosen} is no address to translate to");
    Ok(())
}

fn reason(name: &str) -> Result<Reason> {
    Reason::ALL.iter().copied().find(|reason| reason.name() == name).with_context(|| {
        let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        format!("expected one of the reasons {names:?}, found `{name}`")
    })
}

pub(super) fn listener_for(config: &Config, protocol: u8, address: SocketAddr) -> Option<&Listener> {
    let accepts = |listener: &&Listener| {
        let protocols: &[u8] = match listener.protocol {
            Protocol::Tcp => &[6],
            Protocol::Udp => &[17],
            Protocol::TcpAndUdp => &[6, 17],
        };
        listener.address == address.ip()
            // Destination options: a later fragment that does not tell what it is.
            && (protocol == 60 || protocols.contains(&protocol))
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
