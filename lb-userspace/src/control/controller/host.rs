//! What the controller puts on the host beside the maps: programs on interfaces, addresses, ports it keeps away from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result};
use tracing::{error, info};

use super::Controller;
use crate::dataplane::{self, Attachment};
use crate::network::vip::{self, Ours};

impl Controller {
    pub(super) fn attach(&mut self) -> Result<()> {
        let wanted = self.config.lb.interfaces.clone();
        let mut attached = Vec::new();
        for interface in &wanted {
            attached.push(self.dataplane.attach(interface, self.config.lb.xdp_mode)?);
        }
        self.attached = attached;
        self.lost.clear();
        for interface in self.dataplane.pinned_interfaces()? {
            if !wanted.contains(&interface) {
                info!(interface, "detached: the configuration no longer names it");
                self.dataplane.detach_interface(&interface)?;
            }
        }
        self.dataplane.settle()
    }

    /// Notices interfaces that go, and attaches again when one of their name comes.
    pub(super) fn follow_interfaces(&mut self) {
        let there = match self.dataplane.refresh_interfaces() {
            Ok(there) => there,
            Err(error) => {
                error!("cannot follow the interfaces of this host: {error:#}");
                return;
            }
        };
        let mut back = Vec::new();
        for (place, Attachment { interface, ifindex, .. }) in self.attached.iter().enumerate() {
            match there.get(interface) {
                Some(found) if found == ifindex => {}
                Some(_) => back.push(place),
                None if self.lost.insert(interface.clone()) => {
                    error!(
                        interface,
                        "is gone: nothing comes in by it until it is back, and attached to again"
                    );
                }
                None => {}
            }
        }
        for place in back {
            self.attach_again(place);
        }
    }

    /// To an interface that was made anew. What fails is tried again a second later, and told once.
    fn attach_again(&mut self, place: usize) {
        let interface = self.attached[place].interface.clone();
        let attached = self.dataplane.attach(&interface, self.config.lb.xdp_mode).and_then(|attachment| {
            self.attached[place] = attachment;
            self.assign_vips()
        });
        match attached {
            Ok(Ours { added, .. }) => {
                self.lost.remove(&interface);
                tokio::spawn(async move { vip::announce(&added).await });
            }
            Err(error) if self.lost.insert(interface.clone()) => {
                error!(interface, "is another one now, and cannot be attached to: {error:#}");
            }
            Err(_) => {}
        }
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
