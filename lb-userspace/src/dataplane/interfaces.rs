//! The MACs of attached interfaces: the program takes a frame for this host's by them.

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use tracing::info;

use super::load::Dataplane;

/// An interface of this network namespace.
struct Link {
    name: String,
    ifindex: u32,
    mac: [u8; 6],
}

impl Dataplane {
    /// Tells the program the MAC of an interface, before its first frame comes.
    pub(super) fn introduce(&mut self, interface: &str) -> Result<()> {
        let links = links()?;
        let link = links.iter().find(|link| link.name == interface);
        let link = link.with_context(|| {
            let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
            format!("expected an interface {interface} with a MAC, found {}", names.join(", "))
        })?;
        self.maps.set_interface(link.ifindex, link.mac)
    }

    /// Takes note of MACs that have changed, and forgets interfaces that are gone.
    ///
    /// # Errors
    ///
    /// If the host does not tell its interfaces, or the map cannot be written.
    pub fn refresh_macs(&mut self) -> Result<()> {
        let links = links()?;
        for (ifindex, known) in self.maps.interfaces()? {
            match links.iter().find(|link| link.ifindex == ifindex) {
                Some(link) if link.mac != known => {
                    self.maps.set_interface(ifindex, link.mac)?;
                    info!(interface = link.name, "its MAC has changed");
                }
                Some(_) => {}
                None => self.maps.remove_interface(ifindex)?,
            }
        }
        Ok(())
    }

    /// Forgets an interface that the program is detached from.
    pub(super) fn forget(&mut self, interface: &str) -> Result<()> {
        let known = self.maps.interfaces()?;
        let link = links()?.into_iter().find(|link| link.name == interface);
        match link.filter(|link| known.iter().any(|&(ifindex, _)| ifindex == link.ifindex)) {
            Some(link) => self.maps.remove_interface(link.ifindex),
            None => Ok(()),
        }
    }
}

/// The interfaces of this network namespace. Asked by netlink: `/sys` may be that of another namespace.
fn links() -> Result<Vec<Link>> {
    let addresses = getifaddrs().context("cannot list the interfaces of this host")?;
    let link = |entry: nix::ifaddrs::InterfaceAddress| {
        let address = *entry.address?.as_link_addr()?;
        let ifindex = u32::try_from(address.ifindex()).ok()?;
        Some(Link { name: entry.interface_name, ifindex, mac: address.addr()? })
    };
    Ok(addresses.filter_map(link).collect())
}
