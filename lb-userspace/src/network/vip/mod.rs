//! The virtual addresses of the listeners: added to this host, announced, and removed again.
//!
//! What was added is recorded in the run directory before it is added, so that a crash at any moment leaves nothing
//! behind that a later `lb detach` does not find. An address that was on the host before is somebody else's: it is
//! left alone, and never removed.

mod announce;
mod packet_socket;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::Error;
use super::netlink::{HostAddress, Link, Netlink};
pub use announce::announce;
use record::Record;

/// A virtual address this program has added to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The address; /32 or /128.
    pub vip: IpAddr,
    /// Name of the interface.
    pub interface: String,
}

/// The virtual addresses that are this program's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ours {
    /// All of them: those just added and those that an earlier call or process added.
    pub all: Vec<Assigned>,
    /// Those just added.
    pub added: Vec<Assigned>,
}

/// Adds each of `vips` that is not on the host yet, and returns those that are this program's, to [`announce()`].
///
/// An address goes to the one of `interfaces` whose connected prefix contains it (the longest, if several do), else
/// to the first. The host never chooses it as source of its own connections: IPv4 addresses have scope `host`, IPv6
/// addresses are deprecated (RFC 6724, section 5, rule 3). IPv6 addresses are usable at once, without duplicate
/// address detection.
///
/// # Errors
/// Whatever was added before the error stays in the record in `run_dir`; [`release`] removes it.
pub fn assign(run_dir: &Path, vips: &BTreeSet<IpAddr>, interfaces: &[String]) -> Result<Ours, Error> {
    let mut netlink = Netlink::open()?;
    let mut record = Record::read(run_dir)?;
    let host = Host { links: netlink.links()?, addresses: netlink.addresses()? };
    let mut missing = BTreeMap::new();
    for &vip in vips {
        match host.interface_with(vip) {
            None => {
                let (ifindex, interface) = host.choose(vip, interfaces)?;
                record.insert(vip, interface.to_owned());
                missing.insert(vip, ifindex);
            }
            Some(interface) if record.interface(vip) == Some(interface) => {}
            Some(interface) => {
                tracing::info!(%vip, interface, "the address is on this host already and stays as it is");
                record.remove(vip);
            }
        }
    }
    record.write(run_dir)?;
    for (&vip, &ifindex) in &missing {
        netlink
            .add_vip(ifindex, vip)
            .map_err(|source| Error::kernel(format!("add {vip} to {}", host.name(ifindex)), source))?;
    }
    let ours = record.iter().filter(|(vip, _)| vips.contains(vip));
    let all: Vec<_> =
        ours.map(|(vip, interface)| Assigned { vip, interface: interface.to_owned() }).collect();
    let added = all.iter().filter(|assigned| missing.contains_key(&assigned.vip)).cloned().collect();
    Ok(Ours { all, added })
}

/// Removes the addresses that [`assign`] added, in this process or an earlier one, except those in `keep`; returns
/// what was removed. An address that is gone already, or whose interface is, counts as removed.
///
/// # Errors
/// What cannot be removed stays in the record, and the others are removed nevertheless.
pub fn release(run_dir: &Path, keep: &BTreeSet<IpAddr>) -> Result<Vec<Assigned>, Error> {
    let mut record = Record::read(run_dir)?;
    let leaving: Vec<_> = record
        .iter()
        .filter(|(vip, _)| !keep.contains(vip))
        .map(|(vip, interface)| Assigned { vip, interface: interface.to_owned() })
        .collect();
    if leaving.is_empty() {
        return Ok(leaving);
    }
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let mut released = Vec::new();
    let mut errors = Vec::new();
    for address in leaving {
        match delete(&mut netlink, &links, &address) {
            Ok(()) => {
                record.remove(address.vip);
                released.push(address);
            }
            Err(error) => errors.push(error),
        }
    }
    record.write(run_dir)?;
    if errors.is_empty() { Ok(released) } else { Err(Error::Release(errors)) }
}

