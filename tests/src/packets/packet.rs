//! Builds the frame that a case describes.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp,
    IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, SingleVlanHeader, TcpHeader, UdpHeader, VlanId, VlanPcp, ether_type, ip_number,
};

use super::case::{Checksum, Fragment, IcmpError, Packet, Tag};
use super::network::{Interface, Mac};
use super::oracle;
use super::symbols::{Scope, Symbols};

/// Who sends a packet and to whom.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Ends of the packet that an ICMP error is about.
    pub about: Option<(SocketAddr, SocketAddr)>,
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port.
    pub dst: SocketAddr,
    /// Source MAC.
    pub src_mac: Mac,
    /// Destination MAC.
    pub dst_mac: Mac,
}

impl Ends {
    /// Looks up who a packet is from and for, in a frame that comes in through an interface.
    ///
    /// # Errors
    ///
    /// If a name or a symbol is not known.
    pub fn of(packet: &Packet, symbols: &Symbols, scope: Scope<'_>, ingress: Interface) -> Result<Self> {
        let (src, dst) = (symbols.endpoint(&packet.src, scope)?, symbols.endpoint(&packet.dst, scope)?);
        let src_mac = match packet.src_mac {
            Some(mac) => mac,
            None => scope.network.owner(src.ip())?.mac,
        };
        let about = match &packet.about {
            Some(about) => Some((symbols.endpoint(&about.src, scope)?, symbols.endpoint(&about.dst, scope)?)),
            None => None,
        };
        Ok(Self { about, src, dst, src_mac, dst_mac: packet.dst_mac.unwrap_or(ingress.mac) })
    }
}

/// The frame, without the frame check sequence.
///
/// # Errors
///
/// If the description contradicts itself.
pub fn build(packet: &Packet, ends: &Ends) -> Result<Vec<u8>> {
    let mut frame = ethernet(packet, ends)?;
    let (header, payload) = ip_packet(packet, ends)?;
    frame.extend(header);
    frame.extend(payload);
    if let Some(length) = packet.pad_to {
        // Senders must not leak memory here, but some fill it with something: not zero, so that it shows.
        frame.resize(length.max(frame.len()), 0xee);
    }
    if let Some(length) = packet.cut_to {
        frame.truncate(length);
    }
    Ok(frame)
}

/// The IP header with all that belongs to it, and what follows.
fn ip_packet(packet: &Packet, ends: &Ends) -> Result<(Vec<u8>, Vec<u8>)> {
    let (number, segment) = transport(packet, ends)?;
    match (ends.src.ip(), ends.dst.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => ipv4(packet, ends, number, &segment),
        (IpAddr::V6(_), IpAddr::V6(_)) => ipv6(packet, ends, number, &segment),
        _ => bail!("source and destination are of different families: {} and {}", ends.src, ends.dst),
    }
}

fn ethernet(packet: &Packet, ends: &Ends) -> Result<Vec<u8>> {
    let payload = if ends.src.is_ipv4() { ether_type::IPV4 } else { ether_type::IPV6 };
    let tags: Vec<(u16, EtherType, u8)> = packet
        .vlan
        .iter()
        .enumerate()
        .map(|(index, tag)| {
            let is_outer = index + 1 < packet.vlan.len();
            let usual = if is_outer { ether_type::PROVIDER_BRIDGING } else { ether_type::VLAN_TAGGED_FRAME };
            match *tag {
                Tag::Id(id) => (id, usual, 0),
                Tag::Whole { id, ether_type, priority } => {
                    (id, ether_type.map_or(usual, EtherType), priority)
                }
            }
        })
        .collect();
    let types: Vec<EtherType> = tags.iter().map(|(_, ether_type, _)| *ether_type).chain([payload]).collect();
    let header =
        Ethernet2Header { source: ends.src_mac.0, destination: ends.dst_mac.0, ether_type: types[0] };
    let mut bytes = header.to_bytes().to_vec();
    for (&(id, _, priority), &ether_type) in tags.iter().zip(&types[1..]) {
        let tag = SingleVlanHeader {
            pcp: VlanPcp::try_new(priority)?,
            drop_eligible_indicator: false,
            vlan_id: VlanId::try_new(id)?,
            ether_type,
        };
        bytes.extend(tag.to_bytes());
    }
    Ok(bytes)
}

