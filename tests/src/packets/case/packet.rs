//! A packet as a case describes it.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::packets::network::Mac;

/// A packet as it is sent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Packet {
    /// Interface it comes in through; `front` if missing.
    pub on: Option<String>,
    /// Source: `host:port`.
    pub src: String,
    /// Destination: `host:port`.
    pub dst: String,
    /// Source MAC; that of the source host if missing.
    pub src_mac: Option<Mac>,
    /// Destination MAC; that of the interface if missing.
    pub dst_mac: Option<Mac>,
    /// VLAN tags, the outer one first.
    pub vlan: Vec<Tag>,
    /// TCP flags, a letter each: `F S R P A U E C`.
    pub tcp: Option<String>,
    /// UDP.
    pub udp: bool,
    /// ICMP or ICMPv6 echo request.
    pub echo: bool,
    /// ICMP or ICMPv6 echo reply.
    pub echo_reply: bool,
    /// ICMP or ICMPv6 error.
    pub error: Option<IcmpError>,
    /// Code of the error, where it is not the usual one.
    pub code: Option<u8>,
    /// MTU that an error tells.
    pub mtu: u16,
    /// Packet that an error is about.
    pub about: Option<Box<Packet>>,
    /// How many bytes of that packet the error carries after its IP header; all if missing.
    pub about_bytes: Option<usize>,
    /// Another IP protocol, by number, with nothing but the payload.
    pub protocol: Option<u8>,
    /// TCP sequence number.
    pub seq: u32,
    /// TCP acknowledgement number.
    pub ack: u32,
    /// TCP options, in hexadecimal, padded to whole words.
    pub tcp_options: Hex,
    /// Payload as text.
    pub payload: String,
    /// Payload in hexadecimal, after the text.
    pub payload_hex: Hex,
    /// Length of a payload of counted bytes, after both.
    pub payload_length: usize,
    /// TTL or hop limit; 64 if missing.
    pub ttl: Option<u8>,
    /// Type of service or traffic class.
    pub tos: u8,
    /// IPv4 identification.
    pub id: u16,
    /// IPv4 don't-fragment flag; set if missing, but for fragments.
    pub dont_fragment: Option<bool>,
    /// IPv6 flow label.
    pub flow_label: u32,
    /// IPv4 options, in hexadecimal, padded to whole words.
    pub ip_options: Hex,
    /// IPv6 extension headers, in this order.
    pub extensions: Vec<Extension>,
    /// Which part of the packet this frame holds.
    pub fragment: Option<Fragment>,
    /// Checksum of TCP, UDP or ICMP; right if missing.
    pub checksum: Option<Checksum>,
    /// IPv4 header checksum is wrong.
    pub bad_ip_checksum: bool,
    /// What headers claim against the truth.
    pub claim: Claim,
    /// The frame is filled up with bytes to this length, as senders do to reach 60.
    pub pad_to: Option<usize>,
    /// The frame is cut off after so many bytes.
    pub cut_to: Option<usize>,
    /// The whole frame in hexadecimal; then nothing else is looked at but `on`.
    pub hex: Option<Hex>,
}

/// A VLAN tag: a number, or more.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields, expecting = "a VLAN id, or `{ id, type, priority }`")]
pub enum Tag {
    /// Its VLAN.
    Id(u16),
    /// Everything in it.
    Whole {
        /// Its VLAN.
        id: u16,
        /// Ethernet type: 0x8100 (802.1Q) or 0x88a8 (802.1ad); if missing, the latter before other tags.
        #[serde(rename = "type")]
        ether_type: Option<u16>,
        /// Priority code point.
        #[serde(default)]
        priority: u8,
    },
}

/// An ICMP or ICMPv6 error, by what it says in either (RFC 792; RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IcmpError {
    /// Destination unreachable, code 0: net, or no route.
    Unreachable,
    /// Destination unreachable: port.
    PortUnreachable,
    /// Fragmentation needed, or packet too big.
    TooBig,
    /// Time exceeded, code 0: in transit.
    TimeExceeded,
    /// Parameter problem, code 0.
    ParameterProblem,
    /// Redirect (IPv4), which is advice and no error.
    Redirect,
    /// Source quench (IPv4), deprecated by RFC 6633.
    SourceQuench,
}

/// Bytes in hexadecimal; white space is for the reader.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct Hex(pub Vec<u8>);

/// An IPv6 extension header of the common form (RFC 8200, 4.3-4.6).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// Its number: 0 hop-by-hop, 43 routing, 60 destination options.
    pub header: u8,
    /// What follows its first two bytes: 6, 14, 22 ... bytes.
    pub data: Hex,
}

/// A part of a packet.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fragment {
    /// First byte, counted from the transport header.
    pub offset: usize,
    /// Number of bytes; all that are left if missing.
    pub length: Option<usize>,
    /// Identification.
    pub id: u32,
}

/// A checksum that is not the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// None (UDP).
    Zero,
    /// Wrong.
    Bad,
}

/// What headers claim against the truth.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Claim {
    /// IP version.
    pub ip_version: Option<u8>,
    /// IPv4 header length in bytes, a multiple of 4.
    pub ip_header_length: Option<u8>,
    /// IPv4 total length, or IPv6 payload length.
    pub ip_length: Option<u16>,
    /// TCP header length in bytes, a multiple of 4.
    pub tcp_header_length: Option<u8>,
    /// UDP length.
    pub udp_length: Option<u16>,
}

impl TryFrom<String> for Hex {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).ok();
        let bytes: Option<Vec<u8>> =
            digits.chunks(2).map(|pair| byte(pair).filter(|_| pair.len() == 2)).collect();
        bytes.map(Self).with_context(|| format!("expected pairs of hexadecimal digits, found `{text}`"))
    }
}
