//! Hosts linked by bridges.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};

use super::{Host, xdp_pass};

/// Longest name of a network interface (IFNAMSIZ without its terminator).
const INTERFACE_NAME_LEN: usize = 15;

/// A network. Bridges live in a namespace of their own, the fabric, so that no host is also a switch.
#[derive(Debug)]
pub struct Net {
    fabric: Host,
}

impl Net {
    /// Makes a network without hosts.
    pub fn new() -> Result<Self> {
        let fabric = Host::new("fabric")?;
        fabric.sysctl("net/ipv6/conf/default/disable_ipv6", 1)?;
        for family in ["iptables", "ip6tables", "arptables"] {
            // Where br_netfilter is present it tracks bridged packets, and hairpin tests would prove the opposite.
            let parameter = format!("net/bridge/bridge-nf-call-{family}");
            if Path::new("/proc/sys").join(&parameter).exists() {
                fabric.sysctl(&parameter, 0)?;
            }
        }
        Ok(Self { fabric })
    }

    /// Adds a host without links.
    pub fn host(&self, name: &str) -> Result<Host> {
        Host::new(name)
    }

    /// Where the bridges are.
    pub(super) fn fabric(&self) -> &Host {
        &self.fabric
    }

    /// Adds a link-layer segment.
    pub fn bridge(&self, name: &str) -> Result<Bridge> {
        self.fabric.run_all(&[
            // Snooping would hold back neighbour discovery, spanning tree would hold back everything.
            &format!("ip link add {name} type bridge mcast_snooping 0 stp_state 0 forward_delay 0"),
            &format!("ip link set {name} up"),
        ])?;
        Ok(Bridge {
            name: name.into(),
            fabric: self.fabric.clone(),
            hosts: Mutex::default(),
            programs: Mutex::default(),
        })
    }
}

/// A link-layer segment.
#[derive(Debug)]
pub struct Bridge {
    name: String,
    fabric: Host,
    /// A host lives for as long as it is plugged in, whoever else has forgotten it.
    hosts: Mutex<Vec<Host>>,
    programs: Mutex<Vec<OwnedFd>>,
}

impl Bridge {
    /// Gives `host` an interface in this segment, with `addresses` in CIDR notation.
    pub fn plug(&self, host: &Host, interface: &str, addresses: &[String]) -> Result<()> {
        let (bridge, port, namespace) = (&self.name, self.port(host), host.net_path());
        ensure!(port.len() <= INTERFACE_NAME_LEN, "`{port}` is too long for the name of an interface");
        self.fabric.run_all(&[
            &format!("ip link add {port} type veth peer name {interface} netns {namespace}"),
            &format!("ip link set {port} master {bridge} up"),
        ])?;
        for address in addresses {
            host.run(&format!("ip address add {address} dev {interface}"))?.success()?;
        }
        host.run_all(&[
            &format!("ip link set {interface} up"),
            // A packet of a local socket has a checksum only once hardware has filled it in. veth has no hardware,
            // and an XDP program on the way loses the note that says so: the sender must compute it. Features
            // stick only when both ends are up.
            &format!("ethtool --features {interface} tx off gso off"),
        ])?;
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).push(host.clone());
        Ok(())
    }

    /// Like [`Bridge::plug`], for a host that will send by XDP on this interface.
    pub fn plug_balancer(&self, host: &Host, interface: &str, addresses: &[String]) -> Result<()> {
        self.plug(host, interface, addresses)?;
        let port = self.port(host);
        let program = self.fabric.enter(|| xdp_pass::attach(&port))?;
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).push(program);
        Ok(())
    }

    /// Who is plugged in.
    pub(super) fn hosts(&self) -> Vec<Host> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The bridge's own end of the cable to `host`.
    fn port(&self, host: &Host) -> String {
        format!("{}-{}", self.name, host.name())
    }
}