/// The addresses of this host that it had without [`assign`], and may use for connections of its own.
///
/// # Errors
/// If the kernel does not tell them, or the record in `run_dir` cannot be read.
pub fn own_addresses(run_dir: &Path) -> Result<BTreeSet<IpAddr>, Error> {
    let record = Record::read(run_dir)?;
    let addresses = Netlink::open()?.addresses()?.into_iter().map(|own| own.address);
    Ok(addresses.filter(|&address| record.interface(address).is_none()).collect())
}

fn delete(netlink: &mut Netlink, links: &BTreeMap<u32, Link>, address: &Assigned) -> Result<(), Error> {
    let Some((&ifindex, _)) = links.iter().find(|(_, link)| *link.name == *address.interface) else {
        return Ok(());
    };
    match netlink.delete_vip(ifindex, address.vip) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => {
            Err(Error::kernel(format!("remove {} from {}", address.vip, address.interface), error))
        }
        _ => Ok(()),
    }
}

/// The links and addresses of this host.
struct Host {
    links: BTreeMap<u32, Link>,
    addresses: Vec<HostAddress>,
}

impl Host {
    fn name(&self, ifindex: u32) -> &str {
        self.links.get(&ifindex).map_or("?", |link| &link.name)
    }

    /// Name of the interface that has an address.
    fn interface_with(&self, vip: IpAddr) -> Option<&str> {
        let own = self.addresses.iter().find(|own| own.address == vip)?;
        Some(self.name(own.ifindex))
    }

    /// Index and name of the interface an address belongs on.
    fn choose<'a>(&self, vip: IpAddr, interfaces: &'a [String]) -> Result<(u32, &'a str), Error> {
        let mut candidates = Vec::new();
        for name in interfaces {
            let link = self.links.iter().find(|(_, link)| *link.name == **name);
            let (&ifindex, _) = link.ok_or_else(|| Error::NoInterface { name: name.clone() })?;
            candidates.push((ifindex, name.as_str()));
        }
        let prefix_len = |ifindex| {
            let on_it = self.addresses.iter().filter(|own| own.ifindex == ifindex);
            let prefixes = on_it.filter_map(|own| IpNet::new(own.address, own.prefix_len).ok());
            prefixes.filter(|prefix| prefix.contains(&vip)).map(|prefix| prefix.prefix_len()).max()
        };
        // `max_by_key` takes the last of equals; the first interface named is to win.
        let best = candidates.into_iter().rev().max_by_key(|&(ifindex, _)| prefix_len(ifindex));
        best.ok_or(Error::NoInterfaces { vip })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        let link = |name: &str| Link { name: name.into(), mac: Some([2; 6]), mtu: 1500, up: true };
        let own = |ifindex, address: &str| {
            let prefix: IpNet = address.parse().expect("a prefix");
            HostAddress { ifindex, address: prefix.addr(), prefix_len: prefix.prefix_len(), verified: true }
        };
        Host {
            links: [(1, link("lo")), (2, link("eth0")), (3, link("eth1"))].into(),
            addresses: vec![
                own(2, "192.0.2.5/24"),
                own(2, "10.0.0.5/8"),
                own(3, "10.0.1.5/24"),
                own(3, "fd00:1::5/64"),
            ],
        }
    }

    #[test]
    fn a_vip_goes_where_its_prefix_is_connected_and_else_to_the_first_interface() {
        let both = ["eth0".to_owned(), "eth1".to_owned()];
        for (vip, interface) in [
            ("192.0.2.100", "eth0"),
            ("10.0.1.100", "eth1"),
            ("10.0.2.100", "eth0"),
            ("fd00:1::100", "eth1"),
            ("203.0.113.1", "eth0"),
            ("fd00:2::100", "eth0"),
        ] {
            let (_, chosen) = host().choose(vip.parse().expect("an address"), &both).expect("an interface");
            assert_eq!(chosen, interface, "{vip}");
        }
        let (ifindex, _) = host().choose("10.0.1.100".parse().unwrap(), &both[..1]).expect("an interface");
        assert_eq!(ifindex, 2, "eth1 is not to be used");
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let vip = "10.0.1.100".parse().unwrap();
        let error =
            host().choose(vip, &["eth0".to_owned(), "eth7".to_owned()]).expect_err("there is no eth7");
        assert!(error.to_string().contains("\"eth7\""), "{error}");
        assert!(host().choose(vip, &[]).is_err());
    }
}
