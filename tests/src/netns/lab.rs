//! The topologies of the tests: a client, a balancer and three servers, with the same addresses in each.
//!
//! ```text
//! one-arm                                   two-arm
//!
//! client .50 ──┬── lan 10.0.1.0/24          client 10.0.2.50 ── wan 10.0.2.0/24 ── .2 balancer
//! balancer .2 ─┤       fd00:1::/64                                   fd00:2::/64        .2
//! web1 .10 ────┤                                                                         │
//! web2 .11 ────┤   (VIP 10.0.1.100,                     lan 10.0.1.0/24, fd00:1::/64 ────┤
//! web3 .12 ────┘    fd00:1::100)                         web1 .10   web2 .11   web3 .12 ─┘
//! ```
//!
//! A host's number is the last part of its IPv4 address and, read as it stands, of its IPv6 address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};

use super::{Bridge, Host, Net, Process};
use crate::servers;

/// The numbers of the servers.
pub const BACKENDS: [u8; 3] = [10, 11, 12];

/// Third part of the addresses in the segment of the servers and of the VIPs.
const LAN: u8 = 1;
/// ... in the segment of the two-arm client.
const WAN: u8 = 2;
/// ... in the segment behind a router.
const FAR: u8 = 3;

const ROUTER: u8 = 1;
const BALANCER: u8 = 2;
const CLIENT: u8 = 50;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The VIP of the tests.
    pub fn vip(self) -> IpAddr {
        self.lan(100)
    }

    /// The address of host `number` in the segment of the servers.
    pub fn lan(self, number: u8) -> IpAddr {
        self.address(LAN, number)
    }

    /// The VIP with a port.
    pub fn vip_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.vip(), port)
    }

    fn address(self, net: u8, number: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, net, number).into(),
            Self::V6 => {
                let digits =
                    u16::from_str_radix(&number.to_string(), 16).expect("decimal digits are hexadecimal");
                [0xfd00, u16::from(net), 0, 0, 0, 0, 0, digits].into()
            }
        }
    }
}

/// Where the balancer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Everybody in one segment; the balancer has one interface.
    OneArm,
    /// The balancer between the client's segment and the one of the servers.
    TwoArm,
}

/// A topology with everything running but the balancer.
#[derive(Debug)]
pub struct Lab {
    /// Where `lb` runs.
    pub balancer: Host,
    /// The balancer's interfaces.
    pub interfaces: &'static [&'static str],
    /// A client; in the one-arm topology it is on-link with the servers.
    pub client: Host,
    /// The servers, in the order of [`BACKENDS`].
    pub backends: Vec<Backend>,
    net: Net,
    lan: Bridge,
    other: Vec<Bridge>,
    /// The router of [`Lab::add_routed_client`].
    router: Option<Host>,
}

impl Lab {
    /// Builds `topology` and starts its servers.
    pub fn new(topology: Topology) -> Result<Self> {
        match topology {
            Topology::OneArm => Self::one_arm(),
            Topology::TwoArm => Self::two_arm(),
        }
        .with_context(|| format!("build the topology {topology:?}"))
    }

    /// Builds the one-arm topology and starts its servers.
    pub fn one_arm() -> Result<Self> {
        let net = Net::new()?;
        let lan = net.bridge("lan")?;
        let balancer = net.host("balancer")?;
        lan.plug_balancer(&balancer, "eth0", &cidr(LAN, BALANCER))?;
        let client = net.host("client")?;
        lan.plug(&client, "eth0", &cidr(LAN, CLIENT))?;
        let backends = Backend::all(&net, &lan)?;
        Ok(Self {
            balancer,
            interfaces: &["eth0"],
            client,
            backends,
            net,
            lan,
            other: Vec::new(),
            router: None,
        })
    }

    /// Builds the two-arm topology and starts its servers.
    pub fn two_arm() -> Result<Self> {
        let net = Net::new()?;
        let (wan, lan) = (net.bridge("wan")?, net.bridge("lan")?);
        let balancer = net.host("balancer")?;
        wan.plug_balancer(&balancer, "eth0", &cidr(WAN, BALANCER))?;
        lan.plug_balancer(&balancer, "eth1", &cidr(LAN, BALANCER))?;
        let client = net.host("client")?;
        wan.plug(&client, "eth0", &cidr(WAN, CLIENT))?;
        client
            .run_all(&["ip route add 10.0.1.0/24 via 10.0.2.2", "ip route add fd00:1::/64 via fd00:2::2"])?;
        let backends = Backend::all(&net, &lan)?;
        Ok(Self {
            balancer,
            interfaces: &["eth0", "eth1"],
            client,
            backends,
            net,
            lan,
            other: vec![wan],
            router: None,
        })
    }

    /// Takes the balancer's interface in the segment of the servers away, as when a virtual card is unplugged.
    pub fn unplug_balancer(&self) -> Result<()> {
        self.balancer.run("ip link delete eth0")?.success().map(drop)
    }

