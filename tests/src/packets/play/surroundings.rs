//! What a step changes before its packet: configuration, health, network, time.

use std::time::Duration;

use anyhow::{Result, bail};
use lb_common::InterfaceMac;
use lb_userspace::control::{Health, Way};

use super::{Player, Tuple};
use crate::packets::case::Step;
use crate::packets::{States, settings};

impl Player<'_> {
    /// Changes what the step changes.
    pub(super) fn surroundings(&mut self, step: &Step) -> Result<()> {
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
        self.links(step, &mut states)?;
        let is_network = !step.next_hop.is_empty() || !step.mtu.is_empty();
        if step.change.is_some() || !step.health.is_empty() || is_network {
            self.bench.update(settings::parse(&self.table, self.network, self.family)?, states)?;
        }
        if step.restart {
            self.bench.restart()?;
        }
        if let Some(flows) = step.room_for {
            self.bench.fill(flows)?;
        }
        if step.cut {
            self.bench.cut()?;
        }
        if let Some(seconds) = step.wait_s {
            // No time at all leaves the copies that the program keeps of flows.
            if seconds > 0 {
                self.bench.age(Duration::from_secs(seconds))?;
            }
            self.bench.sweep()?;
            self.forget_ended_flows()?;
        }
        Ok(())
    }

    /// A tuple that a backend saw may be given to another flow once its own has ended.
    fn forget_ended_flows(&mut self) -> Result<()> {
        let flows = self.bench.flows()?;
        let is_alive =
            |tuple: &Tuple| flows.iter().any(|flow| (flow.protocol, flow.leaves.0, flow.leaves.1) == *tuple);
        self.owners.retain(|tuple, _| is_alive(tuple));
        Ok(())
    }

    /// Tells the program of MTUs and generic interfaces.
    fn links(&mut self, step: &Step, states: &mut States) -> Result<()> {
        for (name, &mtu) in &step.mtu {
            if let Some(interface) = self.interfaces.get_mut(name) {
                interface.mtu = mtu;
                self.bench.set_interface(self.network.interface(name)?.index, *interface)?;
                continue;
            }
            let host = self.network.host(name)?;
            let way = self.network.way(host, self.family)?;
            states.ways.insert(host.address(self.family), Way { mtu, ..way });
        }
        for name in &step.generic {
            let index = self.network.interface(name)?.index;
            if let Some(interface) = self.interfaces.get_mut(name) {
                interface.flags |= InterfaceMac::GENERIC;
                self.bench.set_interface(index, *interface)?;
            }
        }
        Ok(())
    }
}
