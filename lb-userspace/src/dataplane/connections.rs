//! Lists live flows from the pinned maps, whether a controller runs or not. The maps are only read, in batches; the
//! packet path notices nothing of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::Pod;
use aya::maps::{Array, Map, MapData, MapError};
use lb_common::listener::SetName;
use lb_common::{
    Addr4, Addr6, Address, Backend, Flow, FlowKey, HalfOpen, LAYOUT_VERSION, PROTO_TCP, Settings,
};
use serde::Serialize;

use super::clock::{Clock, Tick};
use super::flow_tables::HalfOpenFlows;
use super::sys::{Batch, Cursor};

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// TCP without the client's first ACK.
    HalfOpen,
    /// Open, or UDP.
    Established,
    /// TCP that both sides have ended by FIN, one by RST, or the controller.
    Closing,
}

impl State {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::Established => "established",
            Self::Closing => "closing",
        }
    }
}

/// A live flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IP protocol number.
    pub protocol: u8,
    /// Who connects.
    pub client: SocketAddr,
    /// What it connects to.
    pub vip: SocketAddr,
    /// Who the backend sees.
    pub source: SocketAddr,
    /// Where the backend is reached.
    pub destination: SocketAddr,
    /// Id of the listener.
    pub listener: u32,
    /// Id of the backend.
    pub backend: u32,
    /// How far it has come.
    pub state: State,
    /// Time since it was made.
    pub age: Duration,
    /// Time since the last packet, of either direction; up to 250 ms too long.
    pub idle: Duration,
}

/// Which flows are wanted: all, unless one of these says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of a listener.
    pub listener: Option<Which>,
    /// To a backend.
    pub backend: Option<Which>,
}

/// A listener or backend: by its ids, or by address and port.
#[derive(Clone, Debug)]
pub enum Which {
    /// One of these ids.
    Ids(BTreeSet<u32>),
    /// The VIP of a flow, or its destination.
    At(SocketAddr),
}

impl Which {
    fn is(&self, id: u32, at: SocketAddr) -> bool {
        match self {
            Self::Ids(ids) => ids.contains(&id),
            Self::At(address) => *address == at,
        }
    }
}

impl Filter {
    fn admits<A: Address + Into<IpAddr>>(&self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        let vip = SocketAddr::new(key.destination.into(), key.destination_port);
        let destination = SocketAddr::new(flow.destination.into(), flow.destination_port);
        self.listener.as_ref().is_none_or(|which| which.is(flow.listener, vip))
            && self.backend.as_ref().is_none_or(|which| which.is(flow.backend, destination))
    }
}

/// The pinned maps of an instance, for reading.
pub struct Connections {
    v4: Flows<Addr4>,
    v6: Flows<Addr6>,
    backends: Array<MapData, Backend>,
    backend_sets: Array<MapData, SetName>,
    clock: Clock,
}

impl Connections {
    /// Opens the maps that are pinned in a directory; `None` if there are none.
    ///
    /// # Errors
    ///
    /// If they cannot be opened, or are of another version of this program.
    pub fn open(pins: &Path) -> Result<Option<Self>> {
        if !pins
            .join("settings")
            .try_exists()
            .with_context(|| format!("cannot look into {}", pins.display()))?
        {
            return Ok(None);
        }
        let settings: Array<_, Settings> = array(pins, "settings")?;
        let version = settings.get(&0, 0).context("cannot read the map `settings`")?.layout_version;
        if version != LAYOUT_VERSION {
            bail!(
                "the maps in {} are of layout {version}, this program reads layout {LAYOUT_VERSION}: {WAY_OUT}",
                pins.display()
            );
        }
        Ok(Some(Self {
            v4: Flows::open(pins)?,
            v6: Flows::open(pins)?,
            backends: array(pins, "backends")?,
            backend_sets: array(pins, "backend_sets")?,
            clock: Clock::alone()?,
        }))
    }

