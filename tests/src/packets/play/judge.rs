//! Compares verdict and frame with what a step expects.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};

use super::count::listener_for;
use super::{Player, Sent};
use crate::packets::case::{Out, Reply, Step};
use crate::packets::oracle::{self, Dissected, Error, State, Translation};
use crate::packets::{Answer, Counts, Verdict};

impl<'a> Player<'a> {
    /// Compares verdict and frame with what the step expects, and tells which counters must have moved.
    pub(super) fn judge(
        &mut self,
        step: &Step,
        sent: &Sent<'a>,
        answer: &Answer,
        moved: &Counts,
    ) -> Result<Counts> {
        let wanted = step.verdict();
        if answer.verdict != wanted {
            bail!(
                "expected the verdict {wanted:?}, found {:?}; these counters moved:\n{moved}\nout came:\n{}",
                answer.verdict,
                oracle::describe(&answer.frame)
            );
        }
        if let Some(out) = step.tx.as_ref().or(step.redirect.as_ref()) {
            return self.judge_travelling(step, sent, out, &answer.frame);
        }
        if let Some(reply) = &step.answer {
            let expected = self.reply(step, sent, reply, &answer.frame)?;
            oracle::require_equal(&expected, &answer.frame)?;
            oracle::require_right_checksums(&answer.frame)?;
            return self.count_answered(step, sent, reply);
        }
        oracle::require_equal(&sent.frame, &answer.frame).context("the frame was touched")?;
        if step.hold {
            self.require_held(sent)?;
        }
        self.count_stopped(step, sent, moved)
    }

    fn judge_travelling(&mut self, step: &Step, sent: &Sent<'a>, out: &Out, found: &[u8]) -> Result<Counts> {
        let before = Dissected::new(&sent.frame)?;
        let after = Dissected::new(found).with_context(|| format!("found:\n{}", oracle::describe(found)))?;
        let translation = self.translation(sent, out, &before, &after)?;
        let expected = before.translated(&translation)?;
        oracle::require_equal(&expected, found)?;
        if before.checksums().iter().all(|(_, state)| !matches!(state, State::Wrong(_))) {
            oracle::require_right_checksums(found)?;
        }
        if sent.packet.checksum.is_none() {
            self.reassembly.add(&after)?;
        }
        self.count_travelling(step, sent, &before, out, &translation)
    }

    /// What the step says that translation makes of a packet.
    fn translation(
        &mut self,
        sent: &Sent<'a>,
        out: &Out,
        before: &Dissected<'_>,
        after: &Dissected<'_>,
    ) -> Result<Translation> {
        let scope = self.scope(sent.number);
        let src = self.symbols.bind(&out.src, scope, after.src)?;
        let dst = self.symbols.bind(&out.dst, scope, after.dst)?;
        let about = match &out.about {
            Some(about) => {
                let found = after.about()?;
                let src = self.symbols.bind(&about.src, scope, found.src)?;
                Some((src, self.symbols.bind(&about.dst, scope, found.dst)?))
            }
            None => None,
        };
        let egress = match &out.via {
            Some(name) => self.network.interface(name)?,
            None => sent.ingress,
        };
        let dst_mac = match (out.dst_mac, &out.to) {
            (Some(mac), _) => mac,
            (None, Some(host)) => self.network.host(host)?.mac,
            (None, None) => self.network.owner(dst.ip())?.mac,
        };
        let ttl = out.ttl.unwrap_or(before.ttl.saturating_sub(1));
        Ok(Translation { src, dst, src_mac: egress.mac, dst_mac, ttl, about })
    }

    /// The frame that the balancer must answer with.
    fn reply(&mut self, step: &Step, sent: &Sent<'a>, reply: &Reply, found: &[u8]) -> Result<Vec<u8>> {
        let before = Dissected::new(&sent.frame)?;
        match reply {
            Reply::Rst => before.rst(),
            Reply::PortUnreachable => before.error(Error::PortUnreachable, before.dst.ip()),
            Reply::TooBig(mtu) => before.error(Error::TooBig(*mtu), self.vip(step, &before)?),
            Reply::Echo => before.echo_reply(),
            Reply::TurnedIntoRst(out) => {
                let after = Dissected::new(found)?;
                let translation = self.translation(sent, out, &before, &after)?;
                before.turned_into_rst(&translation)
            }
        }
    }

    /// The VIP that a packet is about: its destination, or that of the listener the step names.
    fn vip(&self, step: &Step, before: &Dissected<'_>) -> Result<std::net::IpAddr> {
        let config = self.bench.config();
        if let Some(name) = &step.listener {
            let listener = config.listeners.iter().find(|listener| listener.name == *name);
            return Ok(listener.with_context(|| format!("there is no listener `{name}`"))?.address);
        }
        Ok(before.dst.ip())
    }

    /// Requires the fragment that was sent to be in the hands of the controller.
    fn require_held(&mut self, sent: &Sent<'a>) -> Result<()> {
        let held = self.bench.held()?.context("the controller did not get the fragment")?;
        oracle::require_equal(&sent.frame, &held.frame).context("the controller got another frame")?;
        ensure!(
            held.ingress == sent.ingress.index,
            "expected the fragment to be held for interface {}, found {}",
            sent.ingress.index,
            held.ingress
        );
        Ok(())
    }
}

impl Sent<'_> {
    /// Source and destination: as the case says, which knows the ports of a later fragment too, or as the frame does.
    pub(super) fn tuple(&self, frame: &Dissected<'_>) -> (SocketAddr, SocketAddr) {
        self.ends.map_or((frame.src, frame.dst), |ends| (ends.src, ends.dst))
    }

    /// IP protocol number.
    pub(super) fn protocol(&self) -> u8 {
        match Dissected::new(&self.frame) {
            Ok(frame) => frame.protocol,
            Err(_) if self.packet.udp => 17,
            Err(_) => 6,
        }
    }

    /// Name of the listener that it is for; empty if there is none.
    pub(super) fn listener(&self, config: &lb_userspace::config::Config) -> String {
        let Some(ends) = self.ends else { return String::new() };
        let listener = listener_for(config, self.protocol(), ends.dst);
        listener.map(|listener| listener.name.clone()).unwrap_or_default()
    }
}

impl Step {
    /// What the program must decide.
    fn verdict(&self) -> Verdict {
        match (&self.tx, &self.redirect, &self.answer) {
            (Some(_), ..) => Verdict::Tx,
            (_, Some(_), _) => Verdict::Redirect,
            (.., Some(Reply::TurnedIntoRst(out))) if out.via.is_some() => Verdict::Redirect,
            (.., Some(_)) => Verdict::Tx,
            _ if self.drop.is_some() || self.hold => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }
}
