//! What the tests of this folder share: a bench with the hosts of `network.toml`, and short ways to say what is
//! sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_tests::packets::case::Packet;
use lb_tests::packets::network::Mac;
use lb_tests::packets::oracle::{self, Dissected};
use lb_tests::packets::packet::{self, Ends};
use lb_tests::packets::symbols::{Scope, Symbols};
use lb_tests::packets::{Answer, Bench, Family, Network, Verdict, settings};
use lb_userspace::control::Way;
use toml::Table;

/// A bench for one IP version.
pub(crate) struct Lab {
    pub(crate) bench: Bench,
    network: Network,
    family: Family,
}

/// One listener for TCP and UDP at vip:80, with one backend.
pub(crate) const ONE_BACKEND: &str = r#"
    [[listener]]
    name = "web"
    address = "vip"
    protocol = "tcp_and_udp"
    port = 80
    backend_set = "web"

    [[backend_set.web.backend]]
    address = "alpha"
    port = 8080
"#;

/// The same with three backends and room for many flows.
pub(crate) const THREE_BACKENDS: &str = r#"
    [lb]
    max_connections = 40000

    [[listener]]
    name = "web"
    address = "vip"
    protocol = "tcp_and_udp"
    port = 80
    backend_set = "web"

    [[backend_set.web.backend]]
    address = "alpha"
    port = 8080
    [[backend_set.web.backend]]
    address = "beta"
    port = 8080
    [[backend_set.web.backend]]
    address = "gamma"
    port = 8080
"#;

impl Lab {
    /// Puts a configuration in force, with whatever `changes` says on top of it.
    pub(crate) fn new(config: &str, changes: &str, family: Family) -> Result<Self> {
        let network = Network::read(&super::cases())?;
        let config = settings::parse(&merged(config, changes)?, &network, family)?;
        let mut bench = Bench::new(config, network.states(family)?)?;
        bench.introduce(&network)?;
        Ok(Self { bench, network, family })
    }

    /// Puts another configuration in force.
    pub(crate) fn reload(&mut self, config: &str, changes: &str) -> Result<()> {
        let config = settings::parse(&merged(config, changes)?, &self.network, self.family)?;
        let states = self.bench.states().clone();
        self.bench.update(config, states)
    }

    /// Gives the way to a host another MTU.
    pub(crate) fn narrow(&mut self, host: &str, mtu: u16) -> Result<()> {
        let mut states = self.bench.states().clone();
        let host = self.network.host(host)?;
        let way = self.network.way(host, self.family)?;
        states.ways.insert(host.address(self.family), Way { mtu, ..way });
        let config = self.bench.config().clone();
        self.bench.update(config, states)
    }

    /// The frame of a packet that comes in through loopback.
    pub(crate) fn frame(&self, packet: &Packet) -> Result<Vec<u8>> {
        let scope = Scope { network: &self.network, family: self.family, number: 0 };
        let ingress = self.network.interface(Network::FRONT)?;
        let ends = Ends::of(packet, &Symbols::default(), scope, ingress)?;
        packet::build(packet, &ends)
    }

    /// The frame of the packet that answers one which came out, with these TCP flags.
    pub(crate) fn answer_to(&self, sent_out: &[u8], flags: &str) -> Result<Vec<u8>> {
        let out = Dissected::new(sent_out)?;
        let is_udp = out.protocol == 17;
        let (peer, _) = sent_out.split_first_chunk().context("the frame has no Ethernet header")?;
        let answer = Packet {
            src: out.dst.to_string(),
            dst: out.src.to_string(),
            src_mac: Some(Mac(*peer)),
            ..Packet::default()
        };
        self.frame(&if is_udp {
            Packet { udp: true, payload: "answer".into(), ..answer }
        } else {
            Packet { tcp: Some(flags.into()), ..answer }
        })
    }

    /// Sends a frame through loopback.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<Answer> {
        self.bench.send(frame, LOOPBACK)
    }

    /// Sends a frame that must come out again, with right checksums, and tells source and destination.
    pub(crate) fn through(&mut self, frame: &[u8]) -> Result<(SocketAddr, SocketAddr)> {
        let Answer { verdict, frame: out } = self.send(frame)?;
        ensure!(
            verdict == Verdict::Tx,
            "expected the verdict Tx, found {verdict:?} for\n{}counters:\n{}",
            oracle::describe(frame),
            self.bench.counts()?
        );
        oracle::require_right_checksums(&out)?;
        let out = Dissected::new(&out)?;
        Ok((out.src, out.dst))
    }

    /// The name of the host that has an address.
    pub(crate) fn host_at(&self, address: SocketAddr) -> Result<&str> {
        let mut hosts = self.network.hosts.iter();
        let found = hosts.find(|(_, host)| host.address(self.family) == address.ip());
        found.map(|(name, _)| name.as_str()).with_context(|| format!("nobody has the address {address}"))
    }
}

/// Number of the loopback interface in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

fn merged(config: &str, changes: &str) -> Result<Table> {
    let mut table: Table = toml::from_str(config)?;
    settings::merge(&mut table, &toml::from_str(changes)?);
    Ok(table)
}

/// The address of a client of its own number, who is not on the balancer's links.
pub(crate) fn client_address(family: Family, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        Family::V4 => Ipv4Addr::new(198, 18, high, low).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, number).into(),
    }
}

/// A TCP packet without payload.
pub(crate) fn tcp(src: impl Into<String>, dst: &str, flags: &str) -> Packet {
    Packet { src: src.into(), dst: dst.into(), tcp: Some(flags.into()), ..Packet::default() }
}

/// A UDP packet.
pub(crate) fn udp(src: impl Into<String>, dst: &str, payload: &str) -> Packet {
    Packet { src: src.into(), dst: dst.into(), udp: true, payload: payload.into(), ..Packet::default() }
}