    /// Set and address of each backend, by id: what the maps know of their names.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn backends(&self) -> Result<BTreeMap<u32, (String, SocketAddr)>> {
        let mut found = BTreeMap::new();
        for id in 0..self.backends.len() {
            let backend = self.backends.get(&id, 0).context("cannot read the map `backends`")?;
            if backend.has(Backend::IN_USE) {
                let set =
                    self.backend_sets.get(&backend.set, 0).context("cannot read the map `backend_sets`")?;
                let set = String::from_utf8_lossy(&set.name).trim_end_matches('\0').to_owned();
                found.insert(id, (set, SocketAddr::new(backend.address.into(), backend.port)));
            }
        }
        Ok(found)
    }

    /// Shows each live flow to `visit` until that says it has seen enough. Flows that come and go meanwhile may be
    /// shown or not; the others are shown once.
    ///
    /// # Errors
    ///
    /// If a map cannot be read, and those of `visit`.
    pub fn visit(
        &self,
        filter: &Filter,
        mut visit: impl FnMut(&Connection) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        if self.v4.walk(filter, &self.clock, &mut visit)?.is_continue() {
            let _ = self.v6.walk(filter, &self.clock, &mut visit)?;
        }
        Ok(())
    }
}

/// What to do about maps of another version.
const WAY_OUT: &str =
    "use the `lb` that filled them, or run `lb detach` (this ends their connections) and start again";

/// Opens a pinned map and compares its shape, which decides how much the kernel reads and writes.
fn pinned(pins: &Path, name: &str, key: usize, value: usize) -> Result<MapData> {
    let path = pins.join(name);
    let map = MapData::from_pin(&path)
        .map_err(explain)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let info = map.info().with_context(|| format!("cannot look at {}", path.display()))?;
    let found = (info.key_size() as usize, info.value_size() as usize);
    if found != (key, value) {
        bail!("{} holds other keys and values than this program's: {WAY_OUT}", path.display());
    }
    Ok(map)
}

fn array<V: Pod>(pins: &Path, name: &str) -> Result<Array<MapData, V>> {
    let map = pinned(pins, name, size_of::<u32>(), size_of::<V>())?;
    Map::Array(map).try_into().with_context(|| format!("the map `{name}` is not an array"))
}

fn explain(error: MapError) -> anyhow::Error {
    let denied = matches!(
        &error,
        MapError::SyscallError(error) if error.io_error.kind() == std::io::ErrorKind::PermissionDenied
    );
    let error = anyhow::Error::from(error);
    if denied { error.context("this needs root or CAP_BPF") } else { error }
}

/// The maps with the flows of a family.
struct Flows<A> {
    connections: MapData,
    half_open: HalfOpenFlows<A>,
}