/// The transport header with its payload, and its number.
fn transport(packet: &Packet, ends: &Ends) -> Result<(IpNumber, Vec<u8>)> {
    let counted = (0..packet.payload_length).map(|index| index as u8);
    let payload = packet.payload.bytes().chain(packet.payload_hex.0.iter().copied()).chain(counted);
    let payload: Vec<u8> = payload.collect();
    let kinds = [packet.tcp.is_some(), packet.udp, packet.echo, packet.echo_reply, packet.error.is_some()];
    let said = kinds.into_iter().filter(|&is_said| is_said).count() + usize::from(packet.protocol.is_some());
    if said != 1 {
        bail!(
            "a packet is one of `tcp = \"FLAGS\"`, `udp = true`, `echo = true`, `echo_reply = true`, \
             `error = \"NAME\"` and `protocol = NUMBER`"
        );
    }
    if let Some(flags) = &packet.tcp {
        return Ok((ip_number::TCP, tcp(packet, flags, ends, &payload)?));
    }
    if packet.udp {
        return Ok((ip_number::UDP, udp(packet, ends, &payload)?));
    }
    if let Some(error) = packet.error {
        return icmp_error(packet, error, ends);
    }
    match packet.protocol {
        Some(number) => Ok((IpNumber(number), payload)),
        None => echo(packet, ends, &payload),
    }
}

fn tcp(packet: &Packet, flags: &str, ends: &Ends, payload: &[u8]) -> Result<Vec<u8>> {
    let mut header = TcpHeader::new(ends.src.port(), ends.dst.port(), packet.seq, 0xfaf0);
    header.acknowledgment_number = packet.ack;
    for flag in flags.chars() {
        match flag {
            'F' => header.fin = true,
            'S' => header.syn = true,
            'R' => header.rst = true,
            'P' => header.psh = true,
            'A' => header.ack = true,
            'U' => header.urg = true,
            'E' => header.ece = true,
            'C' => header.cwr = true,
            _ => bail!("expected TCP flags out of F S R P A U E C, found `{flag}` in \"{flags}\""),
        }
    }
    header.set_options_raw(&packet.tcp_options.0)?;
    header.checksum = match (ends.src.ip(), ends.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)?
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)?
        }
        _ => 0,
    };
    header.checksum = spoiled(header.checksum, packet.checksum);
    let mut bytes = header.to_bytes().to_vec();
    if let Some(length) = packet.claim.tcp_header_length {
        bytes[12] = (length / 4) << 4;
    }
    bytes.extend(payload);
    Ok(bytes)
}

fn udp(packet: &Packet, ends: &Ends, payload: &[u8]) -> Result<Vec<u8>> {
    let length = UdpHeader::LEN + payload.len();
    let mut header = UdpHeader {
        source_port: ends.src.port(),
        destination_port: ends.dst.port(),
        length: u16::try_from(length).context("a UDP datagram has at most 65,535 bytes")?,
        checksum: 0,
    };
    header.checksum = match (ends.src.ip(), ends.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)?
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)?
        }
        _ => 0,
    };
    header.checksum = spoiled(header.checksum, packet.checksum);
    header.length = packet.claim.udp_length.unwrap_or(header.length);
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(payload);
    Ok(bytes)
}

fn spoiled(checksum: u16, wanted: Option<Checksum>) -> u16 {
    match wanted {
        None => checksum,
        Some(Checksum::Zero) => 0,
        Some(Checksum::Bad) => checksum ^ 0x0100,
    }
}

