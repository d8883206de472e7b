//! A valid configuration, every default spelled out. Field names, units and defaults are those of the file.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Serialize;

pub use super::words::*;

/// A whole configuration file. Sets and listeners keep the order of the file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// `[lb]`
    pub lb: Instance,
    /// `[api]`
    pub api: Api,
    /// `[[listener]]`
    #[serde(rename = "listener")]
    pub listeners: Vec<Listener>,
    /// `[backend_set.NAME]`
    #[serde(rename = "backend_set")]
    pub backend_sets: BTreeMap<String, BackendSet>,
}

/// `[lb]`: the data plane of this host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Instance {
    /// Interfaces the XDP program attaches to.
    pub interfaces: Vec<String>,
    /// How it attaches.
    pub xdp_mode: XdpMode,
    /// Source addresses for translated flows; empty: the listener's VIP.
    pub snat_addresses: Vec<IpAddr>,
    /// Source ports for translated flows.
    pub snat_ports: PortRange,
    /// Room for this many flows.
    pub max_connections: u32,
    /// Add each VIP to the host and announce it.
    pub assign_vips: bool,
    /// The VIP answers ping.
    pub icmp_echo: bool,
    /// What becomes of the data plane when the controller stops.
    pub on_exit: OnExit,
}

/// `[api]`
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Api {
    /// TCP address of the API; empty: unix socket only.
    pub listen: String,
    /// File with the bearer token for writes over TCP.
    pub token_file: String,
}

/// A contiguous range of ports, both ends included. Written `"8000-8100"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, not below `first`.
    pub last: u16,
}

impl Serialize for PortRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}-{}", self.first, self.last))
    }
}

/// `[[listener]]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listener {
    /// Unique name.
    pub name: String,
    /// The VIP.
    pub address: IpAddr,
    /// What it accepts.
    pub protocol: Protocol,
    /// Ports it accepts on; written as `port` when it is one, as `port = 0` when it is every port.
    #[serde(flatten, serialize_with = "serialize_ports")]
    pub ports: PortRange,
    /// Name of the set.
    pub backend_set: String,
    /// Seconds.
    pub tcp_idle_timeout_s: u32,
    /// Seconds.
    pub udp_idle_timeout_s: u32,
    /// RST to both sides when an established flow idles out.
    pub tcp_reset_on_idle: bool,
    /// Non-SYN TCP without a flow.
    pub on_untracked_tcp: OnUntrackedTcp,
    /// Sources that may connect; empty: all.
    pub allow_sources: Vec<IpNet>,
    /// Sources that may not; wins over `allow_sources`.
    pub deny_sources: Vec<IpNet>,
    /// New flows per second; 0: no limit.
    pub max_new_flows_per_s: u32,
}

fn serialize_ports<S: serde::Serializer>(ports: &PortRange, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let mut map = serializer.serialize_map(Some(1))?;
    match *ports {
        PortRange::EVERY => map.serialize_entry("port", &0u16)?,
        PortRange { first, last } if first == last => map.serialize_entry("port", &first)?,
        range => map.serialize_entry("ports", &range)?,
    }
    map.end()
}

impl PortRange {
    /// Every port: what `port = 0` means.
    pub const EVERY: Self = Self { first: 1, last: u16::MAX };
}

/// `[backend_set.NAME]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendSet {
    /// What is hashed.
    pub policy: Policy,
    /// How packets get to the backend.
    pub mode: Mode,
    /// When the source is translated.
    pub snat: Snat,
    /// Established TCP of a backend that leaves the rotation by health.
    pub on_unhealthy: OnUnhealthy,
    /// UDP of such a backend: `move` or `keep`.
    pub on_unhealthy_udp: OnUnhealthy,
    /// All unhealthy: use all that are neither drained nor offline.
    pub fail_open: bool,
    /// What a new flow gets when the rotation is empty.
    pub no_backend_action: NoBackendAction,
    /// How many must be OK for the set to be OK.
    pub min_healthy: MinHealthy,
    /// Whether the primary takes over again when it returns.
    pub preempt: bool,
    /// Seconds; 0: unlimited.
    pub drain_timeout_s: u32,
    /// At least one.
    #[serde(rename = "backend")]
    pub backends: Vec<Backend>,
    /// Its health check.
    pub health_check: HealthCheck,
}

/// The status rule of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinHealthy {
    /// `"half"`
    Half,
    /// A number of backends.
    Count(u32),
    /// A share of the backends that count, in percent.
    Percent(u8),
}

