//! Who is who in the packet cases: one small network, read from `network.toml`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use lb_common::{InterfaceMac, NextHop};
use lb_userspace::control::Way;
use serde::Deserialize;

use super::States;

/// An IP version. Each case is played once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// A link-layer address, written `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        Ok(Self(bytes.with_context(|| format!("expected a MAC like 02:00:00:00:00:01, found `{text}`"))?))
    }
}

impl TryFrom<String> for Mac {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// An interface of the balancer.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its own link-layer address.
    pub mac: Mac,
}

/// Somebody with an address.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
    /// Link-layer address of the next hop towards it.
    pub mac: Mac,
    /// Interface of the balancer that it is behind.
    #[serde(default = "front")]
    pub behind: String,
    /// Whether it shares a segment with the balancer; otherwise a router is in between.
    #[serde(default)]
    pub onlink: bool,
}

fn front() -> String {
    Network::FRONT.to_owned()
}

/// Interfaces and hosts by name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Prefix lengths of the balancer's segments.
    onlink_prefix_len: PrefixLengths,
    /// MTU of all links, in bytes from the IP header on.
    pub mtu: u16,
    /// Of the balancer.
    #[serde(rename = "interface")]
    pub interfaces: BTreeMap<String, Interface>,
    /// Everybody, the VIPs included.
    #[serde(rename = "host")]
    pub hosts: BTreeMap<String, Host>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefixLengths {
    v4: u8,
    v6: u8,
}

impl Network {
    /// The interface that packets come in through unless a case says otherwise.
    pub const FRONT: &'static str = "front";

    /// Reads `network.toml`.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or means nothing.
    pub fn read(cases: &Path) -> Result<Self> {
        let path = cases.join("network.toml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// A host.
    ///
    /// # Errors
    ///
    /// If there is none of this name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.get(name).with_context(|| {
            let names: Vec<&String> = self.hosts.keys().collect();
            format!("network.toml knows no host `{name}`; it knows {names:?}")
        })
    }

    /// An interface of the balancer.
    ///
    /// # Errors
    ///
    /// If there is none of this name.
    pub fn interface(&self, name: &str) -> Result<Interface> {
        self.interfaces.get(name).copied().with_context(|| {
            let names: Vec<&String> = self.interfaces.keys().collect();
            format!("network.toml knows no interface `{name}`; it knows {names:?}")
        })
    }

    /// What the program is told of an interface.
    pub const fn told(&self, interface: &Interface) -> InterfaceMac {
        InterfaceMac { mac: interface.mac.0, mtu: self.mtu, flags: 0 }
    }

    /// The address of a host; a literal address stands for itself.
    ///
    /// # Errors
    ///
    /// If it is neither.
    pub fn address(&self, name: &str, family: Family) -> Result<IpAddr> {
        match name.trim_matches(['[', ']']).parse() {
            Ok(literal) => Ok(literal),
            Err(_) => self.host(name).map(|host| host.address(family)),
        }
    }

    /// Whoever has an address.
    ///
    /// # Errors
    ///
    /// If nobody has.
    pub fn owner(&self, address: IpAddr) -> Result<&Host> {
        let owner = self.hosts.values().find(|host| address == host.v4 || address == host.v6);
        match owner {
            Some(owner) => Ok(owner),
            None => bail!("no host of network.toml has the address {address}; give MACs in the case"),
        }
    }

    /// The way to a host, as netlink would tell it.
    ///
    /// # Errors
    ///
    /// If it is behind an interface that does not exist.
    pub fn way(&self, host: &Host, family: Family) -> Result<Way> {
        let Interface { index, mac } = self.interface(&host.behind)?;
        let prefix_len = match family {
            Family::V4 => self.onlink_prefix_len.v4,
            Family::V6 => self.onlink_prefix_len.v6,
        };
        Ok(Way {
            next_hop: NextHop { ifindex: index, peer: host.mac.0, local: mac.0 },
            onlink_prefix_len: if host.onlink { prefix_len } else { 0 },
            mtu: self.mtu,
        })
    }

    /// All next hops resolved, everybody healthy.
    ///
    /// # Errors
    ///
    /// If a host is behind an interface that does not exist.
    pub fn states(&self, family: Family) -> Result<States> {
        let mut states = States::default();
        for host in self.hosts.values() {
            states.ways.insert(host.address(family), self.way(host, family)?);
        }
        Ok(states)
    }
}

impl Host {
    /// Its address.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}