fn echo(packet: &Packet, ends: &Ends, payload: &[u8]) -> Result<(IpNumber, Vec<u8>)> {
    let header = IcmpEchoHeader { id: ends.src.port(), seq: 1 };
    let (number, mut bytes) = match (ends.src.ip(), ends.dst.ip()) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let kind =
                if packet.echo { Icmpv6Type::EchoRequest(header) } else { Icmpv6Type::EchoReply(header) };
            let header = Icmpv6Header::with_checksum(kind, src.octets(), dst.octets(), payload)?;
            (ip_number::IPV6_ICMP, header.to_bytes().to_vec())
        }
        _ => {
            let kind =
                if packet.echo { Icmpv4Type::EchoRequest(header) } else { Icmpv4Type::EchoReply(header) };
            (ip_number::ICMP, Icmpv4Header::with_checksum(kind, payload).to_bytes().to_vec())
        }
    };
    bytes.extend(payload);
    spoil(&mut bytes, packet.checksum);
    Ok((number, bytes))
}

/// An ICMP error: type, code, checksum, a word that depends on it, and the packet that it is about.
fn icmp_error(packet: &Packet, error: IcmpError, ends: &Ends) -> Result<(IpNumber, Vec<u8>)> {
    use IcmpError as Error;
    let (Some(about), Some((src, dst))) = (&packet.about, ends.about) else {
        bail!("an ICMP error needs the packet that it is `about`");
    };
    let is_v4 = ends.src.is_ipv4();
    let (kind, code) = match (error, is_v4) {
        (Error::Unreachable, true) => (3, 0),
        (Error::Unreachable, false) => (1, 0),
        (Error::PortUnreachable, true) => (3, 3),
        (Error::PortUnreachable, false) => (1, 4),
        (Error::TooBig, true) => (3, 4),
        (Error::TooBig, false) => (2, 0),
        (Error::TimeExceeded, true) => (11, 0),
        (Error::TimeExceeded, false) => (3, 0),
        (Error::ParameterProblem, true) => (12, 0),
        (Error::ParameterProblem, false) => (4, 0),
        (Error::Redirect, true) => (5, 0),
        (Error::SourceQuench, true) => (4, 0),
        (Error::Redirect | Error::SourceQuench, false) => bail!("{error:?} is of IPv4"),
    };
    let mut bytes = vec![kind, packet.code.unwrap_or(code), 0, 0];
    bytes.extend(u32::from(packet.mtu).to_be_bytes());
    let (header, mut rest) = ip_packet(about, &Ends { about: None, src, dst, ..*ends })?;
    rest.truncate(packet.about_bytes.unwrap_or(rest.len()));
    bytes.extend([header, rest].concat());
    let (number, pseudo_header) = match (ends.src.ip(), ends.dst.ip()) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let length = (bytes.len() as u32).to_be_bytes();
            let number = ip_number::IPV6_ICMP;
            (number, [&src.octets()[..], &dst.octets(), &length, &[0, 0, 0, number.0]].concat())
        }
        _ => (ip_number::ICMP, vec![]),
    };
    let checksum = oracle::checksum(&[&pseudo_header, &bytes]).to_be_bytes();
    bytes[2..4].copy_from_slice(&checksum);
    spoil(&mut bytes, packet.checksum);
    Ok((number, bytes))
}

/// Writes another checksum into an ICMP message.
fn spoil(message: &mut [u8], wanted: Option<Checksum>) {
    let checksum = spoiled(u16::from_be_bytes([message[2], message[3]]), wanted);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
}

/// The bytes of a fragment, its offset, and whether more follow.
fn cut_out(fragment: Option<Fragment>, segment: &[u8]) -> Result<(&[u8], IpFragOffset, bool)> {
    let Some(Fragment { offset, length, .. }) = fragment else {
        return Ok((segment, IpFragOffset::ZERO, false));
    };
    let end = length.map_or(segment.len(), |length| offset + length);
    let bytes = segment.get(offset..end).with_context(|| {
        format!("the fragment is bytes {offset} to {end}, but the packet has only {}", segment.len())
    })?;
    let is_last = end == segment.len();
    if offset % 8 != 0 || (!is_last && end % 8 != 0) {
        bail!("fragments begin, and but for the last end, at multiples of 8 bytes; found {offset} to {end}");
    }
    Ok((bytes, IpFragOffset::try_new(u16::try_from(offset / 8)?)?, !is_last))
}

