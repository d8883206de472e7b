//! The format of the case files. `tests/packets/README.md` tells it to those who write cases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use toml::{Spanned, Table};

use super::Family;
use super::network::Mac;

mod packet;

pub use packet::{Checksum, Claim, Extension, Fragment, Hex, IcmpError, Packet, Tag};

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
    /// The fragment that has been held longest comes in again, as the controller sends it when its first has come.
    pub send_held: bool,
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
    /// It is held for its first fragment.
    pub hold: bool,
    /// The balancer answers it, besides dropping it where `drop` says so.
    pub answer: Option<Reply>,
    /// What else is counted.
    pub notes: Vec<String>,
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
    /// MTUs: of an interface, or of the way to a host.
    pub mtu: BTreeMap<String, u16>,
    /// Interfaces where the program runs in the kernel's generic path.
    pub generic: Vec<String>,
    /// Whether the controller ends all TCP flows: their next packets are turned into RSTs.
    pub cut: bool,
    /// The connection maps are full but for so many flows.
    pub room_for: Option<u32>,
    /// Seconds that pass; afterwards idle flows are collected.
    pub wait_s: Option<u64>,
    /// Whether the controller is killed and started again.
    pub restart: bool,

    /// How many flows there are after this step.
    pub connections: Option<usize>,
}

/// Under which name a packet is counted that goes to the kernel.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "the name under which it is counted, or `true` for any")]
pub enum Pass {
    /// `true`: under any one name.
    Any(True),
    /// This name.
    Named(String),
}

/// What the balancer says itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A RST to the sender.
    Rst,
    /// An ICMP port unreachable to the sender.
    PortUnreachable,
    /// An ICMP error with this MTU to the sender.
    TooBig(u16),
    /// An echo reply.
    Echo,
    /// The packet is turned into a RST like this.
    TurnedIntoRst(Out),
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
    /// Host that the frame goes to, if it is not for the address of the packet.
    pub to: Option<String>,
    /// What becomes of the packet that an ICMP error is about.
    pub about: Option<About>,
}

/// Source and destination of the packet that an ICMP error is about.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Source after translation.
    pub src: String,
    /// Destination after translation.
    pub dst: String,
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
