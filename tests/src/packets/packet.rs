//! Builds the frame that a case describes.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp,
    IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, SingleVlanHeader, TcpHeader, UdpHeader, VlanId, ether_type, ip_number,
};

use super::case::{Checksum, Fragment, Packet};
use super::network::{Interface, Mac};
use super::oracle;
use super::symbols::{Scope, Symbols};

/// Who sends a packet and to whom.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
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
        Ok(Self { src, dst, src_mac, dst_mac: packet.dst_mac.unwrap_or(ingress.mac) })
    }
}

/// The frame, without the frame check sequence.
///
/// # Errors
///
/// If the description contradicts itself.
pub fn build(packet: &Packet, ends: &Ends) -> Result<Vec<u8>> {
    let mut frame = ethernet(packet, ends)?;
    let (number, segment) = transport(packet, ends)?;
    frame.extend(match (ends.src.ip(), ends.dst.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => ipv4(packet, ends, number, &segment)?,
        (IpAddr::V6(_), IpAddr::V6(_)) => ipv6(packet, ends, number, &segment)?,
        _ => bail!("source and destination are of different families: {} and {}", ends.src, ends.dst),
    });
    if let Some(length) = packet.pad_to {
        // Senders must not leak memory here, but some fill it with something: not zero, so that it shows.
        frame.resize(length.max(frame.len()), 0xee);
    }
    if let Some(length) = packet.cut_to {
        frame.truncate(length);
    }
    Ok(frame)
}

fn ethernet(packet: &Packet, ends: &Ends) -> Result<Vec<u8>> {
    let payload = if ends.src.is_ipv4() { ether_type::IPV4 } else { ether_type::IPV6 };
    let mut types: Vec<EtherType> = match packet.vlan.len() {
        0 => vec![],
        1 => vec![ether_type::VLAN_TAGGED_FRAME],
        tags => {
            let mut types = vec![ether_type::VLAN_TAGGED_FRAME; tags];
            types[0] = ether_type::PROVIDER_BRIDGING;
            types
        }
    };
    types.push(payload);
    let header =
        Ethernet2Header { source: ends.src_mac.0, destination: ends.dst_mac.0, ether_type: types[0] };
    let mut bytes = header.to_bytes().to_vec();
    for (&id, &ether_type) in packet.vlan.iter().zip(&types[1..]) {
        let tag =
            SingleVlanHeader { vlan_id: VlanId::try_new(id)?, ether_type, ..SingleVlanHeader::default() };
        bytes.extend(tag.to_bytes());
    }
    Ok(bytes)
}

/// The transport header with its payload, and its number.
fn transport(packet: &Packet, ends: &Ends) -> Result<(IpNumber, Vec<u8>)> {
    let counted = (0..packet.payload_length).map(|index| index as u8);
    let payload = packet.payload.bytes().chain(packet.payload_hex.0.iter().copied()).chain(counted);
    let payload: Vec<u8> = payload.collect();
    match (&packet.tcp, packet.udp, packet.echo, packet.protocol) {
        (Some(flags), false, false, None) => Ok((ip_number::TCP, tcp(packet, flags, ends, &payload)?)),
        (None, true, false, None) => Ok((ip_number::UDP, udp(packet, ends, &payload)?)),
        (None, false, true, None) => echo(ends, &payload),
        (None, false, false, Some(number)) => Ok((IpNumber(number), payload)),
        _ => {
            bail!("a packet is one of `tcp = \"FLAGS\"`, `udp = true`, `echo = true` and `protocol = NUMBER`")
        }
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

fn echo(ends: &Ends, payload: &[u8]) -> Result<(IpNumber, Vec<u8>)> {
    let header = IcmpEchoHeader { id: ends.src.port(), seq: 1 };
    let (number, mut bytes) = match (ends.src.ip(), ends.dst.ip()) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let kind = Icmpv6Type::EchoRequest(header);
            let header = Icmpv6Header::with_checksum(kind, src.octets(), dst.octets(), payload)?;
            (ip_number::IPV6_ICMP, header.to_bytes().to_vec())
        }
        _ => {
            let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(header), payload);
            (ip_number::ICMP, header.to_bytes().to_vec())
        }
    };
    bytes.extend(payload);
    Ok((number, bytes))
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

fn ipv4(packet: &Packet, ends: &Ends, number: IpNumber, segment: &[u8]) -> Result<Vec<u8>> {
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
    header.dont_fragment = packet.fragment.is_none();
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
    bytes.extend(payload);
    Ok(bytes)
}

fn ipv6(packet: &Packet, ends: &Ends, number: IpNumber, segment: &[u8]) -> Result<Vec<u8>> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (ends.src.ip(), ends.dst.ip()) else { bail!("not IPv6") };
    if !packet.ip_options.0.is_empty() || packet.bad_ip_checksum || packet.id != 0 {
        bail!("`ip_options`, `bad_ip_checksum` and `id` are of IPv4: say `family = \"v4\"` in the case");
    }
    let (payload, fragment_offset, more_fragments) = cut_out(packet.fragment, segment)?;
    let mut after = payload.to_vec();
    let mut next = number;
    if let Some(Fragment { id, .. }) = packet.fragment {
        let header = Ipv6FragmentHeader::new(next, fragment_offset, more_fragments, id);
        after.splice(..0, header.to_bytes());
        next = ip_number::IPV6_FRAG;
    }
    for extension in packet.extensions.iter().rev() {
        let header = Ipv6RawExtHeader::new_raw(next, &extension.data.0)?;
        after.splice(..0, header.to_bytes());
        next = IpNumber(extension.header);
    }
    let header = Ipv6Header {
        traffic_class: packet.tos,
        flow_label: Ipv6FlowLabel::try_new(packet.flow_label)?,
        payload_length: packet.claim.ip_length.map_or_else(|| u16::try_from(after.len()), Ok)?,
        next_header: next,
        hop_limit: packet.ttl.unwrap_or(64),
        source: src.octets(),
        destination: dst.octets(),
    };
    let mut bytes = header.to_bytes().to_vec();
    claim_first_byte(packet, &mut bytes)?;
    bytes.extend(after);
    Ok(bytes)
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
