//! The format of the case files. `tests/packets/README.md` tells it to those who write cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use toml::{Spanned, Table};

use super::Family;
use super::network::Mac;

/// A file of cases: one topic.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    /// What the cases have in common, for the reader.
    pub about: String,
    /// The configuration that each case begins with.
    pub config: Table,
    /// The cases.
    #[serde(rename = "case")]
    pub cases: Vec<Case>,
}

/// One case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it shows, as a sentence.
    pub name: Spanned<String>,
    /// Why that must be so, where the name does not tell.
    pub why: Option<String>,
    /// The only IP version it makes sense for.
    pub family: Option<Family>,
    /// What differs from the configuration of the file.
    #[serde(default)]
    pub change: Table,
    /// What happens, in this order.
    #[serde(rename = "step")]
    pub steps: Vec<Spanned<Step>>,
}

/// One step: packets with what must become of them, or a change of the surroundings.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// A packet that comes in.
    pub send: Option<Packet>,
    /// How many of them; `+` in an endpoint counts along.
    pub repeat: Option<u16>,
    /// It leaves through the interface it came in through, like this.
    pub tx: Option<Out>,
    /// It leaves through another interface, like this.
    pub redirect: Option<Out>,
    /// It goes to the kernel, untouched.
    pub pass: Option<Pass>,
    /// It is dropped for this reason.
    pub drop: Option<String>,
    /// The listener a drop is counted for, if the packet's destination does not tell; `""`: none.
    pub listener: Option<String>,
    /// Whether it opens a flow.
    pub opens: bool,
    /// Whether it refuses a connection.
    pub refused: bool,

    /// What changes in the configuration, as by a reload.
    pub change: Option<Table>,
    /// Results of checks, by backend: `healthy`, `unhealthy` or `unknown`.
    pub health: BTreeMap<String, String>,
    /// Next hops, by host: `resolved` or `unresolved`.
    pub next_hop: BTreeMap<String, String>,
    /// Seconds that pass; afterwards idle flows are collected.
    pub wait_s: Option<u64>,
    /// Whether the controller is killed and started again.
    pub restart: bool,

    /// How many flows there are after this step.
    pub connections: Option<usize>,
}

/// Whether a packet that goes to the kernel is counted.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "`true`, or the name under which it is counted")]
pub enum Pass {
    /// `true`: it is not.
    Uncounted(True),
    /// The name under which it is.
    Counted(String),
}

/// The value `true`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "bool")]
pub struct True;

impl TryFrom<bool> for True {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value { Ok(Self) } else { Err("a packet that does not pass has another outcome; say that") }
    }
}

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
    /// VLAN tags, the outer one first: 802.1ad if there are two, else 802.1Q.
    pub vlan: Vec<u16>,
    /// TCP flags, a letter each: `F S R P A U E C`.
    pub tcp: Option<String>,
    /// UDP.
    pub udp: bool,
    /// ICMP or ICMPv6 echo request.
    pub echo: bool,
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
    /// IPv6 flow label.
    pub flow_label: u32,
    /// IPv4 options, in hexadecimal, padded to whole words.
    pub ip_options: Hex,
    /// IPv6 extension headers, in this order.
    pub extensions: Vec<Extension>,
    /// Which part of the packet this frame holds.
    pub fragment: Option<Fragment>,
    /// TCP or UDP checksum; right if missing.
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

/// A packet as it is expected: what differs from the one sent, apart from checksums, which must be right.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Out {
    /// Source after translation.
    pub src: String,
    /// Destination after translation.
    pub dst: String,
    /// Interface it leaves through, if that is not the one it came in through.
    pub via: Option<String>,
    /// TTL or hop limit; one less than before if missing.
    pub ttl: Option<u8>,
    /// Destination MAC; that of the destination host if missing.
    pub dst_mac: Option<Mac>,
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

/// A file of cases with its text, which errors refer to.
#[derive(Clone, Debug)]
pub struct CaseFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub topic: Topic,
    text: String,
}

impl CaseFile {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// If it cannot be read or means nothing.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(path, text)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    ///
    /// If it means nothing.
    pub fn parse(path: &Path, text: String) -> Result<Self> {
        let topic = toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
        Ok(Self { path: path.to_owned(), topic, text })
    }

    /// Reads all files of a folder, but for `network.toml`, in the order of their names.
    ///
    /// # Errors
    ///
    /// If one cannot be read, or there is none.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>> {
        let entries = std::fs::read_dir(folder).with_context(|| {
            format!(
                "cannot read the folder of the packet cases, {}; LB_PACKET_CASES names it",
                folder.display()
            )
        })?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.retain(|path| {
            path.extension().is_some_and(|extension| extension == "toml") && !path.ends_with("network.toml")
        });
        paths.sort();
        anyhow::ensure!(!paths.is_empty(), "there are no packet cases in {}", folder.display());
        paths.iter().map(|path| Self::read(path)).collect()
    }

    /// The topic's name: that of the file.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The line of a part of the file, from 1.
    pub fn line<T>(&self, part: &Spanned<T>) -> usize {
        self.text.bytes().take(part.span().start).filter(|&byte| byte == b'\n').count() + 1
    }
}
