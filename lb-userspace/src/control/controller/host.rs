//! What the controller puts on the host beside the maps: programs on interfaces, addresses, ports it keeps away from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result};
use tracing::{error, info};

use super::Controller;
use crate::dataplane;
use crate::network::vip::{self, Ours};

impl Controller {
    pub(super) fn attach(&mut self) -> Result<()> {
        let wanted = self.config.lb.interfaces.clone();
        let mut attached = Vec::new();
        for interface in &wanted {
            attached.push((interface.clone(), self.dataplane.attach(interface, self.config.lb.xdp_mode)?));
        }
        self.attached = attached;
        for interface in self.dataplane.pinned_interfaces()? {
            if !wanted.contains(&interface) {
                info!(interface, "detached: the configuration no longer names it");
                self.dataplane.detach_interface(&interface)?;
            }
        }
        self.dataplane.settle()
    }

    /// Adds the VIPs that the host lacks, and removes those the configuration has lost. SNAT addresses too: somebody
    /// has to answer the backends when they ask for them.
    pub(super) fn assign_vips(&self) -> Result<Ours> {
        let config = &self.config;
        let mut vips: BTreeSet<IpAddr> = config.listeners.iter().map(|listener| listener.address).collect();
        vips.extend(&config.lb.snat_addresses);
        if !config.lb.assign_vips {
            vips.clear();
        }
        let run_dir = self.instance.run_dir();
        vip::release(&run_dir, &vips).context("cannot remove the addresses that are no longer VIPs")?;
        vip::assign(&run_dir, &vips, &self.config.lb.interfaces).context("cannot assign the VIPs")
    }

    /// Removes everything this instance has put on the host: program and maps, then its addresses.
    pub(super) fn detach(&self) -> Result<()> {
        dataplane::detach(&self.instance.pins())?;
        vip::release(&self.instance.run_dir(), &BTreeSet::new())
            .context("cannot remove the assigned addresses")?;
        Ok(())
    }

    /// Keeps SNAT away from ports that the host itself uses.
    pub(super) fn look_at_host_ports(&mut self) {
        let addresses = self.desired.vips.keys().copied().collect();
        let refreshed =
            tokio::task::block_in_place(|| self.host_ports.refresh(&mut self.dataplane.maps, &addresses));
        refreshed.unwrap_or_else(|error| error!("cannot keep away from the host's ports: {error:#}"));
    }

    pub(super) fn judge_host_ports(&mut self) {
        let judged = self.host_ports.judge(&self.config, &self.instance.run_dir());
        judged.unwrap_or_else(|error| error!("cannot judge the ports for SNAT: {error:#}"));
    }
}
