//! What the program must know of the interfaces it is attached to: the MAC by which it takes a frame for this host's,
//! and how large a packet may leave by them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lb_common::InterfaceMac;
use tracing::info;

use super::attach::AttachedMode;
use super::load::Dataplane;
use crate::network::{self, Interface};

impl Dataplane {
    /// Tells the program of an interface, before its first frame comes; gives back its number.
    pub(super) fn introduce(&mut self, name: &str, mode: AttachedMode) -> Result<u32> {
        let interfaces = interfaces()?;
        let interface = interfaces.iter().find(|interface| interface.name == name);
        let interface = interface.with_context(|| {
            let names: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
            format!("cannot attach to interface {name}: there is none; there are {}", names.join(", "))
        })?;
        let flags = if mode == AttachedMode::Generic { InterfaceMac::GENERIC } else { 0 };
        self.maps.set_interface(interface.ifindex, &record(interface, flags))?;
        Ok(interface.ifindex)
    }

    /// Takes note of MACs and MTUs that have changed, and forgets interfaces that are gone. Gives back the numbers of
    /// those that are there, by name.
    ///
    /// # Errors
    ///
    /// If the host does not tell its interfaces, or the map cannot be written.
    pub fn refresh_interfaces(&mut self) -> Result<BTreeMap<String, u32>> {
        let interfaces = interfaces()?;
        for (ifindex, known) in self.maps.interfaces()? {
            let Some(interface) = interfaces.iter().find(|interface| interface.ifindex == ifindex) else {
                self.maps.remove_interface(ifindex)?;
                continue;
            };
            let now = record(interface, known.flags);
            if now != known {
                self.maps.set_interface(ifindex, &now)?;
                info!(interface = interface.name, mtu = interface.mtu, "its MAC or its MTU has changed");
            }
        }
        Ok(interfaces.into_iter().map(|interface| (interface.name, interface.ifindex)).collect())
    }

    /// Forgets an interface that the program is detached from.
    pub(super) fn forget(&mut self, name: &str) -> Result<()> {
        let known = self.maps.interfaces()?;
        let interface = interfaces()?.into_iter().find(|interface| interface.name == name);
        match interface.filter(|found| known.iter().any(|&(ifindex, _)| ifindex == found.ifindex)) {
            Some(interface) => self.maps.remove_interface(interface.ifindex),
            None => Ok(()),
        }
    }
}

fn interfaces() -> Result<Vec<Interface>> {
    network::interfaces().context("cannot list the interfaces of this host")
}

fn record(interface: &Interface, flags: u32) -> InterfaceMac {
    // No IP packet is longer than 65,535 bytes; loopback's MTU is one more.
    let mtu = u16::try_from(interface.mtu).unwrap_or(u16::MAX);
    InterfaceMac { mac: interface.mac, mtu, flags }
}
