//! `lb explain`

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use etherparse::PacketBuilder;
use lb_common::{Explanation, InterfaceMac, NextHop, Reason};
use nix::net::if_::if_nametoindex;
use serde::Serialize;

use super::names::Names;
use super::{OK, Target, names_of, no_data_plane};
use crate::dataplane::connections::Connections as Maps;
use crate::dataplane::explain::{Explainer, interfaces};
use crate::network::interface_name;

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// Protocol of the packet
    #[arg(long, value_name = "PROTOCOL")]
    proto: Protocol,
    /// Source: ADDRESS:PORT, of IPv6 [ADDRESS]:PORT
    #[arg(long, value_name = "ADDRESS:PORT")]
    src: SocketAddr,
    /// Destination
    #[arg(long, value_name = "ADDRESS:PORT")]
    dst: SocketAddr,
    /// Interface that it comes in through; the first of the instance's if missing
    #[arg(long, value_name = "NAME")]
    iface: Option<String>,
    /// Flags of a TCP packet, comma-separated
    #[arg(long, value_name = "FLAGS", value_delimiter = ',', default_value = "syn")]
    tcp_flags: Vec<Flag>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Flag {
    Syn,
    Ack,
    Fin,
    Rst,
}

/// The answer as JSON; the form is documented in docs/api.md.
#[derive(Debug, Serialize)]
struct Answer {
    version: u32,
    instance: String,
    packet: Question,
    verdict: &'static str,
    reason: Option<&'static str>,
    why: Option<&'static str>,
    told: Option<&'static str>,
    flow: Option<&'static str>,
    direction: Option<&'static str>,
    listener: Option<String>,
    listener_id: Option<u32>,
    backend_set: Option<String>,
    backend: Option<String>,
    backend_id: Option<u32>,
    becomes: Option<Becomes>,
    leaves: Option<Leaves>,
}

/// The packet that was asked about.
#[derive(Clone, Debug, Serialize)]
struct Question {
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    interface: String,
}

/// The packet after translation.
#[derive(Debug, Serialize)]
struct Becomes {
    source: SocketAddr,
    destination: SocketAddr,
}

/// The way it leaves.
#[derive(Debug, Serialize)]
struct Leaves {
    interface: String,
    source_mac: String,
    destination_mac: String,
    mtu: Option<u32>,
}

impl Explain {
    pub(super) async fn execute(&self) -> Result<u8> {
        let instance = self.target.instance()?;
        let pins = instance.pins();
        let (Some(explainer), Some(maps)) = (Explainer::open(&pins)?, Maps::open(&pins)?) else {
            return Ok(no_data_plane(&instance));
        };
        let (index, interface, own) = self.interface(interfaces(&pins)?)?;
        let explanation = explainer.explain(&self.frame(&own)?, index)?;
        let packet = Question { protocol: self.proto, source: self.src, destination: self.dst, interface };
        let names = Names::find(&instance, &maps).await?;
        let answer = Answer::new(instance.name(), packet, &explanation, &names);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&answer).context("cannot write")?);
        } else {
            answer.print();
        }
        Ok(OK)
    }

    /// The interface that the packet comes in through: its index and name, and what the program knows of it.
    fn interface(&self, attached: Vec<(u32, InterfaceMac)>) -> Result<(u32, String, InterfaceMac)> {
        let Some(wanted) = &self.iface else {
            let first =
                attached.into_iter().find_map(|(index, own)| Some((index, interface_name(index)?, own)));
            return first.context("the data plane is attached to no interface of this network namespace");
        };
        let index = if_nametoindex(wanted.as_str())
            .with_context(|| format!("--iface {wanted}: there is no such interface"))?;
        match attached.iter().find(|(attached, _)| *attached == index) {
            Some(&(_, own)) => Ok((index, wanted.clone(), own)),
            None => bail!(
                "--iface {wanted}: the data plane is not attached there, so it never sees the packet; it is \
                 attached to: {}",
                names_of(&attached)
            ),
        }
    }

    /// The packet, to this host.
    fn frame(&self, own: &InterfaceMac) -> Result<Vec<u8>> {
        /// A locally administered address, of nobody in particular.
        const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
        let ethernet = PacketBuilder::ethernet2(SENDER, own.mac);
        let ip = match (self.src, self.dst) {
            (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
                ethernet.ipv4(src.ip().octets(), dst.ip().octets(), 64)
            }
            (SocketAddr::V6(src), SocketAddr::V6(dst)) => {
                ethernet.ipv6(src.ip().octets(), dst.ip().octets(), 64)
            }
            (src, dst) => bail!("expected --src and --dst of one IP version, found {src} and {dst}"),
        };
        let (src, dst) = (self.src.port(), self.dst.port());
        let mut frame = Vec::new();
        match self.proto {
            Protocol::Udp => ip.udp(src, dst).write(&mut frame, &[]),
            Protocol::Tcp => {
                let mut tcp = ip.tcp(src, dst, 0, 65_535);
                for flag in &self.tcp_flags {
                    tcp = match flag {
                        Flag::Syn => tcp.syn(),
                        Flag::Ack => tcp.ack(0),
                        Flag::Fin => tcp.fin(),
                        Flag::Rst => tcp.rst(),
                    };
                }
                tcp.write(&mut frame, &[])
            }
        }
        .context("cannot build the packet")?;
        Ok(frame)
    }
}