fn ipv4(packet: &Packet, ends: &Ends, number: IpNumber, segment: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (ends.src.ip(), ends.dst.ip()) else { bail!("not IPv4") };
    if !packet.extensions.is_empty() || packet.flow_label != 0 {
        bail!("`extensions` and `flow_label` are of IPv6: say `family = \"v6\"` in the case");
    }
    let (payload, fragment_offset, more_fragments) = cut_out(packet.fragment, segment)?;
    let ttl = packet.ttl.unwrap_or(64);
    let mut header = Ipv4Header::new(u16::try_from(payload.len())?, ttl, number, src.octets(), dst.octets())?;
    header.options = packet.ip_options.0.as_slice().try_into()?;
    header.set_payload_len(payload.len())?;
    header.dscp = IpDscp::try_new(packet.tos >> 2)?;
    header.ecn = IpEcn::try_new(packet.tos & 3)?;
    header.identification = packet.fragment.map_or(packet.id, |fragment| fragment.id as u16);
    header.dont_fragment = packet.dont_fragment.unwrap_or(packet.fragment.is_none());
    (header.fragment_offset, header.more_fragments) = (fragment_offset, more_fragments);
    header.total_len = packet.claim.ip_length.unwrap_or(header.total_len);
    let mut bytes = header.to_bytes().to_vec();
    claim_first_byte(packet, &mut bytes)?;
    bytes[10..12].fill(0);
    let checksum = oracle::checksum(&[&bytes]).to_be_bytes();
    bytes[10..12].copy_from_slice(&checksum);
    if packet.bad_ip_checksum {
        bytes[10] ^= 1;
    }
    Ok((bytes, payload.to_vec()))
}

fn ipv6(packet: &Packet, ends: &Ends, number: IpNumber, segment: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (ends.src.ip(), ends.dst.ip()) else { bail!("not IPv6") };
    if !packet.ip_options.0.is_empty() || packet.bad_ip_checksum || packet.id != 0 {
        bail!("`ip_options`, `bad_ip_checksum` and `id` are of IPv4: say `family = \"v4\"` in the case");
    }
    let (payload, fragment_offset, more_fragments) = cut_out(packet.fragment, segment)?;
    let mut extensions = vec![];
    let mut next = number;
    if let Some(Fragment { id, .. }) = packet.fragment {
        let header = Ipv6FragmentHeader::new(next, fragment_offset, more_fragments, id);
        extensions.splice(..0, header.to_bytes());
        next = ip_number::IPV6_FRAG;
    }
    for extension in packet.extensions.iter().rev() {
        let header = Ipv6RawExtHeader::new_raw(next, &extension.data.0)?;
        extensions.splice(..0, header.to_bytes());
        next = IpNumber(extension.header);
    }
    let length = u16::try_from(extensions.len() + payload.len())?;
    let header = Ipv6Header {
        traffic_class: packet.tos,
        flow_label: Ipv6FlowLabel::try_new(packet.flow_label)?,
        payload_length: packet.claim.ip_length.unwrap_or(length),
        next_header: next,
        hop_limit: packet.ttl.unwrap_or(64),
        source: src.octets(),
        destination: dst.octets(),
    };
    let mut bytes = header.to_bytes().to_vec();
    claim_first_byte(packet, &mut bytes)?;
    bytes.extend(extensions);
    Ok((bytes, payload.to_vec()))
}

/// Writes what the first byte of the IP header is to claim.
fn claim_first_byte(packet: &Packet, header: &mut [u8]) -> Result<()> {
    let first = header.first_mut().context("an IP header has a first byte")?;
    if let Some(version) = packet.claim.ip_version {
        *first = version << 4 | (*first & 0x0f);
    }
    if let Some(length) = packet.claim.ip_header_length {
        *first = (*first & 0xf0) | (length / 4);
    }
    Ok(())
}