impl<A> Flows<A>
where
    A: Address + Into<IpAddr> + Eq + Hash,
    FlowKey<A>: Pod,
    Flow<A>: Pod,
    HalfOpen<A>: Pod,
{
    fn open(pins: &Path) -> Result<Self> {
        let [connections, half_open] =
            ["connections", "half_open"].map(|name| format!("{name}_v{}", A::VERSION));
        let connections = pinned(pins, &connections, size_of::<FlowKey<A>>(), size_of::<Flow<A>>())?;
        let map = pinned(pins, &half_open, size_of::<u32>(), size_of::<HalfOpen<A>>())?;
        let half_open =
            HalfOpenFlows::new(&map).with_context(|| format!("cannot read the map `{half_open}`"))?;
        Ok(Self { connections, half_open })
    }

    /// Shows those that are wanted, half-open ones first: then a flow that is promoted meanwhile is not missed.
    fn walk(
        &self,
        filter: &Filter,
        clock: &Clock,
        visit: &mut impl FnMut(&Connection) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        let mut now = clock.now()?;
        let mut shown = HashSet::new();
        for (_, HalfOpen { key, flow, .. }) in self.half_open.iter() {
            let is_wanted = filter.admits(&key, &flow) && shown.insert(key);
            if is_wanted && visit(&Connection::new(&key, &flow, now))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let map = self.connections.fd().as_fd();
        let mut batch = Batch::<FlowKey<A>, Flow<A>>::new();
        let mut cursor = Cursor::default();
        let unreadable = || format!("cannot read connections_v{}", A::VERSION);
        while let Some(flows) = batch.read_next(map, &mut cursor).with_context(unreadable)? {
            now = clock.now()?;
            for (key, flow) in flows {
                let is_wanted = filter.admits(&key, &flow) && !shown.contains(&key);
                if is_wanted && visit(&Connection::new(&key, &flow, now))?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Connection {
    fn new<A: Address + Into<IpAddr>>(key: &FlowKey<A>, flow: &Flow<A>, now: Tick) -> Self {
        let state = match () {
            () if flow.flags & Flow::<A>::CUT != 0 || flow.is_closing() => State::Closing,
            () if flow.is_half_open(key.protocol) => State::HalfOpen,
            () => State::Established,
        };
        Self {
            protocol: key.protocol,
            client: SocketAddr::new(key.source.into(), key.source_port),
            vip: SocketAddr::new(key.destination.into(), key.destination_port),
            source: SocketAddr::new(flow.source.into(), flow.source_port),
            destination: SocketAddr::new(flow.destination.into(), flow.destination_port),
            listener: flow.listener,
            backend: flow.backend,
            state,
            age: now.since(flow.created),
            idle: now.since(flow.last_seen),
        }
    }

    /// `tcp` or `udp`.
    pub const fn protocol_name(&self) -> &'static str {
        if self.protocol == PROTO_TCP { "tcp" } else { "udp" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::PROTO_UDP;

    type Bits = Flow<Addr4>;

    fn shown(protocol: u8, flow: &Flow<Addr4>) -> Connection {
        let key = FlowKey { protocol, ..FlowKey::default() };
        Connection::new(&key, flow, Tick::new(4000, 1000))
    }

    #[test]
    fn the_state_comes_from_both_directions() {
        let established = Bits::SYN | Bits::ESTABLISHED;
        let fin = established | Bits::FIN;
        for (protocol, seen_to_backend, seen_to_client, expected) in [
            (PROTO_TCP, Bits::SYN, 0, State::HalfOpen),
            (PROTO_TCP, Bits::SYN, Bits::SYN, State::HalfOpen),
            (PROTO_TCP, established, Bits::SYN, State::Established),
            (PROTO_TCP, Bits::ESTABLISHED, 0, State::Established),
            (PROTO_TCP, fin, established, State::Established),
            (PROTO_TCP, fin, fin, State::Closing),
            (PROTO_TCP, established, Bits::RST, State::Closing),
            (PROTO_TCP, Bits::SYN, Bits::RST, State::Closing),
            (PROTO_UDP, Bits::SYN, 0, State::Established),
            (PROTO_UDP, Bits::ESTABLISHED, 0, State::Established),
        ] {
            let flow = Flow { seen_to_backend, seen_to_client, ..Flow::default() };
            let state = shown(protocol, &flow).state;
            assert_eq!(state, expected, "{protocol} {seen_to_backend:#b} {seen_to_client:#b}");
        }
    }

    #[test]
    fn a_flow_that_the_controller_has_cut_is_closing() {
        let (flags, seen_to_backend) = (Bits::CUT, Bits::SYN | Bits::ESTABLISHED);
        let cut = Flow { flags, seen_to_backend, seen_to_client: Bits::SYN, ..Flow::default() };
        assert_eq!(shown(PROTO_TCP, &cut).state, State::Closing);
    }

    #[test]
    fn a_flow_is_as_idle_as_its_last_packet_is_old() {
        let seconds = Duration::from_secs;
        let connection = shown(PROTO_TCP, &Flow { created: 1000, last_seen: 3000, ..Flow::default() });
        assert_eq!((connection.age, connection.idle), (seconds(3), seconds(1)));
    }
}
