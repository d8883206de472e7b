//! The packets that are replayed, and the ones that must come out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder, TcpHeader,
};
use lb_common::{Addr4, Addr6, Address, FlowKey, PROTO_TCP, PROTO_UDP, hash};
use serde::Serialize;

use crate::service::Service;

/// Offset of the header's own length in a TCP header, whose upper half it is.
const TCP_DATA_OFFSET: usize = 12;

/// The MAC address of whoever sends what is replayed.
pub(crate) const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The MAC address of the balancer.
pub(crate) const OWN: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(crate) enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// What it is called.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Length of every replayed frame, in bytes; `lb-ebpf/src/bench.rs` says the same in words.
    pub(crate) const fn frame_length(self) -> usize {
        match self {
            Self::V4 => 64,
            Self::V6 => 80,
        }
    }

    /// A listener.
    pub(crate) fn vip(self, service: Service) -> SocketAddr {
        (self.address(0, 100), service.port()).into()
    }

    /// The client of flow 0. The others have the following addresses and ports.
    pub(crate) fn client(self, service: Service) -> SocketAddr {
        (self.address(9, 0), service.client_port()).into()
    }

    /// The same for flows that are opened while this is measured.
    pub(crate) fn newcomer(self) -> SocketAddr {
        (self.address(9, 0), 30_000).into()
    }

    /// The same for flows that are opened in a flood.
    pub(crate) fn flooder(self) -> SocketAddr {
        (self.address(9, 0), 40_000).into()
    }

    /// A client without a flow.
    pub(crate) fn stranger(self) -> SocketAddr {
        (self.address(9, 0), 50_000).into()
    }

    /// The network of all clients.
    pub(crate) fn clients(self) -> (IpAddr, u8) {
        let length = match self {
            Self::V4 => 16,
            Self::V6 => 64,
        };
        (self.address(9, 0), length)
    }

    /// A backend.
    pub(crate) fn backend(self, number: u8) -> SocketAddr {
        (self.address(8, number), 8080).into()
    }

    /// An address that no listener has.
    pub(crate) fn elsewhere(self) -> SocketAddr {
        (self.address(0, 200), 80).into()
    }

    /// Where the header of TCP or UDP begins in a frame.
    const fn transport_offset(self) -> usize {
        match self {
            Self::V4 => 34,
            Self::V6 => 54,
        }
    }

    /// An address by its network and its host number.
    fn address(self, network: u8, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, network, 0, host).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0, 0, network.into(), 0, 0, 0, host.into()).into(),
        }
    }
}

/// What flows are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// What it is called.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// What is inside of the IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// The first segment of a TCP connection.
    TcpSyn,
    /// A later one.
    TcpAck,
    /// One whose header is shorter than any can be.
    TcpMalformed,
    /// A datagram.
    Udp,
}

impl Payload {
    /// IP protocol number.
    pub(crate) const fn protocol(self) -> u8 {
        match self {
            Self::TcpSyn | Self::TcpAck | Self::TcpMalformed => PROTO_TCP,
            Self::Udp => PROTO_UDP,
        }
    }
}

/// A packet, by what the benchmark varies or the balancer changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    /// MAC address of the sender.
    pub(crate) from: [u8; 6],
    /// MAC address of the receiver.
    pub(crate) to: [u8; 6],
    /// Source address and port.
    pub(crate) source: SocketAddr,
    /// Destination address and port.
    pub(crate) destination: SocketAddr,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// What it carries.
    pub(crate) payload: Payload,
    /// Complements of the source's last two address bytes and of its port, which keep the checksums of all
    /// flows the same. The balancer leaves them alone.
    balance: [[u8; 2]; 2],
}

impl Packet {
    /// A packet from a neighbour, of flow 0.
    pub(crate) fn new(source: SocketAddr, destination: SocketAddr, payload: Payload) -> Self {
        let balance =
            [last_two(source.ip()), source.port().to_be_bytes()].map(|bytes| bytes.map(|byte| !byte));
        Self { from: NEIGHBOUR, to: OWN, source, destination, ttl: 64, payload, balance }
    }

    /// The same packet of another flow, as the replaying program makes it.
    pub(crate) fn of_flow(&self, flow: u32) -> Self {
        let address = u16::from_le_bytes(last_two(self.source.ip())).wrapping_add(flow as u16);
        let port = self.source.port().wrapping_add((flow >> 16) as u16);
        let source = SocketAddr::new(with_last_two(self.source.ip(), address.to_le_bytes()), port);
        Self::new(source, self.destination, self.payload)
    }

