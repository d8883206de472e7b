//! What the balancer says itself, to the sender of a packet or to the client of its flow.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, TcpHeader, TcpHeaderSlice, ip_number};

use super::{Dissected, Translation, checksum};

/// TTL or hop limit of packets that the balancer makes.
const TTL: u8 = 64;

/// An ICMP or ICMPv6 error that the balancer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nothing listens on the port (RFC 792 type 3 code 3; RFC 4443 type 1 code 4).
    PortUnreachable,
    /// The packet does not fit a link with this MTU (RFC 1191, 4; RFC 4443, 3.2).
    TooBig(u16),
}

impl Dissected<'_> {
    /// The RST that the sender gets for a TCP packet (RFC 9293, 3.10.7.1).
    ///
    /// # Errors
    ///
    /// If it is no TCP packet.
    pub fn rst(&self) -> Result<Vec<u8>> {
        let tcp = self.tcp()?;
        let mut header = TcpHeader::new(self.dst.port(), self.src.port(), 0, 0);
        header.rst = true;
        if tcp.ack() {
            header.sequence_number = tcp.acknowledgment_number();
        } else {
            let payload = self.payload().len() - tcp.slice().len();
            let length = payload + usize::from(tcp.syn()) + usize::from(tcp.fin());
            header.ack = true;
            header.acknowledgment_number = tcp.sequence_number().wrapping_add(length as u32);
        }
        let mut frame = self.ethernet_back();
        frame.extend(segment(header, self.dst.ip(), self.src.ip())?);
        Ok(frame)
    }

    /// The RST to the client that a TCP packet of a backend is turned into.
    ///
    /// # Errors
    ///
    /// If it is no TCP packet.
    pub fn turned_into_rst(&self, to: &Translation) -> Result<Vec<u8>> {
        let tcp = self.tcp()?;
        let mut header = TcpHeader::new(to.src.port(), to.dst.port(), tcp.sequence_number(), 0);
        (header.rst, header.ack) = (true, true);
        header.acknowledgment_number = tcp.acknowledgment_number();
        let mut frame = [to.dst_mac.0, to.src_mac.0].concat();
        frame.extend(&self.frame[12..self.l3]);
        frame.extend(segment(header, to.src.ip(), to.dst.ip())?);
        Ok(frame)
    }

    /// The ICMP error that the sender gets, from this address: it carries the IP header with all that belongs to it,
    /// and 8 bytes more.
    ///
    /// # Errors
    ///
    /// If the address is of another family.
    pub fn error(&self, error: Error, from: IpAddr) -> Result<Vec<u8>> {
        let end = self.l3_end.min(self.l4 + 8);
        let (kind, code, mtu) = match (error, from) {
            (Error::PortUnreachable, IpAddr::V4(_)) => (3, 3, 0),
            (Error::PortUnreachable, IpAddr::V6(_)) => (1, 4, 0),
            (Error::TooBig(mtu), IpAddr::V4(_)) => (3, 4, mtu),
            (Error::TooBig(mtu), IpAddr::V6(_)) => (2, 0, mtu),
        };
        let mut message = vec![kind, code, 0, 0];
        message.extend(u32::from(mtu).to_be_bytes());
        message.extend(&self.frame[self.l3..end]);
        let number = if from.is_ipv4() { ip_number::ICMP } else { ip_number::IPV6_ICMP };
        let mut frame = self.ethernet_back();
        let at = frame.len();
        frame.extend(ip(from, self.src.ip(), number, &message, false)?);
        let made = Dissected {
            frame: &frame,
            l3: at,
            l4: frame.len() - message.len(),
            l3_end: frame.len(),
            ..*self
        };
        let made = Dissected {
            part: None,
            protocol: number.0,
            src: SocketAddr::new(from, 0),
            dst: self.src,
            ..made
        };
        Ok(made.corrected_outside())
    }

    /// The reply to an echo request: the same message, to whom it came from. Checksums that were wrong stay so.
    ///
    /// # Errors
    ///
    /// If it is no echo request.
    pub fn echo_reply(&self) -> Result<Vec<u8>> {
        let reply = match (self.protocol, self.frame[self.l4]) {
            (1, 8) => 0,
            (58, 128) => 129,
            (protocol, kind) => bail!("expected an echo request, found type {kind} of protocol {protocol}"),
        };
        let mut frame = self.ethernet_back();
        frame.extend(&self.frame[self.l3..]);
        frame[self.l4] = reply;
        frame[self.ttl_at()] = TTL;
        let (at, length) = if self.src.is_ipv4() { (self.l3 + 12, 4) } else { (self.l3 + 8, 16) };
        let (src, dst) = frame[at..at + 2 * length].split_at_mut(length);
        src.swap_with_slice(dst);
        self.write_checksums(&mut frame, (self.dst, self.src), self.ip_checksum(), self.transport_checksum());
        Ok(frame)
    }

    /// The same frame with right checksums, whatever an ICMP error carries.
    fn corrected_outside(&self) -> Vec<u8> {
        let mut frame = self.frame.to_vec();
        self.write_checksums(&mut frame, (self.src, self.dst), super::State::Right, super::State::Right);
        frame
    }

    fn tcp(&self) -> Result<TcpHeaderSlice<'_>> {
        anyhow::ensure!(self.protocol == 6 && self.has_ports(), "only TCP is answered with a RST");
        TcpHeaderSlice::from_slice(self.payload()).context("no TCP header")
    }

    /// The Ethernet header, tags included, of a frame to whom this one came from.
    fn ethernet_back(&self) -> Vec<u8> {
        [&self.frame[6..12], &self.frame[..6], &self.frame[12..self.l3]].concat()
    }
}

/// An IP packet with a TCP header and nothing else.
fn segment(mut header: TcpHeader, src: IpAddr, dst: IpAddr) -> Result<Vec<u8>> {
    header.checksum = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), &[])?
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &[])?
        }
        _ => bail!("{src} and {dst} are of different families"),
    };
    ip(src, dst, ip_number::TCP, &header.to_bytes(), true)
}

/// An IP packet without options or extension headers.
fn ip(src: IpAddr, dst: IpAddr, number: IpNumber, payload: &[u8], dont_fragment: bool) -> Result<Vec<u8>> {
    let length = u16::try_from(payload.len())?;
    let mut bytes = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = Ipv4Header::new(length, TTL, number, src.octets(), dst.octets())?;
            (header.identification, header.dont_fragment) = (0, dont_fragment);
            let mut bytes = header.to_bytes().to_vec();
            bytes[10..12].fill(0);
            let sum = checksum(&[&bytes]).to_be_bytes();
            bytes[10..12].copy_from_slice(&sum);
            bytes
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => Ipv6Header {
            payload_length: length,
            next_header: number,
            hop_limit: TTL,
            source: src.octets(),
            destination: dst.octets(),
            ..Ipv6Header::default()
        }
        .to_bytes()
        .to_vec(),
        _ => bail!("{src} and {dst} are of different families"),
    };
    bytes.extend(payload);
    Ok(bytes)
}