impl Answer {
    fn new(instance: &str, packet: Question, explanation: &Explanation, names: &Names) -> Self {
        let has = |flag| explanation.flags & flag != 0;
        let id = |id| (id != Explanation::NONE).then_some(id);
        let (listener_id, backend_id) = (id(explanation.listener), id(explanation.backend));
        let backend = backend_id.and_then(|id| names.backends.get(&id));
        let is_forwarded = explanation.verdict == Explanation::FORWARD;
        let reason = Reason::ALL.get(explanation.reason as usize).filter(|_| !is_forwarded).copied();
        let is_of_flow = is_forwarded || backend_id.is_some();
        Self {
            version: 1,
            instance: instance.to_owned(),
            verdict: match explanation.verdict {
                Explanation::FORWARD => "forward",
                Explanation::DROP => "drop",
                _ => "pass",
            },
            reason: reason.map(Reason::name),
            why: reason.map(Reason::text),
            told: match () {
                () if has(Explanation::RESET) => Some("tcp_reset"),
                () if has(Explanation::ERROR) && reason == Some(Reason::TooBig) => Some("packet_too_big"),
                () if has(Explanation::ERROR) => Some("port_unreachable"),
                () => None,
            },
            flow: is_of_flow.then_some(if has(Explanation::NEW) { "new" } else { "known" }),
            direction: is_of_flow.then_some(if has(Explanation::TO_CLIENT) {
                "to_client"
            } else {
                "to_backend"
            }),
            listener: listener_id.and_then(|id| names.listeners.get(&id).cloned()),
            listener_id,
            backend_set: backend.map(|(set, _)| set.clone()),
            backend: backend.map(|(_, name)| name.clone()),
            backend_id,
            becomes: is_forwarded.then(|| Becomes::new(&packet, explanation)),
            leaves: is_forwarded.then(|| Leaves::new(&explanation.next_hop, explanation.mtu)),
            packet,
        }
    }

    fn print(&self) {
        let Question { protocol, source, destination, interface } = &self.packet;
        let protocol = if *protocol == Protocol::Tcp { "tcp" } else { "udp" };
        println!("{protocol} {source} > {destination}, in through {interface}");
        let numbered = |name: &Option<String>, id: u32| name.clone().unwrap_or_else(|| format!("#{id}"));
        if let Some(id) = self.listener_id {
            println!("  listener  {}", numbered(&self.listener, id));
        }
        if let (Some(flow), Some(direction)) = (self.flow, self.direction) {
            println!("  flow      {flow}, {}", direction.replace('_', " "));
        }
        if let Some(id) = self.backend_id {
            let set = self.backend_set.as_ref().map(|set| format!("{set}/")).unwrap_or_default();
            println!("  backend   {set}{}", numbered(&self.backend, id));
        }
        if let Some(Becomes { source, destination }) = &self.becomes {
            let note =
                if self.flow == Some("new") { "  (the source the next new flow would get)" } else { "" };
            println!("  becomes   {source} > {destination}{note}");
        }
        if let Some(Leaves { interface, source_mac, destination_mac, mtu }) = &self.leaves {
            let mtu = mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
            println!("  leaves    {interface}, {source_mac} > {destination_mac}{mtu}");
        }
        if let (Some(reason), Some(why)) = (self.reason, self.why) {
            let verdict = if self.verdict == "drop" { "dropped " } else { "left to the kernel" };
            println!("  {verdict}  {reason}: {why}");
        }
        if let Some(told) = self.told {
            println!("  answer    {}", told.replace('_', " "));
        }
    }
}

impl Becomes {
    fn new(packet: &Question, explanation: &Explanation) -> Self {
        let address = |address: lb_common::Addr6, port| {
            let address: std::net::IpAddr = address.into();
            let address = if packet.source.is_ipv4() { address.to_canonical() } else { address };
            SocketAddr::new(address, port)
        };
        Self {
            source: address(explanation.source, explanation.source_port),
            destination: address(explanation.destination, explanation.destination_port),
        }
    }
}

impl Leaves {
    fn new(next_hop: &NextHop, mtu: u32) -> Self {
        let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        let name = interface_name(next_hop.ifindex);
        Self {
            interface: name.unwrap_or_else(|| format!("#{}", next_hop.ifindex)),
            source_mac: mac(next_hop.local),
            destination_mac: mac(next_hop.peer),
            mtu: (mtu != 0).then_some(mtu),
        }
    }
}