impl Serialize for MinHealthy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Half => serializer.serialize_str("half"),
            Self::Count(count) => serializer.serialize_u32(*count),
            Self::Percent(percent) => serializer.collect_str(&format_args!("{percent}%")),
        }
    }
}

/// `[[backend_set.NAME.backend]]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    /// Unique in its set.
    pub name: String,
    /// Unicast.
    pub address: IpAddr,
    /// 0 keeps the destination port.
    pub port: u16,
    /// Share of new flows, 0-1000.
    pub weight: u16,
    /// Used only when no other is healthy.
    pub backup: bool,
    /// No new flows.
    pub drain: bool,
    /// No traffic, no checks.
    pub offline: bool,
}

impl Backend {
    /// Address and port: who it is, whatever its name.
    pub const fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// `[backend_set.NAME.health_check]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HealthCheck {
    /// What it speaks.
    pub protocol: CheckProtocol,
    /// 0: the backend's port.
    pub port: u16,
    /// Milliseconds from check to check.
    pub interval_ms: u32,
    /// Milliseconds; one deadline for the whole check.
    pub timeout_ms: u32,
    /// Default of `rise` and `fall`, and the number of results a backend's level looks at.
    pub retries: u32,
    /// Consecutive successes to return.
    pub rise: u32,
    /// Consecutive failures to leave.
    pub fall: u32,
    /// None: the kernel's choice. Written `""`.
    #[serde(serialize_with = "serialize_optional_address")]
    pub source_address: Option<IpAddr>,
    /// What belongs to the protocol.
    #[serde(flatten)]
    pub kind: CheckKind,
}

fn serialize_optional_address<S: serde::Serializer>(
    address: &Option<IpAddr>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => serializer.collect_str(address),
        None => serializer.serialize_str(""),
    }
}

/// The part of a health check that belongs to its protocol.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum CheckKind {
    /// `tcp`
    Tcp(Payload),
    /// `udp`
    Udp(Payload),
    /// `http` (`tls` is `None`) and `https`
    Http(HttpCheck),
    /// `dns`
    Dns {
        /// `[backend_set.NAME.health_check.dns]`
        dns: DnsCheck,
    },
}

/// Bytes to send and to expect.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Payload {
    /// Decoded; written as base64.
    #[serde(serialize_with = "serialize_base64")]
    pub request_data: Vec<u8>,
    /// Decoded; the answer must start with it.
    #[serde(serialize_with = "serialize_base64")]
    pub response_data: Vec<u8>,
}

fn serialize_base64<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    use base64::Engine;
    serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// What an HTTP or HTTPS check asks and accepts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpCheck {
    /// Begins with `/`.
    pub path: String,
    /// GET or HEAD.
    pub method: Method,
    /// The Host header; empty: address:port.
    pub host: String,
    /// Accepted status codes.
    pub return_code: StatusCodes,
    /// Searched in the body, not anchored; empty: anything.
    pub response_body_regex: String,
    /// Bytes of the body that are read.
    pub max_body_bytes: u32,
    /// `None`: plain HTTP.
    #[serde(flatten)]
    pub tls: Option<TlsCheck>,
}

/// What an HTTPS check does about certificates.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TlsCheck {
    /// Verify chain and name.
    pub tls_verify: bool,
    /// SNI; empty: `host` if that is a name, else none.
    pub tls_server_name: String,
    /// PEM file of the CA; empty: the system's.
    pub tls_ca_file: PathBuf,
}

/// Accepted HTTP status codes, as they were written (`"200,302"`, `"200-299"`) and as ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusCodes {
    /// As written in the file; `expected` in a check's result.
    pub text: String,
    /// Inclusive ranges.
    pub ranges: Vec<(u16, u16)>,
}

impl StatusCodes {
    /// Whether a status code is accepted.
    pub fn contains(&self, code: u16) -> bool {
        self.ranges.iter().any(|&(first, last)| (first..=last).contains(&code))
    }
}

impl Serialize for StatusCodes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// What a DNS check asks and accepts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DnsCheck {
    /// Name to ask for.
    pub name: String,
    /// Class.
    pub class: DnsClass,
    /// Type.
    #[serde(rename = "type")]
    pub record_type: DnsType,
    /// UDP or TCP.
    pub transport: DnsTransport,
    /// Accepted response codes; at least one.
    pub rcodes: Vec<Rcode>,
}