    /// The slot of a Maglev table that the packet falls into.
    pub(crate) fn slot(&self, policy: u8) -> usize {
        let slot = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                hash::maglev_slot(&self.key(Addr6::from(source), Addr6::from(destination)), policy)
            }
            (source, destination) => hash::maglev_slot(
                &self.key(Addr4::from(as_v4(source)), Addr4::from(as_v4(destination))),
                policy,
            ),
        };
        slot as usize
    }

    /// The key of its flow.
    pub(crate) const fn key<A: Address>(&self, source: A, destination: A) -> FlowKey<A> {
        FlowKey {
            source,
            destination,
            source_port: self.source.port(),
            destination_port: self.destination.port(),
            protocol: self.payload.protocol(),
            _pad: [0; 3],
        }
    }

    /// The frame, with all its checksums computed from scratch.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        let length = self.family().frame_length();
        let ip = PacketBuilder::ethernet2(self.from, self.to).ip(self.ip_header());
        let filling = self.balance.concat();
        let mut frame = Vec::with_capacity(length);
        match self.payload {
            Payload::Udp => {
                let udp = ip.udp(self.source.port(), self.destination.port());
                let mut data = filling;
                data.resize(length - udp.size(0), b'.');
                udp.write(&mut frame, &data)
            }
            Payload::TcpSyn | Payload::TcpAck | Payload::TcpMalformed => {
                let mut header =
                    TcpHeader::new(self.source.port(), self.destination.port(), 1_000_000, 64_000);
                header.syn = self.payload == Payload::TcpSyn;
                header.ack = self.payload != Payload::TcpSyn;
                header.acknowledgment_number =
                    filling.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
                let tcp = ip.tcp_header(header);
                let data = vec![b'.'; length - tcp.size(0)];
                tcp.write(&mut frame, &data)
            }
        }
        .context("cannot build a packet")?;
        if self.payload == Payload::TcpMalformed {
            // The program does not look at the checksum, and nobody else gets it.
            frame[self.family().transport_offset() + TCP_DATA_OFFSET] = 2 << 4;
        }
        Ok(frame)
    }

    pub(crate) const fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Lengths are filled in by the builder.
    fn ip_header(&self) -> IpHeaders {
        let protocol = IpNumber(self.payload.protocol());
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    next_header: protocol,
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(header, Ipv6Extensions::default())
            }
            (source, destination) => {
                let header = Ipv4Header {
                    identification: u16::from_be_bytes(self.balance[0]),
                    time_to_live: self.ttl,
                    protocol,
                    source: as_v4(source).octets(),
                    destination: as_v4(destination).octets(),
                    ..Ipv4Header::default()
                };
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
        }
    }
}

/// Source address and port of a frame.
pub(crate) fn source_of(frame: &[u8], family: Family) -> Result<SocketAddr> {
    match family {
        Family::V4 => endpoint::<4>(frame, 26, 34),
        Family::V6 => endpoint::<16>(frame, 22, 54),
    }
}

/// Destination address and port of a frame.
pub(crate) fn destination_of(frame: &[u8], family: Family) -> Result<SocketAddr> {
    match family {
        Family::V4 => endpoint::<4>(frame, 30, 36),
        Family::V6 => endpoint::<16>(frame, 38, 56),
    }
}

fn endpoint<const LENGTH: usize>(frame: &[u8], address: usize, port: usize) -> Result<SocketAddr>
where
    IpAddr: From<[u8; LENGTH]>,
{
    let short = "the packet is shorter than its headers";
    let address: [u8; LENGTH] = *frame.get(address..).and_then(<[u8]>::first_chunk).context(short)?;
    let port = *frame.get(port..).and_then(<[u8]>::first_chunk).context(short)?;
    Ok(SocketAddr::new(address.into(), u16::from_be_bytes(port)))
}

fn last_two(address: IpAddr) -> [u8; 2] {
    match address {
        IpAddr::V4(v4) => {
            let [.., a, b] = v4.octets();
            [a, b]
        }
        IpAddr::V6(v6) => {
            let [.., a, b] = v6.octets();
            [a, b]
        }
    }
}

fn with_last_two(address: IpAddr, last: [u8; 2]) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            [a, b, last[0], last[1]].into()
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[14..].copy_from_slice(&last);
            octets.into()
        }
    }
}

/// The family is known to be IPv4 where this is called.
fn as_v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => unreachable!("{v6} beside an IPv4 address"),
    }
}
