//! Status as data: the shape of `lb status --json` and `GET /v1/status`. Fields are only ever added.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// The whole status of an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of this shape: 1.
    pub version: u32,
    /// Name of the instance.
    pub instance: String,
    /// OK, WARNING, CRITICAL or UNKNOWN.
    pub status: String,
    /// Why.
    pub reason: String,
    /// Where the configuration comes from.
    pub config: ConfigStatus,
    /// Interfaces the program is attached to.
    pub interfaces: Vec<InterfaceStatus>,
    /// Listeners, in the order of the file.
    pub listeners: Vec<ListenerStatus>,
    /// Backend sets by name.
    pub backend_sets: Vec<SetStatus>,
    /// Dropped packets by reason, those without a listener included.
    pub drops: BTreeMap<String, u64>,
    /// Packets left to the kernel, by reason.
    #[serde(default)]
    pub passes: BTreeMap<String, u64>,
    /// What else happened to packets.
    #[serde(default)]
    pub notes: BTreeMap<String, u64>,
    /// SNAT ports in use, towards each backend.
    pub snat: Vec<SnatStatus>,
}

/// The configuration in force.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConfigStatus {
    /// Path of the file.
    pub file: String,
    /// RFC 3339.
    pub loaded_at: String,
    /// Why the last reload was refused; null when it was not.
    pub last_reload_error: Option<String>,
    /// Reloads refused since the start.
    pub reload_failures: u64,
}

/// An attached interface.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `native` or `generic`; `gone` while there is no such interface.
    pub mode: String,
    /// Kernel id of the program.
    pub program_id: u32,
}

/// A listener.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// The VIP.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its port; 0 for every port, the first of a range.
    pub port: u16,
    /// First and last port: `80-80`, `8000-8100`.
    #[serde(default)]
    pub ports: String,
    /// `tcp`, `udp` or `tcp_and_udp`.
    pub protocol: String,
    /// Name of its set.
    pub backend_set: String,
    /// That of its set.
    pub status: String,
    /// Why.
    pub reason: String,
    /// Packets, both directions.
    pub packets: u64,
    /// Bytes of IP packets, both directions.
    pub bytes: u64,
    /// Flows made.
    pub new_flows: u64,
    /// Flows alive.
    pub active_flows: u64,
    /// Dropped packets by reason; those that occurred.
    pub drops: BTreeMap<String, u64>,
    /// Packets left to the kernel, by reason; those that occurred.
    #[serde(default)]
    pub passes: BTreeMap<String, u64>,
    /// What else happened to packets; what occurred.
    #[serde(default)]
    pub notes: BTreeMap<String, u64>,
}

/// A backend set.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SetStatus {
    /// Its name.
    pub name: String,
    /// OK, WARNING, CRITICAL or UNKNOWN.
    pub status: String,
    /// Why.
    pub reason: String,
    /// Backends that count: neither drained nor offline.
    pub total: usize,
    /// How many of them are OK.
    pub ok: usize,
    /// Names of those that are WARNING.
    pub warning: Vec<String>,
    /// Names of those that are CRITICAL.
    pub critical: Vec<String>,
    /// Names of those that are UNKNOWN.
    pub unknown: Vec<String>,
    /// All of its backends, in the order of the file.
    pub backends: Vec<BackendStatus>,
}

/// A backend.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its port; 0 keeps the destination port.
    pub port: u16,
    /// OK, WARNING, CRITICAL or UNKNOWN.
    pub status: String,
    /// ACTIVE, STANDBY, DRAINING, OFFLINE or DOWN.
    pub state: String,
    /// Whether new flows may be given to it.
    pub in_rotation: bool,
    /// Its weight.
    pub weight: u16,
    /// Packets, both directions.
    pub packets: u64,
    /// Bytes of IP packets, both directions.
    pub bytes: u64,
    /// Flows made.
    pub new_flows: u64,
    /// Flows alive.
    pub active_flows: u64,
    /// Connections it answered with a RST.
    pub refused: u64,
    /// Connections it did not answer at all, since the controller started.
    pub unanswered: u64,
    /// Why no packet can be sent to it; null when the way is known.
    pub next_hop_problem: Option<String>,
    /// The last check; `healthCheckStatus` is UNKNOWN before the first.
    pub result: Value,
}

/// SNAT ports in use towards one backend.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnatStatus {
    /// The SNAT address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Name of the set.
    pub backend_set: String,
    /// Name of the backend.
    pub backend: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Ports in use towards the address and port of this backend, whichever set has it.
    pub in_use: u64,
    /// Ports there are: those of the range that are neither a listener's nor the host's.
    pub ports: u64,
}

/// The names behind the ids in the maps: `GET /v1/names`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Names {
    /// Listeners.
    pub listeners: Vec<ListenerName>,
    /// Backends.
    pub backends: Vec<BackendName>,
}

/// Whose listener id this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListenerName {
    /// Id in the maps.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// Whose backend id this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendName {
    /// Id in the maps.
    pub id: u32,
    /// Name of its set.
    pub backend_set: String,
    /// Its name.
    pub name: String,
}