    /// Gives the balancer of a one-arm topology a new interface in place of the one that was unplugged.
    pub fn plug_balancer(&self) -> Result<()> {
        self.lan.plug_balancer(&self.balancer, "eth0", &cidr(LAN, BALANCER))
    }

    /// Adds another client to the segment of the servers.
    pub fn add_client(&self, name: &str, number: u8) -> Result<Host> {
        let client = self.net.host(name)?;
        self.lan.plug(&client, "eth0", &cidr(LAN, number))?;
        Ok(client)
    }

    /// Adds a router to the segment of the servers and a client behind it, and makes the balancer use that router.
    pub fn add_routed_client(&mut self, name: &str) -> Result<Host> {
        let far = self.net.bridge("far")?;
        let router = self.net.host("router")?;
        router.sysctl("net/ipv4/ip_forward", 1)?;
        router.sysctl("net/ipv6/conf/all/forwarding", 1)?;
        self.lan.plug(&router, "eth0", &cidr(LAN, ROUTER))?;
        far.plug(&router, "eth1", &cidr(FAR, ROUTER))?;
        let client = self.net.host(name)?;
        far.plug(&client, "eth0", &cidr(FAR, CLIENT))?;
        client.run_all(&["ip route add default via 10.0.3.1", "ip route add default via fd00:3::1"])?;
        self.balancer
            .run_all(&["ip route add default via 10.0.1.1", "ip route add default via fd00:1::1"])?;
        self.other.push(far);
        self.router = Some(router);
        Ok(client)
    }

    /// Makes the router's ways to the client behind it and to the VIPs take packets of `mtu` bytes at most; nobody else
    /// knows of it.
    pub fn narrow_router(&self, mtu: usize) -> Result<()> {
        let router = self.router.as_ref().context("there is no router yet")?;
        let narrow = |to, interface| format!("ip route add {to} dev {interface} mtu lock {mtu}");
        let vips = Family::ALL.map(|family| narrow(family.vip(), "eth0"));
        let clients = Family::ALL.map(|family| narrow(self.routed_client_address(family), "eth1"));
        vips.iter().chain(&clients).try_for_each(|command| router.run_all(&[command]))
    }

    /// Makes the balancer the gateway of the servers, without which untranslated answers would pass it by.
    pub fn route_servers_through_balancer(&self) -> Result<()> {
        self.backends.iter().try_for_each(|backend| {
            backend.host.run_all(&["ip route add default via 10.0.1.2", "ip route add default via fd00:1::2"])
        })
    }

    /// All segments.
    pub(super) fn bridges(&self) -> impl Iterator<Item = &Bridge> {
        std::iter::once(&self.lan).chain(&self.other)
    }

    /// Where the bridges are.
    pub(super) fn fabric(&self) -> &Host {
        self.net.fabric()
    }

    /// The address of [`Lab::client`].
    pub fn client_address(&self, family: Family) -> IpAddr {
        family.address(if self.interfaces.len() == 1 { LAN } else { WAN }, CLIENT)
    }

    /// The address of the client behind the router.
    pub fn routed_client_address(&self, family: Family) -> IpAddr {
        family.address(FAR, CLIENT)
    }
}

/// A server: the host `web1`, `web2` or `web3`, and the program on it.
#[derive(Debug)]
pub struct Backend {
    /// Where it runs.
    pub host: Host,
    number: u8,
    server: Option<Process>,
}

impl Backend {
    fn all(net: &Net, lan: &Bridge) -> Result<Vec<Self>> {
        (1..)
            .zip(BACKENDS)
            .map(|(place, number)| Self::new(net, lan, &format!("web{place}"), number))
            .collect()
    }

    fn new(net: &Net, lan: &Bridge, name: &str, number: u8) -> Result<Self> {
        let host = net.host(name)?;
        lan.plug(&host, "eth0", &cidr(LAN, number))?;
        let mut backend = Self { host, number, server: None };
        backend.start()?;
        Ok(backend)
    }

    /// Its name, which is also what it answers.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Its address.
    pub fn address(&self, family: Family) -> IpAddr {
        family.lan(self.number)
    }

    /// The process id of its server.
    pub fn server_id(&self) -> Result<u32> {
        Ok(self.server.as_ref().with_context(|| format!("the server {} is not running", self.name()))?.id())
    }

    /// Starts its server and waits until it listens.
    pub fn start(&mut self) -> Result<()> {
        self.server = Some(servers::start(&self.host)?);
        Ok(())
    }

    /// Kills its server with SIGKILL; its address stays up and refuses connections.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().with_context(|| format!("the server {} is not running", self.name()))?.kill()
    }
}

/// Both addresses of a host, with the length of the prefix.
fn cidr(net: u8, number: u8) -> [String; 2] {
    [format!("{}/24", Family::V4.address(net, number)), format!("{}/64", Family::V6.address(net, number))]
}
